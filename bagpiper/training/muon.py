"""Muon for the matrices of the layers, AdamW for everything else, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import Any

import torch
from torch.optim import AdamW, Optimizer

from bagpiper.ops.precision import matmul_precision

_MOMENTUM = 0.95
# Newton-Schulz coefficients of the reference: five steps bring singular values to between 0.7 and 1.2.
_A, _B, _C, _STEPS = 3.4445, -4.7750, 2.0315, 5


class MuonWithAdamW(Optimizer):
    """Muon and ``torch.optim.AdamW`` behind one face, since Lightning's automatic optimization steps one optimizer.

    Muon (https://kellerjordan.github.io/posts/muon) replaces a matrix's momentum by the nearest orthogonal matrix. It
    gives what ``torch.optim.Muon`` gives (a test compares them), but matrices of one shape share their products: 43
    instead of 100 ms for the quickstart's 32 matrices, of a step of 400 ms.
    """

    def __init__(self, matrices: dict[str, Any], others: list[dict[str, Any]], *, fused: bool) -> None:
        """Build.

        Args:
            matrices: the group (``params``, ``lr``, ``weight_decay``) that Muon trains; all 2-D.
            others: the groups that AdamW trains, with its ``betas`` and ``eps``.
            fused: whether AdamW has a fused kernel here.
        """
        super().__init__([matrices, *others], {})
        assert all(matrix.ndim == 2 for matrix in matrices["params"]), "Muon trains matrices"
        # AdamW keeps the very dicts of these groups and adds the settings they lack
        self._adamw = AdamW(self.param_groups[1:], fused=fused)
        self._share()

    def _share(self) -> None:
        self._adamw.param_groups, self._adamw.state = self.param_groups[1:], self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See ``torch.optim.Optimizer``; the base class puts new groups and state in place."""
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both halves."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._step_matrices(self.param_groups[0])
        self._adamw.step()
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        matrices = sorted((p for p in group["params"] if p.grad is not None), key=lambda p: tuple(p.shape))
        for shape, chosen in groupby(matrices, key=lambda p: tuple(p.shape)):
            same = list(chosen)
            for matrix in same:
                if "momentum" not in self.state[matrix]:
                    self.state[matrix]["momentum"] = torch.zeros_like(matrix)
            momenta = [self.state[matrix]["momentum"] for matrix in same]
            gradients = [p.grad for p in same]
            torch._foreach_lerp_(momenta, gradients, 1.0 - _MOMENTUM)
            updates = orthogonalize(torch.stack(torch._foreach_lerp(gradients, momenta, _MOMENTUM)))
            rate = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
            torch._foreach_mul_(same, 1.0 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(same, list(updates.unbind()), alpha=-rate)


def orthogonalize(matrices: torch.Tensor) -> torch.Tensor:
    """Orthogonal matrices near those given, by Newton-Schulz iterations: ``[N, A, B]`` -> the same shape."""
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    wide = wide / wide.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    with matmul_precision("medium"):  # the iterations correct their own rounding; the reference runs in bfloat16
        for _ in range(_STEPS):
            square = wide @ wide.mT
            wide = torch.baddbmm(wide, torch.baddbmm(square, square, square, beta=_B, alpha=_C), wide, beta=_A)
    return wide if matrices.shape[1] <= matrices.shape[2] else wide.mT
