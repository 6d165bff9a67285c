"""What a person sees while a model trains: one live line in a terminal, a plain line per row elsewhere."""

from __future__ import annotations

import time
from typing import Any

from lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from bagpiper.batch import Batch
from bagpiper.callbacks.metrics import Row

_SPEEDS = (("speed/text_tokens", "tok/s"), ("speed/audio_frames", "frames/s"), ("speed/audio_seconds", "s audio/s"))


def describe(row: Row) -> str:
    """A row in words: loss, loss of text and of every codebook, speeds."""
    values = row.values
    parts = [f"loss {values['loss']:.3f}"] if "loss" in values else []
    if "loss/text" in values:
        parts.append(f"text {values['loss/text']:.3f}")
    codebooks = [values[name] for name in sorted(values, key=_natural) if name.startswith("loss/codebook")]
    if codebooks:
        parts.append("audio " + " ".join(f"{value:.2f}" for value in codebooks))
    speeds = [f"{_short(values[name])} {unit}" for name, unit in _SPEEDS if name in values]
    return "  ".join([*parts, *speeds])


class ProgressReport(Callback):
    """A sink for rows and a bar over steps.

    Attributes:
        console: where it is shown.
    """

    def __init__(self, console: Console, max_steps: int, accumulate: int) -> None:
        self.console = console
        self._max_steps = max_steps
        self._accumulate = accumulate
        self._first_step = 0
        self._started = 0.0
        self._bar: Progress | None = None
        self._task: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the bar."""
        self._first_step, self._started = trainer.global_step, time.monotonic()
        if self.console.is_terminal:
            self._bar = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[row]}"),
                TimeElapsedColumn(),
                _Remaining(self._first_step),
                console=self.console,
            )
            self._task = self._bar.add_task("train", total=self._max_steps, completed=trainer.global_step, row="")
            self._bar.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Move the bar."""
        if self._bar is not None and (batch_idx + 1) % self._accumulate == 0:
            self._bar.update(self._task, completed=trainer.global_step)

    def write(self, row: Row) -> None:
        """Show a row of losses."""
        text = describe(row)
        if self._bar is not None and row.split == "train":
            self._bar.update(self._task, row=text)
        elif row.split == "train":
            eta = _clock_time(self._remaining(row.step))
            self.console.print(f"step {row.step}/{self._max_steps}  {text}  ETA {eta}", highlight=False, soft_wrap=True)
        elif row.split == "valid":
            self.console.print(f"step {row.step}  {row.split}: {text}", highlight=False, soft_wrap=True)

    def flush(self) -> None:
        """Nothing to keep."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the bar as it is."""
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the bar as it is, so that the message stands below it."""
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _remaining(self, step: int) -> float:
        """Seconds left, from the pace since the start, pauses included."""
        done = step - self._first_step
        return (time.monotonic() - self._started) / done * (self._max_steps - step) if done else 0.0


class _Remaining(ProgressColumn):
    """ETA from the mean pace of this process; steps of the run that was resumed do not count."""

    def __init__(self, first_step: int) -> None:
        super().__init__()
        self._first_step = first_step

    def render(self, task: Task) -> Text:
        done = task.completed - self._first_step
        if not done or task.elapsed is None or task.total is None:
            return Text("ETA -:--")
        return Text(f"ETA {_clock_time(task.elapsed / done * (task.total - task.completed))}")


def _clock_time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _short(value: float) -> str:
    return f"{value / 1000:.1f}k" if value >= 1000 else f"{value:.0f}"


def _natural(name: str) -> tuple[int, str]:
    digits = "".join(filter(str.isdigit, name))
    return (int(digits) if digits else -1, name)
