"""Drawing ids from logits: guidance, top-k, temperature, and random numbers that belong to one conversation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

_BLOCK = 64
"""Rows whose random numbers are drawn at once; 1 costs 15 us a row and conversation, 64 costs 0.3 us."""


def guide(logits: torch.Tensor, scale: float) -> torch.Tensor:
    """Classifier-free guidance on raw logits (spec section 4.6): ``scale * cond + (1 - scale) * uncond``.

    Args:
        logits: ``[2 * n, ...]``, the conditional branch first.
        scale: guidance scale; 1 gives the conditional logits.

    Returns:
        ``[n, ...]``.
    """
    conditional, unconditional = logits.chunk(2)
    return scale * conditional + (1.0 - scale) * unconditional


def draw(logits: torch.Tensor, uniforms: torch.Tensor, *, temperature: float, top_k: int) -> torch.Tensor:
    """Draw one candidate for each row and stream.

    Args:
        logits: float32 ``[n, D, C]``, forbidden candidates at -inf, at least one allowed.
        uniforms: float64 ``[n, D]`` in (0, 1], on the CPU; one number decides one draw, by inversion of the
            distribution function.
        temperature: 0 takes the most probable candidate.
        top_k: candidates kept; 0 keeps all.

    Returns:
        int64 ``[n, D]``, positions in the last axis.
    """
    if temperature == 0 or top_k == 1:
        return logits.argmax(dim=-1)
    kept, places = logits.topk(min(top_k, logits.shape[-1]) if top_k else logits.shape[-1], dim=-1)
    # float64: the running sum over 150k text ids loses whole candidates in float32; on the CPU, because MPS has none
    running = ((kept - kept[..., :1]) / temperature).cpu().double().exp().cumsum(dim=-1)
    # the first place whose running sum reaches u * total; u > 0, so a candidate of probability 0 is never it
    chosen = (running < uniforms[..., None] * running[..., -1:]).sum(dim=-1)
    return places.gather(-1, chosen[..., None].to(places.device))[..., 0]


class Noise:
    """Random numbers of one segment: those of a conversation depend on its seed, the segment and the row only.

    They are drawn on the CPU, so an answer does not change with the device's generator.
    """

    def __init__(self, seeds: Sequence[int], segment: int, num_draws: int) -> None:
        """Prepare.

        Args:
            seeds: one per conversation, not negative.
            segment: number of the segment in its answer.
            num_draws: draws per row.
        """
        self._generators = [np.random.Generator(np.random.Philox(np.random.SeedSequence([s, segment]))) for s in seeds]
        self._num_draws = num_draws
        self._block = torch.empty(0)

    def row(self, row: int) -> torch.Tensor:
        """Numbers of a row, float64 ``[n, D]`` in (0, 1]; rows are asked for in order, from 0."""
        if row % _BLOCK == 0:
            block = np.stack([1.0 - generator.random((_BLOCK, self._num_draws)) for generator in self._generators])
            self._block = torch.from_numpy(block)
        return self._block[:, row % _BLOCK]

    def select(self, keep: torch.Tensor) -> None:
        """Keep some conversations: int64 ``[m]`` positions."""
        self._generators = [self._generators[index] for index in keep.tolist()]
        self._block = self._block[keep.cpu()]
