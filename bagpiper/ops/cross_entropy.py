"""Cross-entropy of a linear layer's outputs that never holds all logits at once.

Both gradients are computed while the logits of a few rows are in the cache, in the forward pass: nothing is recomputed,
and the backward pass only scales them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

LOGITS_BYTES = {"cpu": 80 << 20}
"""What the logits that exist at once may take, by the type of the device. On CPUs 128 rows of 160,392 ids are fastest:
the gradients then meet them in the cache."""
LOGITS_BYTES_ELSEWHERE = 512 << 20


class TargetLoss(NamedTuple):
    """What a loss over targets gives.

    Attributes:
        total: weighted sum of the negative log-likelihoods, and the z-term (scalar); the only one with a gradient.
        nll: ``[N]``, not weighted.
        correct: bool ``[N]``, whether the target has the largest logit.
    """

    total: torch.Tensor
    nll: torch.Tensor
    correct: torch.Tensor


def linear_cross_entropy(
    hidden: torch.Tensor,
    blocks: Sequence[torch.Tensor],
    targets: torch.Tensor,
    weights: torch.Tensor,
    *,
    z_loss: float = 0.0,
    chunk: int | None = None,
) -> TargetLoss:
    """Negative log-likelihood of ``targets`` under ``softmax(hidden @ cat(blocks).T)``.

    Products are computed in autocast's dtype where it is on; logits, softmax and sums in float32 at least. The backward
    pass can be run once.

    Args:
        hidden: ``[N, H]``.
        blocks: ``[V_i, H]`` of the output matrix, in the order of the ids; never concatenated. Those that need no
            gradient cost none.
        targets: int64 ``[N]``, ids over all blocks.
        weights: ``[N]``, of each target in the sum.
        z_loss: weight of the squared log-partitions.
        chunk: rows whose logits exist at once; None takes as many as ``LOGITS_BYTES`` hold, 0 all.
    """
    if chunk is None:
        size = LOGITS_BYTES.get(hidden.device.type, LOGITS_BYTES_ELSEWHERE)
        chunk = max(16, size // (4 * sum(map(len, blocks))))
    learns = torch.is_grad_enabled()  # inside the function it is off
    return TargetLoss(
        *_LinearCrossEntropy.apply(hidden, targets, weights, z_loss, chunk or len(hidden), learns, *blocks)
    )


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        weights: torch.Tensor,
        z_loss: float,
        chunk: int,
        learns: bool,
        *blocks: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        needed = [learns and needs for needs in (ctx.needs_input_grad[0], *ctx.needs_input_grad[6:])]
        with torch.autocast(device, enabled=False):
            work = _Work(hidden.to(dtype), [block.to(dtype) for block in blocks], needed)
            parts = [
                work.chunk(slice(start, start + chunk), targets, weights.to(work.wide), z_loss)
                for start in range(0, len(hidden), max(1, chunk))
            ]
        ctx.set_materialize_grads(False)
        ctx.gradients = work.gradients((hidden, *blocks))
        total = hidden.new_zeros((), dtype=work.wide)
        if not parts:
            return total, total.new_zeros(0), targets.new_zeros(0, dtype=torch.bool)
        totals, nll, correct = zip(*parts, strict=True)
        outputs = torch.stack(totals).sum(), torch.cat(nll), torch.cat(correct)
        ctx.mark_non_differentiable(*outputs[1:])
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        made, ctx.gradients = ctx.gradients, None
        assert made is not None, "the gradients of this loss are used up: run its backward pass once"
        factor = gradients[0]
        if factor is None:
            return (None,) * (5 + len(made))
        # in place: a second gradient of the output matrix would double the memory
        hidden, *blocks = (gradient if gradient is None else gradient.mul_(factor) for gradient in made)
        return hidden, None, None, None, None, None, *blocks


class _Work:
    """The loss chunk by chunk, and the gradients of its sum so far.

    Attributes:
        wide: dtype of logits, softmax and sums.
    """

    def __init__(self, hidden: torch.Tensor, blocks: list[torch.Tensor], needed: Sequence[bool]) -> None:
        """Args: hidden, blocks: in the dtype of the products; needed: which of them need a gradient."""
        self.hidden, self.blocks = hidden, blocks
        self.wide = torch.promote_types(hidden.dtype, torch.float32)
        self.for_hidden, *self.for_blocks = (
            torch.zeros_like(tensor, dtype=self.wide) if needs else None
            for tensor, needs in zip((hidden, *blocks), needed, strict=True)
        )

    def chunk(
        self, rows: slice, targets: torch.Tensor, weights: torch.Tensor, z_loss: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Total, nll ``[n]`` and correctness ``[n]`` of some rows."""
        states, wanted, weight = self.hidden[rows], targets[rows, None], weights[rows]
        logits = states.new_empty((len(states), sum(map(len, self.blocks))), dtype=self.wide)
        places = logits.split([len(block) for block in self.blocks], dim=1)
        for place, block in zip(places, self.blocks, strict=True):
            place.copy_(states @ block.T)
        partition = torch.logsumexp(logits, dim=-1)
        nll = partition - logits.gather(-1, wanted)[:, 0]
        correct = logits.argmax(-1, keepdim=True) == wanted
        if self.for_hidden is not None or any(gradient is not None for gradient in self.for_blocks):
            # d total / d logits = (w + 2 z log-partition) softmax - w at the target
            logits.sub_(partition[:, None]).exp_().mul_((weight + 2.0 * z_loss * partition)[:, None])
            logits.scatter_add_(1, wanted, -weight[:, None])
            self._add_gradients(rows, states, places)
        return (weight * nll).sum() + z_loss * partition.square().sum(), nll, correct[:, 0]

    def _add_gradients(self, rows: slice, states: torch.Tensor, places: Sequence[torch.Tensor]) -> None:
        """Gradients ``places`` of the logits, ``[n, V_i]`` each, to those of states and blocks."""
        for number, (place, block) in enumerate(zip(places, self.blocks, strict=True)):
            gradient, own = place.to(states.dtype), self.for_blocks[number]
            if self.for_hidden is not None:
                _add_product(self.for_hidden[rows], gradient, block)
            if own is not None:
                _add_product(own, gradient.T, states)

    def gradients(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
        """Of hidden states and blocks, in their own dtypes."""
        made = (self.for_hidden, *self.for_blocks)
        return [own if own is None else own.to(tensor.dtype) for own, tensor in zip(made, inputs, strict=True)]


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """``total += left @ right``, the sum in the dtype of ``total``."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total.add_(left @ right)
