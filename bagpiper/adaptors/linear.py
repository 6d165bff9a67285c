"""One affine layer."""

from __future__ import annotations

import torch
from torch import nn

from bagpiper.adaptors.configs import LinearConfig
from bagpiper.component import Adaptor
from bagpiper.ops.clips import split_clips


class LinearAdaptor(Adaptor):
    """States -> embeddings by one affine layer, as in the official model (spec section 3.4)."""

    def __init__(self, config: LinearConfig, width_in: int, width_out: int) -> None:
        super().__init__(config)
        self.output = nn.Linear(width_in, width_out)

    def forward(self, states: list[torch.Tensor]) -> list[torch.Tensor]:
        """See ``Adaptor.forward``."""
        if not states:
            return []
        return split_clips(self.output(torch.cat(states)), [len(clip) for clip in states])
