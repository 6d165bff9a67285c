"""Clips of different lengths through one matrix product.

Frames of all clips are laid end to end without padding between them, so nothing is computed for padding, and since
every row of a matrix product depends on its own row of the input alone, a clip (or a NaN in it) never reaches another.
Only the number of all rows does: products of other shapes may round otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def split_clips(rows: torch.Tensor, lengths: Sequence[int]) -> list[torch.Tensor]:
    """Undo the concatenation: ``[sum F_i, C]`` -> ``[F_i, C]`` each."""
    return list(rows.split(list(lengths)))


def strided_windows(
    clips: Sequence[torch.Tensor], kernel: int, stride: int, left: int
) -> tuple[torch.Tensor, list[int]]:
    """The input rows of a strided convolution over each clip, for one matrix product over all of them.

    A clip of F frames gives ``ceil(F / stride)`` windows; zeros stand before its start (``left`` of them) and after
    its end (as many as the last window needs).

    Args:
        clips: ``[F_i, C]`` each, at least one.
        kernel: frames of a window.
        stride: frames from one window to the next.
        left: zeros before the first frame.

    Returns:
        Windows ``[sum ceil(F_i / stride), kernel * C]`` and how many belong to each clip.
    """
    assert clips, "no clips"
    lengths = [-(-len(clip) // stride) for clip in clips]
    windows = []
    for clip, length in zip(clips, lengths, strict=True):
        if length == 0:
            windows.append(clip.new_zeros(0, kernel * clip.shape[1]))
            continue
        right = (length - 1) * stride + kernel - left - len(clip)  # negative: frames that no window reaches
        padded = F.pad(clip, (0, 0, left, right))
        windows.append(padded.unfold(0, kernel, stride).transpose(1, 2).reshape(length, -1))
    return torch.cat(windows), lengths
