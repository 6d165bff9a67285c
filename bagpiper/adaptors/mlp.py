"""Stacked frames through two layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from bagpiper.adaptors.configs import MlpConfig
from bagpiper.component import Adaptor
from bagpiper.ops.clips import split_clips, strided_windows


class MlpAdaptor(Adaptor):
    """``stack`` neighbouring states become one embedding, by two affine layers with GELU between."""

    def __init__(self, config: MlpConfig, width_in: int, width_out: int) -> None:
        super().__init__(config)
        hidden = config.hidden or width_out
        self.hidden = nn.Linear(config.stack * width_in, hidden)
        self.output = nn.Linear(hidden, width_out, bias=config.output_rms is None)
        self.norm: nn.RMSNorm | None = None
        if config.output_rms is not None:
            self.norm = nn.RMSNorm(width_out, eps=1e-6)
            nn.init.constant_(self.norm.weight, config.output_rms)
            # what all embeddings have in common goes here, after the norm: before it, it would drown the rest
            self.common = nn.Parameter(torch.zeros(width_out))

    def forward(self, states: list[torch.Tensor]) -> list[torch.Tensor]:
        """See ``Adaptor.forward``."""
        if not states:
            return []
        stacked, lengths = strided_windows(states, self.config.stack, self.config.stack, left=0)
        embeddings = self.output(F.gelu(self.hidden(stacked)))
        if self.norm is not None:
            embeddings = self.norm(embeddings) + self.common
        return split_clips(embeddings, lengths)
