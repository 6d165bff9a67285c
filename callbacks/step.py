"""The one place that knows where an optimizer step ends."""

from __future__ import annotations

from typing import Any

from lightning import Callback, LightningModule, Trainer

from bagpiper.batch import Batch


class StepCallback(Callback):
    """Acts at the end of every optimizer step; callbacks of a step act in the order of the Trainer's list."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Call ``on_step_end`` after the last micro-batch of a step."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.on_step_end(trainer, pl_module, trainer.global_step)

    def on_step_end(self, trainer: Trainer, module: LightningModule, step: int) -> None:
        """Act.

        Args:
            trainer: the trainer.
            module: the model.
            step: optimizer steps taken, this one included.
        """
        raise NotImplementedError
