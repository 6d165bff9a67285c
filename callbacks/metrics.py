"""Records of metrics: every ``log_every`` steps and per validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning import LightningModule, Trainer

from bagpiper.batch import Batch
from bagpiper.callbacks.clock import Clock
from bagpiper.callbacks.step import StepCallback
from bagpiper.errors import UserError
from bagpiper.meter import Meter
from bagpiper.tracking.records import Record, Sink


class MetricsLog(StepCallback):
    """Collects metrics and hands records to sinks.

    Nothing waits for the device but once per record. Sums that no record has taken yet are part of the checkpoint, so a
    resumed run writes the records of the uninterrupted one.

    Attributes:
        sinks: where records go.
        log_every: steps between two records.
        clock: stands still while anything but training happens.
        counts: of the data; a record of them is written at the start and whenever they have changed.
    """

    def __init__(
        self, sinks: Sequence[Sink], log_every: int, clock: Clock, counts: Callable[[], dict[str, float]] = dict
    ) -> None:
        self.sinks = list(sinks)
        self.log_every = log_every
        self.clock = clock
        self.counts = counts
        self._written: dict[str, float] = {}
        self._valid = Meter()
        self._counts = {"steps": 0.0, "text": 0.0, "frames": 0.0, "audio": 0.0, "rows": 0.0, "busy": 0.0}
        self._learning_rate = 0.0
        self._restored: dict[str, torch.Tensor] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock; take up the sums of the run that is resumed, whose counts of the data are written."""
        if trainer.global_step:
            self._written = self.counts()
        self._write_counts(trainer.global_step)
        self.clock.lap()
        _meter(pl_module).add(self._restored)
        self._restored = {}

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Note the learning rate that this step uses; afterwards the schedule has moved on."""
        self._learning_rate = float(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count."""
        counts = self._counts
        counts["text"] += batch.num_text
        counts["frames"] += batch.num_frames
        counts["audio"] += batch.seconds
        counts["rows"] += len(batch)
        counts["busy"] += self.clock.lap()
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_step_end(self, trainer: Trainer, module: LightningModule, step: int) -> None:
        """Write a record at the end of every ``log_every``-th step."""
        self._counts["steps"] += 1
        if step % self.log_every == 0 or step == trainer.max_steps:
            self.write(Record(step, "train", self._train_values(module)))
            if step < trainer.max_steps:  # the last step may have a validation, which loses examples too
                self._write_counts(step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the counts of the data that the run ends with."""
        self._write_counts(trainer.global_step)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write the counts of the data that the run stops with, unless its folder cannot be written to or was lost."""
        if not isinstance(exception, UserError):
            self._write_counts(trainer.global_step)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self.clock.pause()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add the metrics of a pack."""
        self._valid.add(outputs)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the record of this validation."""
        self.write(Record(trainer.global_step, "valid", self._valid.take()))
        self.clock.go_on()

    def flush(self) -> None:
        """Make every record so far survive a crash."""
        for sink in self.sinks:
            sink.flush()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep what no record has taken yet."""
        checkpoint["metrics"] = {"counts": dict(self._counts), "sums": _meter(pl_module).state_dict()}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take it up again."""
        self._counts = dict(checkpoint["metrics"]["counts"])
        self._restored = {name: pair.to(pl_module.device) for name, pair in checkpoint["metrics"]["sums"].items()}

    def _write_counts(self, step: int) -> None:
        counts = self.counts()
        if counts != self._written:
            self.write(Record(step, "data", counts))
            self._written = counts

    def _train_values(self, module: LightningModule) -> dict[str, float]:
        counts, values = self._over_ranks(module), _meter(module).take()
        values["learning_rate"] = self._learning_rate
        values["speed/text_tokens"] = counts["text"] / counts["busy"]
        values["speed/audio_frames"] = counts["frames"] / counts["busy"]
        values["speed/rows"] = counts["rows"] / counts["busy"]
        values["speed/audio_seconds"] = counts["audio"] / counts["busy"]
        values["speed/seconds_per_step"] = counts["busy"] / counts["steps"]
        self._counts = dict.fromkeys(counts, 0.0)
        return values

    def _over_ranks(self, module: LightningModule) -> dict[str, float]:
        """The counts, summed over ranks; steps and seconds are this rank's."""
        if module.trainer.world_size == 1:
            return self._counts
        names = ("text", "frames", "audio", "rows")
        table = torch.tensor([self._counts[name] for name in names], dtype=torch.float64, device=module.device)
        torch.distributed.all_reduce(table)
        return {**self._counts, **dict(zip(names, table.tolist(), strict=True))}

    def write(self, record: Record) -> None:
        """Hand a record to every sink."""
        for sink in self.sinks:
            sink.write(record)


def _meter(module: LightningModule) -> Meter:
    meter = module.meter
    assert isinstance(meter, Meter)
    return meter
