"""Decoding along answers that are known already: the decoder at work, told what to draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from bagpiper.inference.decoder import Decoder, Group, SegmentRun, Step
from bagpiper.inference.masks import END_IDS
from bagpiper.language.conversation import Conversation, Modality, TokenGrid
from bagpiper.language.vocabulary import PAD, IntArray
from bagpiper.recipe.settings import DecodeSettings, GenerationSettings

if TYPE_CHECKING:
    from bagpiper.model import Bagpiper


@dataclass(frozen=True)
class KnownSegment:
    """A segment of a known answer.

    Attributes:
        modality: text or audio.
        rows: joint ids ``[n, S]``, the END row included.
        start: number of its first row in the conversation's grid.
    """

    modality: Modality
    rows: IntArray
    start: int


def known_segments(conversation: Conversation, grid: TokenGrid) -> list[KnownSegment]:
    """The messages after the prompt, as the decoder would have drawn them.

    Args:
        conversation: a prompt, then messages of the assistant alone.
        grid: its rows.
    """
    segments = []
    first = len(conversation.prompt().messages)
    for message, (start, stop) in zip(conversation.messages[first:], grid.message_rows[first:], strict=True):
        start += 2  # role and modality are not drawn
        segments.append(KnownSegment(message.modality, grid.ids[start:stop], start))
    return segments


@dataclass(frozen=True)
class ForcedRow:
    """What the decoder computed before a row of a known answer.

    Attributes:
        row: number of the row in the conversation's grid.
        candidates: joint ids ``[D, C]``.
        logits: float32 ``[D, C]``, minus infinity where the masks forbid.
        ids: the row as the decoder settled it, ``[S]``.
        truth: the row as it is known, ``[S]``.
    """

    row: int
    candidates: torch.Tensor
    logits: torch.Tensor
    ids: torch.Tensor
    truth: torch.Tensor

    def is_drawable(self) -> bool:
        """Whether the masks let the decoder lay this row out as the data has it.

        Stream 0 must be allowed; cells of the others may be settled by the codebook pattern. The official text id 0,
        which is read as padding, can be in the data and cannot be drawn.
        """
        first = int(self.truth[0])
        allowed = self.candidates[0][(self.logits[0] > -torch.inf).to(self.candidates.device)].tolist()
        return torch.equal(self.ids, self.truth) and (first == PAD or first in allowed)


class ForcedDecoder(Decoder):
    """A decoder whose every choice is made already; all else (masks, caches, groups, batches) is the decoder's own."""

    def __init__(self, model: Bagpiper, settings: GenerationSettings, known: Sequence[Sequence[KnownSegment]]) -> None:
        """Prepare.

        Args:
            model: in eval mode.
            settings: masks and lengths; nothing is drawn at random and nothing guided.
            known: the segments of every conversation's answer.
        """
        longest = max(len(segment.rows) for segments in known for segment in segments)
        # room enough that no rule closes a segment: coarse_first takes two rows a frame, delay K - 1 more
        length = DecodeSettings(
            temperature=0.0, top_k=0, cfg=1.0, min_rows=0, max_rows=2 * (longest + model.vocabulary.num_codebooks)
        )
        plain = replace(
            settings,
            text=length,
            audio=length,
            max_segments=max(map(len, known)) + 1,
            max_seconds=float("inf"),
        )
        super().__init__(model, plain, [0] * len(known), (), self._keep, 0)
        self.known = known
        self.forced: list[list[ForcedRow]] = [[] for _ in known]

    def _keep(self, step: Step) -> None:
        for place, conversation in enumerate(step.conversations):
            segment = self.known[conversation][step.segment]
            truth = torch.from_numpy(segment.rows[step.row])
            drawn = 1 if int(truth[0]) in END_IDS else len(step.candidates)  # an END row has nothing but its END
            self.forced[conversation].append(
                ForcedRow(
                    segment.start + step.row,
                    step.candidates[:drawn],
                    step.logits[place, :drawn].float().cpu(),
                    step.ids[place].cpu(),
                    truth,
                )
            )

    def _choose_modalities(self, group: Group) -> list[Modality]:
        return [self.known[member][group.segment].modality for member in group.members]

    def _choose(
        self, run: SegmentRun, row: int, streams: slice, logits: torch.Tensor, candidates: torch.Tensor
    ) -> torch.Tensor:
        run.noise.row(row)  # drawn and thrown away, as it is for greedy choices
        members = [run.group.members[place] for place in run.places]
        segments = [self.known[member][run.group.segment].rows for member in members]
        # those that have ended wait in the batch with their END row
        rows = [torch.from_numpy(segment[min(row, len(segment) - 1), streams]) for segment in segments]
        return torch.stack(rows).to(self.device)
