"""Sums of metrics over the micro-batches, steps and ranks between two rows of a log."""

from __future__ import annotations

from collections.abc import Mapping

import torch


class Meter:
    """Adds up ``[sum, count]`` pairs on their device; nothing waits for the device until ``take``."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}

    def add(self, metrics: Mapping[str, torch.Tensor]) -> None:
        """Add pairs ``[2]``."""
        for name, pair in metrics.items():
            held = self._sums.get(name)
            self._sums[name] = pair.detach().clone() if held is None else held + pair.detach()

    def take(self) -> dict[str, float]:
        """Means since the last call, over all ranks; names without a count are left out."""
        if not self._sums:
            return {}
        names = sorted(self._sums)
        table = torch.stack([self._sums[name].float() for name in names])
        self._sums = {}
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(table)
        return {name: total / count for name, (total, count) in zip(names, table.tolist(), strict=True) if count}

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The pairs that nobody has taken yet, on the CPU; ``add`` puts them back."""
        return {name: pair.cpu() for name, pair in self._sums.items()}
