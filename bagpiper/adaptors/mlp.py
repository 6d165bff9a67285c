"""Stacked frames through two layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from bagpiper.adaptors.configs import MlpConfig
from bagpiper.adaptors.sized import SizedAdaptor
from bagpiper.ops.clips import split_clips, strided_windows


class MlpAdaptor(SizedAdaptor):
    """``stack`` neighbouring states become one embedding, by two affine layers with GELU between."""

    def __init__(self, config: MlpConfig, width_in: int, width_out: int) -> None:
        super().__init__(config)
        hidden = config.hidden or width_out
        self.hidden = nn.Linear(config.stack * width_in, hidden)
        self.add_output(hidden, width_out)

    def forward(self, states: list[torch.Tensor]) -> list[torch.Tensor]:
        """See ``Adaptor.forward``."""
        if not states:
            return []
        stacked, lengths = strided_windows(states, self.config.stack, self.config.stack, left=0)
        return split_clips(self.embed(F.gelu(self.hidden(stacked))), lengths)
