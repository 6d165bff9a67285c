"""What may be drawn in a row of a segment: text, audio as in the official code, audio under its codebook pattern.

All conversations of a batch stand in the same row of the same kind of segment, so most of a rule is a plain number.
A rule first names candidate ids for each stream that is drawn, then which of them are allowed, and finally settles the
cells that were not drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch

from bagpiper.errors import UserError
from bagpiper.language.patterns import Pattern
from bagpiper.language.vocabulary import EOS, EOT, PAD, Vocabulary
from bagpiper.recipe.settings import DecodeSettings, GenerationSettings

END_IDS = (EOS, EOT)


class Rules:
    """Rules of one segment.

    Attributes:
        limit: rows that may be drawn.
        num_draws: D, streams drawn; the others are settled.
        num_streams: S.
    """

    limit: int
    num_draws: int
    num_streams: int

    def candidates(self, row: int) -> torch.Tensor:
        """Joint ids ``[D, C]`` that the streams of a row choose from; the last two are the END tokens."""
        raise NotImplementedError

    def allowed(self, row: int) -> torch.Tensor:
        """Which candidates may be drawn, bool, broadcasts to ``[n, D, C]``."""
        raise NotImplementedError

    def settle(self, row: int, drawn: torch.Tensor, first: Sequence[int]) -> torch.Tensor:
        """Complete a row, or its first streams: heads may draw a row in several blocks, and the later ones see these.

        Args:
            row: number of the row.
            drawn: joint ids of the first streams or of all that are drawn, ``[n, d]``.
            first: those of stream 0, on the host.

        Returns:
            Joint ids ``[n, d]``, or ``[n, S]`` if all are drawn.
        """
        raise NotImplementedError

    def select(self, keep: torch.Tensor) -> None:
        """Keep some conversations: int64 ``[m]`` positions."""


class TextRules(Rules):
    """Text in stream 0, padding elsewhere; END from row ``min_rows`` on."""

    num_draws = 1

    def __init__(
        self, vocabulary: Vocabulary, num_tokens: int, num_streams: int, settings: DecodeSettings, device: torch.device
    ) -> None:
        """Prepare.

        Args:
            vocabulary: the ids.
            num_tokens: text ids that may be drawn, from the first.
            num_streams: S.
            settings: of text.
            device: of the logits.
        """
        self.limit = settings.max_rows
        self.num_streams = num_streams
        self._min_rows = settings.min_rows
        ids = torch.arange(vocabulary.text_start, vocabulary.text_start + num_tokens)
        self._candidates = torch.cat([ids, torch.tensor(END_IDS)])[None].to(device)
        self._with_end = torch.ones_like(self._candidates, dtype=torch.bool)[None]
        self._without_end = self._with_end.clone()
        self._without_end[..., -2:] = False

    def candidates(self, row: int) -> torch.Tensor:
        return self._candidates

    def allowed(self, row: int) -> torch.Tensor:
        return self._with_end if row >= self._min_rows else self._without_end

    def settle(self, row: int, drawn: torch.Tensor, first: Sequence[int]) -> torch.Tensor:
        ids = drawn.new_full((len(drawn), self.num_streams), PAD)
        ids[:, :1] = drawn
        return ids


class AudioRules(Rules):
    """The official masks: every stream draws from its own codebook's ids, the pad included, at every row."""

    def __init__(
        self, vocabulary: Vocabulary, pattern: Pattern, settings: DecodeSettings, device: torch.device
    ) -> None:
        """Prepare.

        Args:
            vocabulary: the ids.
            pattern: decides which codebook a stream holds in a row.
            settings: of audio.
            device: of the logits.
        """
        self.limit = settings.max_rows
        self.num_streams = self.num_draws = pattern.streams(vocabulary.num_codebooks)
        self._vocabulary, self._pattern, self._device = vocabulary, pattern, device
        self._min_rows = settings.min_rows
        books = vocabulary.audio_start + torch.arange(vocabulary.audio_size).view(vocabulary.num_codebooks, -1)
        ends = torch.tensor(END_IDS).expand(len(books), -1)
        self._books = torch.cat([books, ends], dim=1).to(device)  # [K, interval + 2]: pad, codes, END
        self._open = self._mask(slice(0, -2))

    def _mask(self, *parts: slice) -> torch.Tensor:
        """Mask ``[S, C]`` that allows ``parts`` in stream 0 and the whole codebook elsewhere."""
        mask = torch.zeros((self.num_streams, self._books.shape[1]), dtype=torch.bool, device=self._device)
        mask[1:, :-2] = True
        for part in parts:
            mask[0, part] = True
        return mask

    @cached_property
    def _codebooks(self) -> np.ndarray:
        """Codebook of every cell ``[period, S]``; cells that hold a pad take the codebook of their column."""
        num_codebooks = self._vocabulary.num_codebooks
        _, codebooks = self._pattern.layout(num_codebooks, num_codebooks)
        column = codebooks.max(axis=0)
        filled = np.where(codebooks < 0, column, codebooks)
        return filled[:1] if (filled == column).all() else filled[:num_codebooks]

    @cached_property
    def _candidates(self) -> list[torch.Tensor]:
        return [self._books[torch.from_numpy(row).to(self._device)] for row in self._codebooks]

    def candidates(self, row: int) -> torch.Tensor:
        return self._candidates[row % len(self._candidates)]

    @cached_property
    def _open_or_end(self) -> torch.Tensor:
        return self._mask(slice(0, None))

    def allowed(self, row: int) -> torch.Tensor:
        return self._open_or_end if row >= self._min_rows else self._open

    def settle(self, row: int, drawn: torch.Tensor, first: Sequence[int]) -> torch.Tensor:
        return drawn


class PatternRules(AudioRules):
    """Audio that always reverts to whole frames.

    While a clip is open, stream 0 draws a code, or closes the clip: with its pad if the pattern has a tail, with END at
    a whole frame otherwise. From then on the number of frames is known and every cell follows from the layout. Clips
    that reach the last frame that fits into ``max_rows`` are closed there.
    """

    _CODE, _PAD, _END = 1, 2, 4

    def __init__(
        self, vocabulary: Vocabulary, pattern: Pattern, settings: DecodeSettings, num_clips: int, device: torch.device
    ) -> None:
        """Prepare.

        Args:
            vocabulary: the ids.
            pattern: the codebook pattern.
            settings: of audio.
            num_clips: n.
            device: of the logits.

        Raises:
            UserError: not even one frame fits into ``max_rows``.
        """
        super().__init__(vocabulary, pattern, settings, device)
        num_codebooks = vocabulary.num_codebooks
        self._most = pattern.frames_in(settings.max_rows, num_codebooks)
        if self._most == 0:
            raise UserError(
                f"generation.audio.max_rows = {settings.max_rows} has no room for one frame: the pattern "
                f"'{pattern.name}' with {num_codebooks} codebooks needs at least {pattern.rows(1, num_codebooks)}"
            )
        self.limit = pattern.rows(self._most, num_codebooks)
        self._has_tail = pattern.has_tail(num_codebooks)
        self._pads = torch.tensor([vocabulary.audio_pad(stream) for stream in range(self.num_streams)], device=device)
        self._ends = torch.tensor(END_IDS, device=device)
        # -1 while open, then T; what the layout says of the rows from the closing one on is kept in `_tails`
        self._frames = [-1] * num_clips
        self._tails: list[np.ndarray | None] = [None] * num_clips
        parts = {self._CODE: slice(1, -2), self._PAD: slice(0, 1), self._END: slice(-2, None)}
        masks = [self._mask(*(part for bit, part in parts.items() if bits & bit)) for bits in range(8)]
        self._masks = torch.stack(masks)
        self._masks[:, 1:, 0] = False

    def _rows(self, frames: int) -> int:
        return self._pattern.rows(frames, self._vocabulary.num_codebooks)

    def _open_bits(self, row: int) -> int:
        if not self._has_tail:
            whole = self._rows(self._pattern.frames_in(row, self._vocabulary.num_codebooks)) == row
            return self._CODE | (self._END if whole and row and row >= self._min_rows else 0)
        if row == self._most:
            return self._PAD
        return self._CODE | (self._PAD if row and self._rows(row) >= self._min_rows else 0)

    def allowed(self, row: int) -> torch.Tensor:
        bits = self._open_bits(row)
        if max(self._frames) < 0:
            return self._masks[bits]
        closed = [self._PAD if row < self._rows(frames) else self._END for frames in self._frames]
        each = [bits if frames < 0 else known for frames, known in zip(self._frames, closed, strict=True)]
        return self._masks[torch.tensor(each, device=self._device)]

    def settle(self, row: int, drawn: torch.Tensor, first: Sequence[int]) -> torch.Tensor:
        if any(token in END_IDS for token in first):
            ended = torch.isin(drawn[:, :1], self._ends)
            drawn = torch.cat([drawn[:, :1], drawn[:, 1:].masked_fill(ended, PAD)], dim=1)
        if not self._has_tail:
            return drawn
        pad = self._vocabulary.audio_pad(0)
        is_pad = np.tile(~self._pattern.open_cells(row, self._vocabulary.num_codebooks), (len(first), 1))
        for clip, token in enumerate(first):
            if self._frames[clip] < 0 and token == pad:
                # stream 0 held one code in every row before
                self._frames[clip] = row
                self._tails[clip] = self._pattern.layout(row, self._vocabulary.num_codebooks)[0] < 0
            tail = self._tails[clip]
            if tail is not None:
                is_pad[clip] = tail[row] if row < len(tail) else False
        is_pad[:, 0] = False
        if not is_pad.any():
            return drawn
        is_pad = is_pad[:, : drawn.shape[1]]
        return torch.where(torch.from_numpy(is_pad).to(self._device), self._pads[: drawn.shape[1]], drawn)

    def select(self, keep: torch.Tensor) -> None:
        places = keep.tolist()
        self._frames = [self._frames[place] for place in places]
        self._tails = [self._tails[place] for place in places]


def segment_rules(
    modality: str,
    vocabulary: Vocabulary,
    pattern: Pattern,
    settings: GenerationSettings,
    *,
    num_tokens: int,
    num_clips: int,
    device: torch.device,
) -> Rules:
    """Rules of a segment.

    Args:
        modality: text or audio.
        vocabulary: the ids.
        pattern: the codebook pattern.
        settings: of decoding.
        num_tokens: tokens that the tokenizer really has.
        num_clips: conversations in the batch.
        device: of the logits.
    """
    if modality == "text":
        count = vocabulary.text_size if settings.unused_text_ids else num_tokens
        streams = pattern.streams(vocabulary.num_codebooks)
        return TextRules(vocabulary, count, streams, settings.text, device)
    if settings.enforce_pads:
        return PatternRules(vocabulary, pattern, settings.audio, num_clips, device)
    return AudioRules(vocabulary, pattern, settings.audio, device)
