"""A strided convolution, then one affine layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from bagpiper.adaptors.configs import ConvConfig
from bagpiper.component import Adaptor
from bagpiper.ops.clips import split_clips, strided_windows


class ConvAdaptor(Adaptor):
    """A convolution over time that keeps every ``stride``-th frame, GELU, then an affine layer.

    The convolution is one matrix product over the windows of all clips; its weight ``[width_out, kernel * width_in]``
    is a Conv1d's with the last two axes swapped.
    """

    def __init__(self, config: ConvConfig, width_in: int, width_out: int) -> None:
        super().__init__(config)
        self.convolution = nn.Linear(config.kernel * width_in, width_out)
        self.output = nn.Linear(width_out, width_out)

    def forward(self, states: list[torch.Tensor]) -> list[torch.Tensor]:
        """See ``Adaptor.forward``."""
        if not states:
            return []
        kernel, stride = self.config.kernel, self.config.stride
        windows, lengths = strided_windows(states, kernel, stride, left=(kernel - 1) // 2)
        return split_clips(self.output(F.gelu(self.convolution(windows))), lengths)
