"""Where inference runs."""

from __future__ import annotations

import torch

from bagpiper.errors import UserError, shown


def choose_device(name: str) -> torch.device:
    """The device called ``name``; ``auto`` is the first of cuda, mps, cpu that is there.

    Raises:
        UserError: it is not there.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in present.items() if there))
    if not present.get(name.split(":")[0], False):
        here = ", ".join(kind for kind, there in present.items() if there)
        raise UserError(f"device {shown(name)} is not here; present: auto, {here}")
    return torch.device(name)
