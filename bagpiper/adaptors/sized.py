"""Embeddings that start at a size of their own choice."""

from __future__ import annotations

import torch
from torch import nn

from bagpiper.component import Adaptor


class SizedAdaptor(Adaptor):
    """An adaptor whose embeddings may pass an RMSNorm with a learned gain, plus a learned vector.

    Attributes:
        output: the last affine layer.
        norm: None leaves the size of the embeddings to ``output``.
        common: what all embeddings have in common, added after the norm: before it, it would drown the rest.
    """

    output: nn.Linear
    norm: nn.RMSNorm | None
    common: nn.Parameter

    def add_output(self, width: int, width_out: int) -> None:
        """Make the layers that ``embed`` runs, from rows of ``width``; ``config.output_rms`` may be null."""
        output_rms: float | None = self.config.output_rms
        self.output = nn.Linear(width, width_out, bias=output_rms is None)
        self.norm = None
        if output_rms is not None:
            self.norm = nn.RMSNorm(width_out, eps=1e-6)
            nn.init.constant_(self.norm.weight, output_rms)
            self.common = nn.Parameter(torch.zeros(width_out))

    def embed(self, rows: torch.Tensor) -> torch.Tensor:
        """``[..., width]`` -> ``[..., width_out]``."""
        embeddings = self.output(rows)
        return embeddings if self.norm is None else self.norm(embeddings) + self.common
