"""Muon for the matrices of the layers, AdamW for everything else, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import AdamW, Muon, Optimizer


class MuonWithAdamW(Optimizer):
    """PyTorch's ``Muon`` and ``AdamW`` behind one face, since Lightning's automatic optimization steps one optimizer.

    Muon (https://kellerjordan.github.io/posts/muon, arXiv:2502.16982) replaces a matrix's momentum by the nearest
    orthogonal matrix. Both halves work on the groups and the state of this object, so schedules, checkpoints and
    resume need to know nothing about them.
    """

    def __init__(self, matrices: dict[str, Any], others: list[dict[str, Any]], *, fused: bool) -> None:
        """Build.

        Args:
            matrices: the group (``params``, ``lr``, ``weight_decay``) that Muon trains; all 2-D.
            others: the groups that AdamW trains, with its ``betas`` and ``eps``.
            fused: whether AdamW has a fused kernel here.
        """
        groups = [matrices, *others]
        super().__init__(groups, {})
        # the halves keep the very dicts of these groups and add the settings they lack
        self._muon = Muon([self.param_groups[0]])
        self._adamw = AdamW(self.param_groups[1:], fused=fused)
        self._share()

    def _share(self) -> None:
        self._muon.param_groups, self._adamw.param_groups = self.param_groups[:1], self.param_groups[1:]
        self._muon.state = self._adamw.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See ``torch.optim.Optimizer``; the base class puts new groups and state in place."""
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step of both halves."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._muon.step()
        self._adamw.step()
        return loss
