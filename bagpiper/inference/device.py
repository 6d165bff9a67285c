"""Where inference runs."""

from __future__ import annotations

import torch

from bagpiper.errors import UserError


def choose_device(name: str) -> torch.device:
    """The device called ``name``; ``auto`` is the first of cuda, mps, cpu that is there.

    Raises:
        UserError: it is not there.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in present.items() if there))
    if not present.get(name.split(":")[0], False):
        raise UserError(f"device '{name}' is not here; present: auto, {', '.join(k for k, t in present.items() if t)}")
    return torch.device(name)
