"""A pack: several token grids laid end to end, with the audio that fills their slots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray

from bagpiper.language.conversation import TokenGrid


@dataclass(frozen=True)
class Spans:
    """Where the examples of a pack begin and end.

    Attributes:
        cu_seqlens: int32 ``[n + 1]`` cumulative lengths, on the device of the batch.
        lengths: the same as Python numbers, so that no kernel has to wait for the device.
    """

    cu_seqlens: torch.Tensor
    lengths: tuple[int, ...]

    @property
    def max_length(self) -> int:
        """Length of the longest example."""
        return max(self.lengths)


@dataclass(frozen=True)
class Note:
    """Something that happened to an example on its way into a batch, for the ledger and the console.

    Attributes:
        source: the example's source.
        what: name of the count.
        text: in words; empty where another note tells it.
    """

    source: str
    what: str
    text: str = ""


@dataclass(frozen=True)
class Batch:
    """One micro-batch.

    Attributes:
        ids: int64 ``[T, S]``.
        weights: float32 ``[T, S]``; loss weight of each cell as a target.
        positions: int64 ``[T]``, restarting at 0 in every example.
        spans: the examples' borders.
        slots: first row and number of rows of each clip, in the pack.
        waves: float32 ``[N_i]`` for each slot, at the encoder's sample rate.
        keys: ids of the examples.
        num_targets: target frames (spec section 5); what the loss is normalised by, summed over a step.
        num_text, num_frames, seconds: target text tokens, target audio frames, seconds of audio in or out.
        notes: what happened to examples on the way.
    """

    ids: torch.Tensor
    weights: torch.Tensor
    positions: torch.Tensor
    spans: Spans
    slots: tuple[tuple[int, int], ...]
    waves: tuple[torch.Tensor, ...]
    keys: tuple[str, ...]
    num_targets: int
    num_text: int = 0
    num_frames: int = 0
    seconds: float = 0.0
    notes: tuple[Note, ...] = ()

    def __len__(self) -> int:
        return int(self.ids.shape[0])

    def examples_of(self, rows: torch.Tensor) -> list[str]:
        """Ids of the examples that hold ``rows`` (int64 ``[n]``), each once, in order; filling is no example."""
        borders = self.spans.cu_seqlens.to(rows.device)
        numbers = torch.bucketize(rows, borders[1:], right=True).unique().tolist()
        return [self.keys[number] for number in numbers if number < len(self.keys)]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch on another device."""
        moved = {
            item.name: getattr(self, item.name).to(device, non_blocking=non_blocking)
            for item in fields(self)
            if isinstance(getattr(self, item.name), torch.Tensor)
        }
        spans = Spans(self.spans.cu_seqlens.to(device, non_blocking=non_blocking), self.spans.lengths)
        waves = tuple(wave.to(device, non_blocking=non_blocking) for wave in self.waves)
        return replace(self, **moved, spans=spans, waves=waves)


def collate(
    grids: Sequence[TokenGrid],
    waves: Sequence[Sequence[NDArray[np.float32]]],
    keys: Sequence[str],
    *,
    audio_start: int,
    seconds: float = 0.0,
    notes: tuple[Note, ...] = (),
    pad_to: int | None = None,
) -> Batch:
    """Lay grids end to end.

    Args:
        grids: the examples.
        waves: per example, one waveform per slot.
        keys: per example, its id.
        audio_start: first joint id of the audio block; tells target frames from target text.
        seconds: seconds of audio in or out.
        notes: what happened to examples on the way.
        pad_to: fill up with padding to this many rows; the tail is one more isolated example.
    """
    ids = [grid.ids for grid in grids]
    weights = [grid.weights for grid in grids]
    lengths = [len(grid) for grid in grids]
    tail = pad_to - sum(lengths) if pad_to else 0
    if tail > 0:
        ids.append(np.zeros((tail, ids[0].shape[1]), dtype=np.int64))
        weights.append(np.zeros((tail, ids[0].shape[1]), dtype=np.float32))
        lengths.append(tail)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    slots, clips = [], []
    for grid, offset, example_waves in zip(grids, starts, waves, strict=False):
        for slot, wave in zip(grid.slots, example_waves, strict=True):
            slots.append((int(offset) + slot.start, slot.length))
            clips.append(torch.from_numpy(np.ascontiguousarray(wave, dtype=np.float32)))
    flat_ids = np.concatenate(ids)
    flat_weights = np.concatenate(weights)
    targets = flat_weights[:, 0] > 0  # the first row of every example, bos or padding, never carries weight
    is_frame = targets & (flat_ids[:, 0] >= audio_start)
    return Batch(
        ids=torch.from_numpy(flat_ids),
        weights=torch.from_numpy(flat_weights),
        positions=torch.from_numpy(np.concatenate([np.arange(length) for length in lengths])),
        spans=Spans(torch.from_numpy(starts.astype(np.int32)), tuple(lengths)),
        slots=tuple(slots),
        waves=tuple(clips),
        keys=tuple(keys),
        num_targets=int(targets.sum()),
        num_text=int((targets & ~is_frame).sum()),
        num_frames=int(is_frame.sum()),
        seconds=seconds,
        notes=notes,
    )
