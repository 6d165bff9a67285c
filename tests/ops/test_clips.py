"""Strided windows over clips of different lengths."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bagpiper.ops.clips import split_clips, strided_windows


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    stride=st.integers(1, 4),
    extra=st.integers(0, 3),
)
def test_windows_equal_a_convolution_of_each_clip(lengths: list[int], stride: int, extra: int) -> None:
    kernel, width = stride + extra, 3
    left = (kernel - 1) // 2
    torch.manual_seed(0)
    clips = [torch.randn(length, width) for length in lengths]
    convolution = nn.Conv1d(width, 5, kernel, stride)
    weight = convolution.weight.transpose(1, 2).flatten(1)
    windows, counts = strided_windows(clips, kernel, stride, left)
    ours = split_clips(F.linear(windows, weight, convolution.bias), counts)
    for clip, mine in zip(clips, ours, strict=True):
        assert len(mine) == -(-len(clip) // stride)
        if len(clip):
            padded = F.pad(clip.T, (left, stride + kernel))
            theirs = convolution(padded[None])[0].T[: len(mine)]
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
