"""Frames of target audio hidden from the model's own input, fewer and fewer over the run."""

from __future__ import annotations

from typing import Any, cast

from lightning import Callback, LightningModule, Trainer

from bagpiper.training.optimizer import hidden_share


class FrameDropout(Callback):
    """Sets the share of hidden frames before every micro-batch.

    It falls from ``share`` to 0 over the plan of the run, so that what is learned last, such as how long a pause
    lasts, is learned on the input that decoding will see.
    """

    def __init__(self, share: float, end: int) -> None:
        """Set up.

        Args:
            share: ``data.frame_dropout``, at the first step.
            end: step from which on no frame is hidden (``training.optimizer.plan_end``).
        """
        self.share = share
        self.end = end

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set the share of this step."""
        cast(Any, pl_module).frame_dropout = hidden_share(trainer.global_step, self.share, self.end)
