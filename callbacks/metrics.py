"""Rows of metrics: every ``log_every`` steps and per validation, each written once however often a run resumes."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning import Callback, LightningModule, Trainer

from bagpiper.batch import Batch
from bagpiper.callbacks.clock import Clock
from bagpiper.meter import Meter


@dataclass(frozen=True)
class Row:
    """Metrics of one step.

    Attributes:
        step: optimizer steps taken.
        split: ``train`` or ``valid``.
        values: name without the split -> value.
    """

    step: int
    split: str
    values: dict[str, float]


class Sink(Protocol):
    """Where rows go."""

    def write(self, row: Row) -> None:
        """Take a row."""

    def flush(self) -> None:
        """Make the rows so far survive a crash."""


class JsonLines:
    """``metrics.jsonl``: one JSON object a row.

    A run that resumes from an older checkpoint computes some rows again; those that the file has are not written twice.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last: dict[str, int] = {}
        if path.exists():
            self._read()

    def _read(self) -> None:
        kept = 0
        with open(self.path, "rb") as handle:
            for line in handle:
                if not line.endswith(b"\n"):
                    break  # the process was killed while it wrote this line
                row = json.loads(line)
                self._last[row["split"]] = max(row["step"], self._last.get(row["split"], -1))
                kept += len(line)
        os.truncate(self.path, kept)

    def write(self, row: Row) -> None:
        """Append a row, unless the file has it."""
        if row.step <= self._last.get(row.split, -1):
            return
        self._last[row.split] = row.step
        record = {"step": row.step, "split": row.split, **{k: _rounded(v) for k, v in row.values.items()}}
        with open(self.path, "a", encoding="utf-8") as handle:
            handle.write(json.dumps(record) + "\n")

    def flush(self) -> None:
        """Sync the file."""
        if self.path.exists():
            with open(self.path, "rb") as handle:
                os.fsync(handle.fileno())


class MetricsLog(Callback):
    """Collects metrics and hands rows to sinks.

    Nothing waits for the device but once per row. Sums that no row has taken yet are part of the checkpoint, so a
    resumed run writes the rows of the uninterrupted one.

    Attributes:
        sinks: where rows go.
        log_every: steps between two rows.
        accumulate: micro-batches per step.
        clock: stands still while anything but training happens.
    """

    def __init__(self, sinks: Sequence[Sink], log_every: int, accumulate: int, clock: Clock) -> None:
        self.sinks = list(sinks)
        self.log_every = log_every
        self.accumulate = accumulate
        self.clock = clock
        self._valid = Meter()
        self._counts = {"steps": 0.0, "text": 0.0, "frames": 0.0, "audio": 0.0, "rows": 0.0, "busy": 0.0}
        self._learning_rate = 0.0
        self._restored: dict[str, torch.Tensor] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock; take up the sums of the run that is resumed."""
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
        """Count; at the end of every ``log_every``-th step write a row."""
        counts = self._counts
        counts["text"] += batch.num_text
        counts["frames"] += batch.num_frames
        counts["audio"] += batch.seconds
        counts["rows"] += len(batch)
        counts["busy"] += self.clock.lap()
        if (batch_idx + 1) % self.accumulate:
            return
        counts["steps"] += 1
        if trainer.global_step % self.log_every == 0 or trainer.global_step == trainer.max_steps:
            self.write(Row(trainer.global_step, "train", self._train_values(pl_module)))

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
        """Write the row of this validation."""
        self.write(Row(trainer.global_step, "valid", self._valid.take()))
        self.clock.go_on()

    def flush(self) -> None:
        """Make every row so far survive a crash."""
        for sink in self.sinks:
            sink.flush()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep what no row has taken yet."""
        checkpoint["metrics"] = {"counts": dict(self._counts), "sums": _meter(pl_module).state_dict()}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take it up again."""
        self._counts = dict(checkpoint["metrics"]["counts"])
        self._restored = {name: pair.to(pl_module.device) for name, pair in checkpoint["metrics"]["sums"].items()}

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

    def write(self, row: Row) -> None:
        """Hand a row to every sink."""
        for sink in self.sinks:
            sink.write(row)


def _meter(module: LightningModule) -> Meter:
    meter = module.meter
    assert isinstance(meter, Meter)
    return meter


def _rounded(value: float) -> float:
    return float(f"{value:.7g}")
