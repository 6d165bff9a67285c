"""Drawing the rows of answers, a batch at a time.

A batch decodes its segments in step: every row of the batch is in the same row of the same kind of segment, those that
ended wait for the others or, if they say nothing more, leave. Rows that choose different modalities part into groups
with caches of their own. No answer depends on its batch mates, but for rounding, which goes by the size of the batch:
logits agree within 1e-5 of the largest (float32), and ids wherever a choice is not closer than that. A closer one is a
tie, told apart by its logits.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from bagpiper.errors import UserError
from bagpiper.inference.masks import END_IDS, Rules, segment_rules
from bagpiper.inference.prompts import embed_prompts
from bagpiper.inference.sampling import Noise, draw, guide
from bagpiper.language.conversation import Conversation, Modality
from bagpiper.language.vocabulary import ASSISTANT, AUDIO, EOS, EOT, MODALITY_IDS, PAD, TEXT, IntArray
from bagpiper.llms.cache import KeyValueCache
from bagpiper.recipe.settings import DecodeSettings, GenerationSettings

if TYPE_CHECKING:
    from bagpiper.model import Bagpiper

Stop = Literal["eos", "eot", "max_rows", "positions"]
"""Why a segment ended: an END, ``max_rows``, or no position of the LLM was left."""

_AFTER_SEGMENT = 3
"""Rows that follow what was drawn: the last one, an END, ``<|assistant|>``."""

_FREE_SEGMENTS = 8
"""Most segments of an answer without a plan: a model that always ends with eot would never finish."""


@dataclass(frozen=True)
class Step:
    """One row of a batch, for those who watch.

    Attributes:
        conversations: numbers of the conversations, ``[n]``; those that have ended are not among them.
        segment: number of the segment in its answer.
        modality: of the segment.
        row: number of the row in its segment.
        ids: the row, ``[n, S]``.
        candidates: ids that the drawn streams chose from, ``[D, C]``.
        logits: theirs, after guidance and masks, ``[n, D, C]``.
    """

    conversations: tuple[int, ...]
    segment: int
    modality: Modality
    row: int
    ids: torch.Tensor
    candidates: torch.Tensor
    logits: torch.Tensor


@dataclass
class Group:
    """Conversations that stand before the same segment.

    Attributes:
        members: their numbers in the batch.
        cache: what they hold so far, up to ``<|assistant|>``.
        hidden: ``[n, H]``, after ``<|assistant|>``.
        segment: number of the segment.
    """

    members: list[int]
    cache: KeyValueCache
    hidden: torch.Tensor
    segment: int


@dataclass(frozen=True)
class Drawn:
    """A segment's rows ``[n, S]`` and why it ended."""

    modality: Modality
    rows: IntArray
    stop: Stop


@dataclass
class SegmentRun:
    """A segment while it is drawn. Its batch shrinks, ``places`` tells who is left.

    Attributes:
        group: whose segment it is; a conversation's place is its position there.
        cache: of the conversations left; with guidance twice as many rows, the unconditional ones last.
        places, running, over: of each conversation left: its place, whether it still draws, whether nothing follows.
        counts: rows of each place.
        room: rows that each place has positions for.
        drawn: the rows of each place, ``[places, limit, S]``.
    """

    group: Group
    modality: Modality
    settings: DecodeSettings
    rules: Rules
    noise: Noise
    cache: KeyValueCache
    places: list[int]
    running: list[bool]
    over: list[bool]
    counts: list[int]
    room: list[int]
    drawn: torch.Tensor


class Decoder:
    """Decodes one batch."""

    def __init__(
        self,
        model: Bagpiper,
        settings: GenerationSettings,
        seeds: Sequence[int],
        plan: Sequence[Modality],
        on_step: Callable[[Step], None] | None,
        offset: int,
    ) -> None:
        """Prepare.

        Args:
            model: in eval mode.
            settings: how to decode.
            seeds: one per conversation.
            plan: modalities of the first segments.
            on_step: called after every row.
            offset: number that ``Step`` gives to the first conversation.
        """
        self.model = model
        self.settings = settings
        self.seeds = seeds
        self.plan = plan
        self.most = settings.max_segments or len(plan) or _FREE_SEGMENTS
        self.on_step = on_step
        self.offset = offset
        self.positions = model.llm.max_positions
        self.device = next(model.llm.parameters()).device
        self.num_streams = model.template.num_streams
        self.done: list[list[Drawn]] = [[] for _ in seeds]

    def run(self, conversations: Sequence[Conversation]) -> list[list[Drawn]]:
        """Segments of every conversation."""
        cache = KeyValueCache(len(conversations), self.device)
        prompts = embed_prompts(self.model, conversations, self.settings, self.device)
        for conversation, rows in zip(conversations, prompts, strict=True):
            if self._room(len(rows)) < 1:
                raise UserError(
                    f"{conversation.id}: the request takes {len(rows)} rows, but the LLM has {self.positions} "
                    f"positions, of which an answer needs {_AFTER_SEGMENT + 1} at least; shorten the request"
                )
        hidden = self._feed(cache, prompts)
        groups = [Group(list(range(len(conversations))), cache, hidden, 0)]
        while groups:
            for modality, group in self._part(groups.pop()):
                following = self._decode(group, modality)
                if following is not None:
                    groups.append(following)
        return self.done

    def _feed(self, cache: KeyValueCache, embeds: Sequence[torch.Tensor]) -> torch.Tensor:
        """Feed ragged rows ``[L_i, H]``; hidden states of the last ones, ``[n, H]``."""
        lengths = torch.tensor([len(rows) for rows in embeds], device=self.device)
        padded = torch.nn.utils.rnn.pad_sequence(list(embeds), batch_first=True)
        hidden = self.model.extend(cache, padded, lengths)
        return hidden[torch.arange(len(embeds), device=self.device), lengths - 1]

    def _embed(self, rows: IntArray) -> torch.Tensor:
        return self.model.embed_rows(torch.from_numpy(rows).to(self.device))

    def _control_row(self, token: int) -> IntArray:
        row = np.full((1, self.num_streams), PAD, dtype=np.int64)
        row[0, 0] = token
        return row

    # -- which modality --------------------------------------------------------------------------------------------

    def _part(self, group: Group) -> list[tuple[Modality, Group]]:
        """Split a group by the modality of its next segment: the plan's, or else the model's choice.

        Only text and audio are ever compared: the official arg-max may be image, video or toolcall and crash.
        """
        if group.segment < len(self.plan):
            return [(self.plan[group.segment], group)]
        choices = self._choose_modalities(group)
        parts: list[tuple[Modality, Group]] = []
        modalities: tuple[Modality, Modality] = ("text", "audio")
        for modality in modalities:
            places = [place for place, choice in enumerate(choices) if choice == modality]
            if len(places) == len(choices):
                return [(modality, group)]
            if places:
                parts.append((modality, self._subgroup(group, places)))
        return parts

    def _choose_modalities(self, group: Group) -> list[Modality]:
        """What the model makes of every member's next segment."""
        head = self.model.head
        state = head.start(group.hidden, self.model.output_rows, 1)
        candidates = torch.tensor([[TEXT, AUDIO]], device=self.device)
        text, audio = head.next_logits(state, slice(0, 1), candidates, None)[:, 0].unbind(-1)
        return ["audio" if is_audio else "text" for is_audio in (audio > text).tolist()]

    def _subgroup(self, group: Group, places: list[int]) -> Group:
        index = torch.tensor(places, device=self.device)
        members = [group.members[place] for place in places]
        return Group(members, group.cache.select(index), group.hidden[index], group.segment)

    # -- one segment -----------------------------------------------------------------------------------------------

    def _goes_on(self, segment: int, last: int) -> bool:
        """Whether another segment follows one that ended with the id ``last`` in stream 0."""
        return segment + 1 < self.most and (segment + 1 < len(self.plan) or last == EOT)

    def _room(self, used: int) -> int:
        """Rows that may be drawn after ``used`` rows, so that what follows a segment has positions too."""
        return sys.maxsize if self.positions is None else self.positions - used - _AFTER_SEGMENT

    def _decode(self, group: Group, modality: Modality) -> Group | None:
        """Decode a segment; the group that goes on after it, or None."""
        run = self._draw_rows(group, modality)
        planned = group.segment + 1 < len(self.plan)
        members: list[int] = []
        kept: list[int] = []
        pending: list[torch.Tensor] = []
        grid = run.drawn.cpu().numpy()
        for place, member in enumerate(group.members):
            rows = grid[place, : run.counts[place]]
            last = int(rows[-1, 0])
            is_full = len(rows) == run.room[place]
            stop: Stop = "eos" if last == EOS else "eot" if last == EOT else "positions" if is_full else "max_rows"
            feed = [self._control_row(last)]
            if last not in END_IDS and self.settings.end_cut_segments:
                end = self._control_row(EOT if planned else EOS)
                rows = np.concatenate([rows, end])
                feed = [rows[-2:-1], end]
            self.done[member].append(Drawn(modality, rows, stop))
            if self._goes_on(group.segment, last) and run.room[place] - len(rows) > _AFTER_SEGMENT:
                members.append(member)
                kept.append(run.places.index(place))
                pending.append(self._embed(np.concatenate([*feed, self._control_row(ASSISTANT)])))
        if not members:
            return None
        cache = run.cache.select(torch.tensor(kept, device=self.device))  # drops the unconditional branch, if any
        return Group(members, cache, self._feed(cache, pending), group.segment + 1)

    def _draw_rows(self, group: Group, modality: Modality) -> SegmentRun:
        """Draw rows until every conversation has ended or the limit is reached."""
        size = len(group.members)
        settings: DecodeSettings = getattr(self.settings, modality)
        rules = segment_rules(
            modality,
            self.model.vocabulary,
            self.model.template.pattern,
            self.settings,
            num_tokens=self.model.tokenizer.size,
            num_clips=size,
            device=self.device,
        )
        room = [self._room(used) for used in group.cache.lengths.tolist()]
        run = SegmentRun(
            group=group,
            modality=modality,
            settings=settings,
            rules=rules,
            noise=Noise([self.seeds[member] for member in group.members], group.segment, rules.num_draws),
            cache=self._with_unconditional(group.cache) if settings.cfg > 1 else group.cache,
            places=list(range(size)),
            running=[True] * size,
            over=[False] * size,
            counts=[min(rules.limit, rows) for rows in room],
            room=room,
            drawn=torch.zeros((size, rules.limit, self.num_streams), dtype=torch.int64, device=self.device),
        )
        row = self._control_row(MODALITY_IDS[modality])
        fed = torch.from_numpy(np.tile(row, (size, 1))).to(self.device)
        for number in range(rules.limit):
            fed, first = self._draw_row(run, number, fed)
            run.drawn[run.places, number] = fed
            for position, token in enumerate(first):
                place = run.places[position]
                if run.running[position] and (token in END_IDS or number + 1 == run.counts[place]):
                    run.running[position] = False
                    run.over[position] = not self._goes_on(group.segment, token)
                    run.counts[place] = number + 1
            if not any(run.running):
                break
            fed = self._drop_finished(run, fed)
        return run

    def _draw_row(self, run: SegmentRun, row: int, fed: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
        """Feed a row ``[n, S]`` and draw the next one: ``[n, S]``, and its stream 0 on the host."""
        guided = run.settings.cfg > 1
        live = torch.tensor(run.running * 2 if guided else run.running, device=self.device).long()
        embeds = self.model.embed_rows(fed)[:, None]
        hidden = self.model.extend(run.cache, torch.cat([embeds, embeds]) if guided else embeds, live)[:, 0]
        candidates, allowed = run.rules.candidates(row), run.rules.allowed(row)
        head = self.model.head
        state = head.start(hidden, self.model.output_rows, len(candidates))
        drawn = ids = fed[:, :0]
        first: list[int] = []
        seen: list[torch.Tensor] = []
        for streams in head.blocks(len(candidates)):
            before = None if not streams.start else torch.cat([ids, ids]) if guided else ids
            logits = head.next_logits(state, streams, candidates[streams], before)
            if guided:
                logits = guide(logits, run.settings.cfg)
            logits = logits.masked_fill(~allowed[..., streams, :], -torch.inf)
            drawn = torch.cat([drawn, self._choose(run, row, streams, logits, candidates[streams])], dim=1)
            first = first or drawn[:, 0].tolist()
            ids = run.rules.settle(row, drawn, first)
            seen.append(logits)
        if self.on_step is not None:
            alive = [position for position, running in enumerate(run.running) if running]
            numbers = tuple(self.offset + run.group.members[run.places[position]] for position in alive)
            logits = torch.cat(seen, dim=1)[alive]
            self.on_step(Step(numbers, run.group.segment, run.modality, row, ids[alive], candidates, logits))
        return ids, first

    def _choose(
        self, run: SegmentRun, row: int, streams: slice, logits: torch.Tensor, candidates: torch.Tensor
    ) -> torch.Tensor:
        """Draw a block of streams.

        Args:
            run: the segment.
            row: number of the row.
            streams: the block.
            logits: ``[n, d, C]``, after guidance and masks.
            candidates: joint ids ``[d, C]``.

        Returns:
            joint ids ``[n, d]``.
        """
        uniforms = run.noise.row(row)[:, streams]
        places = draw(logits, uniforms, temperature=run.settings.temperature, top_k=run.settings.top_k)
        return candidates.gather(1, places.T).T

    def _drop_finished(self, run: SegmentRun, fed: torch.Tensor) -> torch.Tensor:
        """Take conversations that say nothing more out of the batch, once they are half of it."""
        if 2 * sum(run.over) < len(run.over):
            return fed
        kept = [position for position, over in enumerate(run.over) if not over]
        keep = torch.tensor(kept, device=self.device)
        run.cache = run.cache.select(torch.cat([keep, keep + len(run.over)]) if run.settings.cfg > 1 else keep)
        run.rules.select(keep)
        run.noise.select(keep)
        run.places = [run.places[position] for position in kept]
        run.running = [run.running[position] for position in kept]
        run.over = [False] * len(kept)
        return fed[keep]

    def _with_unconditional(self, cache: KeyValueCache) -> KeyValueCache:
        """The cache twice: as it is, then filled with padding rows to the same lengths.

        A run of padding rows is the beginning of every longer one, so it is computed once for the whole batch. The
        last row is ``<|assistant|>``, the only other thing that training with a dropped condition leaves visible.
        """
        size = len(cache)
        kept = self._control_row(ASSISTANT) if self.settings.cfg_keeps_assistant else self._control_row(PAD)
        lengths = cache.lengths
        padding = np.full((int(lengths.max()) - 1, self.num_streams), PAD, dtype=np.int64)
        empty = KeyValueCache(1, self.device)
        self._feed(empty, [self._embed(padding)])
        empty = empty.select(torch.zeros(size, dtype=torch.int64, device=self.device))
        empty.lengths = lengths - 1
        self._feed(empty, [self._embed(kept)] * size)
        return KeyValueCache.concatenate(cache, empty)
