"""Cross-entropy of a linear layer's outputs that never holds all logits at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint


def linear_cross_entropy(
    hidden: torch.Tensor, rows: Sequence[torch.Tensor], targets: torch.Tensor, chunk: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Negative log-likelihood of ``targets`` under ``softmax(hidden @ cat(rows).T)``.

    Args:
        hidden: ``[N, H]``.
        rows: blocks ``[V_i, H]`` of the output matrix, in the order of the ids; never concatenated.
        targets: int64 ``[N]``, ids over all blocks.
        chunk: rows whose logits exist at a time, recomputed in the backward pass; 0 keeps all of them.

    Returns:
        float32 nll ``[N]``, log-partition ``[N]``, and bool ``[N]``: the target has the largest logit.
    """
    if not chunk or len(hidden) <= chunk:
        return _chunk_nll(hidden, targets, *rows)
    parts = [
        checkpoint(
            _chunk_nll, hidden[start : start + chunk], targets[start : start + chunk], *rows, use_reentrant=False
        )
        for start in range(0, len(hidden), chunk)
    ]
    nll, partition, correct = zip(*parts, strict=True)
    return torch.cat(nll), torch.cat(partition), torch.cat(correct)


def _chunk_nll(
    hidden: torch.Tensor, targets: torch.Tensor, *rows: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    logits = torch.cat([F.linear(hidden, block) for block in rows], dim=-1).float()
    partition = torch.logsumexp(logits, dim=-1)
    chosen = logits.gather(-1, targets[:, None])[:, 0]
    with torch.no_grad():
        correct = logits.argmax(-1) == targets
    return partition - chosen, partition, correct
