"""A run that has lost its folder to another process writes nothing more there."""

from __future__ import annotations

from collections.abc import Callable

from lightning import LightningModule, Trainer

from bagpiper.callbacks.step import StepCallback


class StillOurs(StepCallback):
    """Looks at the end of every step, before anything of it is written, whether the folder is still this process's."""

    def __init__(self, check: Callable[[], None]) -> None:
        """Args: check: raises a UserError when it is not."""
        self._check = check

    def on_step_end(self, trainer: Trainer, module: LightningModule, step: int) -> None:
        """Look."""
        self._check()
