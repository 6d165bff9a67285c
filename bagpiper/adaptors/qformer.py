"""Learned queries over windows of states."""

from __future__ import annotations

import torch
from torch import nn

from bagpiper.adaptors.configs import QformerConfig
from bagpiper.adaptors.sized import SizedAdaptor
from bagpiper.ops.clips import split_clips, strided_windows


class QformerAdaptor(SizedAdaptor):
    """torch's transformer decoder layers: their target is the queries, their memory one window of one clip.

    The windows of all clips are one batch, so nothing passes from one to another.
    """

    def __init__(self, config: QformerConfig, width_in: int, width_out: int) -> None:
        """Build.

        Raises:
            ValueError: the heads do not divide the width.
        """
        super().__init__(config)
        width = config.width or width_in
        if width % config.heads:
            raise ValueError(
                f"adaptor qformer: width ({width}) must be a multiple of heads ({config.heads}); set width or heads"
            )
        self.input = nn.Linear(width_in, width)
        self.input_norm = nn.LayerNorm(width)
        self.positions = nn.Parameter(torch.randn(config.window, width) * 0.02)
        self.queries = nn.Parameter(torch.randn(config.queries, width) * 0.02)
        # not nn.TransformerDecoder, whose layers all start with the same weights
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(
                width, config.heads, 4 * width, config.dropout, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(config.layers)
        )
        self.heard_norm = nn.LayerNorm(width)
        self.add_output(width, width_out)

    def forward(self, states: list[torch.Tensor]) -> list[torch.Tensor]:
        """See ``Adaptor.forward``."""
        if not states:
            return []
        window, queries = self.config.window, self.config.queries
        rows, counts = strided_windows(states, window, window, left=0)
        if not len(rows):
            return [clip.new_zeros(0, self.output.out_features) for clip in states]
        memory = self.input_norm(self.input(rows.unflatten(1, (window, -1)))) + self.positions
        beyond = _beyond_the_end([len(clip) for clip in states], window, rows.device)
        heard = self.queries.expand(len(rows), -1, -1)
        for layer in self.layers:
            heard = layer(heard, memory, memory_key_padding_mask=beyond)
        return split_clips(self.embed(self.heard_norm(heard).flatten(0, 1)), [queries * count for count in counts])


def _beyond_the_end(lengths: list[int], window: int, device: torch.device) -> torch.Tensor:
    """Where the windows of clips of ``lengths`` states hold none: bool ``[windows, window]``."""
    held = [min(window, length - start) for length in lengths for start in range(0, length, window)]
    return torch.arange(window, device=device) >= torch.tensor(held, device=device).reshape(-1, 1)
