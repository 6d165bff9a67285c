"""Codebook patterns: where each code of a clip ``[T, K]`` sits in the token grid ``[R, S]``.

A pattern is a layout: for each cell the frame and the codebook that it holds, or -1 where it holds the stream's pad.
``revert(apply(x)) == x`` for every pattern (MusicGen's codebook patterns, arXiv:2306.05284 section 2.1, are the source
of the idea; ``delay`` is Bagpiper's own, spec section 4.2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bagpiper.language.vocabulary import IntArray, Vocabulary


@dataclass(frozen=True)
class Pattern:
    """One way to lay codes out.

    Attributes:
        name: its name in recipes.
        streams: K -> S, columns of the grid.
        rows: (T, K) -> R, rows of a clip of T frames.
        layout: (T, K) -> frames ``[R, S]``, codebooks ``[R, S]``; -1 marks a pad.
        open_cells: (row, K) -> bool ``[S]``: cells of a row that hold a code while the clip's end is still unknown.
        has_tail: stream 0 closes with pads before the segment's end token may come.
    """

    name: str
    streams: Callable[[int], int]
    rows: Callable[[int, int], int]
    layout: Callable[[int, int], tuple[IntArray, IntArray]]
    open_cells: Callable[[int, int], np.ndarray]
    has_tail: Callable[[int], bool]

    def frames_in(self, rows: int, num_codebooks: int) -> int:
        """Largest T whose layout fits into ``rows`` rows (0 if none does)."""
        low, high = 0, rows
        while low < high:
            middle = (low + high + 1) // 2
            if self.rows(middle, num_codebooks) <= rows:
                low = middle
            else:
                high = middle - 1
        return low


def _delay_layout(num_frames: int, num_codebooks: int) -> tuple[IntArray, IntArray]:
    rows = np.arange(num_frames + num_codebooks - 1 if num_frames else 0)[:, None]
    streams = np.arange(num_codebooks)[None, :]
    frames = rows - streams
    inside = (frames >= 0) & (frames < num_frames)
    return np.where(inside, frames, -1), np.where(inside, streams, -1)


def _parallel_layout(num_frames: int, num_codebooks: int) -> tuple[IntArray, IntArray]:
    shape = (num_frames, num_codebooks)
    frames = np.broadcast_to(np.arange(num_frames)[:, None], shape)
    return frames.copy(), np.broadcast_to(np.arange(num_codebooks)[None, :], shape).copy()


def _flatten_layout(num_frames: int, num_codebooks: int) -> tuple[IntArray, IntArray]:
    cells = np.arange(num_frames * num_codebooks)[:, None]
    return cells // num_codebooks, cells % num_codebooks


def _coarse_first_layout(num_frames: int, num_codebooks: int) -> tuple[IntArray, IntArray]:
    if num_codebooks == 1:
        return _parallel_layout(num_frames, 1)
    frames = np.full((2 * num_frames, num_codebooks), -1, dtype=np.int64)
    frames[:num_frames, 0] = np.arange(num_frames)
    frames[num_frames:, 1:] = np.arange(num_frames)[:, None]
    return frames, np.where(frames >= 0, np.arange(num_codebooks)[None, :], -1)


PATTERNS: dict[str, Pattern] = {
    pattern.name: pattern
    for pattern in (
        Pattern(
            name="delay",
            streams=lambda k: k,
            rows=lambda t, k: t + k - 1 if t else 0,
            layout=_delay_layout,
            open_cells=lambda row, k: np.arange(k) <= row,
            has_tail=lambda k: k > 1,
        ),
        Pattern(
            name="parallel",
            streams=lambda k: k,
            rows=lambda t, k: t,
            layout=_parallel_layout,
            open_cells=lambda row, k: np.ones(k, dtype=bool),
            has_tail=lambda k: False,
        ),
        Pattern(
            name="flatten",
            streams=lambda k: 1,
            rows=lambda t, k: t * k,
            layout=_flatten_layout,
            open_cells=lambda row, k: np.ones(1, dtype=bool),
            has_tail=lambda k: False,
        ),
        Pattern(
            name="coarse_first",
            streams=lambda k: k,
            rows=lambda t, k: 2 * t if k > 1 else t,
            layout=_coarse_first_layout,
            open_cells=lambda row, k: np.arange(k) == 0,
            has_tail=lambda k: k > 1,
        ),
    )
}


def get_pattern(name: str) -> Pattern:
    """The pattern called ``name``.

    Raises:
        ValueError: no such pattern.
    """
    if name not in PATTERNS:
        raise ValueError(f"unknown codebook pattern '{name}'; allowed: {', '.join(PATTERNS)}")
    return PATTERNS[name]


def apply(pattern: Pattern, codes: IntArray, vocabulary: Vocabulary) -> IntArray:
    """Lay codes out as joint ids.

    Args:
        pattern: the layout.
        codes: ``[T, K]`` codes of one clip, 0 <= code < codebook_size.
        vocabulary: gives the ids; K must be its ``num_codebooks``.

    Returns:
        Joint ids ``[R, S]``; cells without a code hold the pad of their stream.

    Raises:
        ValueError: codes of another shape or range than the vocabulary's.
    """
    codes = np.asarray(codes, dtype=np.int64)
    if codes.ndim != 2 or codes.shape[1] != vocabulary.num_codebooks:
        raise ValueError(
            f"codes of shape {codes.shape} do not fit a vocabulary of {vocabulary.num_codebooks} codebooks"
        )
    num_frames, num_codebooks = codes.shape
    frames, codebooks = pattern.layout(num_frames, num_codebooks)
    streams = np.broadcast_to(np.arange(frames.shape[1])[None, :], frames.shape)
    ids = vocabulary.audio_start + streams * vocabulary.interval
    held = frames >= 0
    ids[held] = vocabulary.codes_to_ids(codes[frames[held], codebooks[held]], codebooks[held])
    return ids


def revert(pattern: Pattern, ids: IntArray, vocabulary: Vocabulary) -> IntArray:
    """Undo ``apply``.

    Args:
        pattern: the layout.
        ids: joint ids ``[R, S]``; rows that complete no frame are left out, an id outside its codebook is clipped.
        vocabulary: as in ``apply``.

    Returns:
        Codes ``[T, K]``.
    """
    ids = np.asarray(ids, dtype=np.int64)
    num_codebooks = vocabulary.num_codebooks
    num_frames = pattern.frames_in(len(ids), num_codebooks)
    frames, codebooks = pattern.layout(num_frames, num_codebooks)
    held = frames >= 0
    codes = np.zeros((num_frames, num_codebooks), dtype=np.int64)
    codes[frames[held], codebooks[held]] = vocabulary.ids_to_codes(ids[: len(frames)][held], codebooks[held])
    return codes
