"""What a person sees while a model trains: one live line in a terminal, a plain line per record elsewhere."""

from __future__ import annotations

import time
from typing import Any

from lightning import LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from bagpiper.callbacks.step import StepCallback
from bagpiper.console import say
from bagpiper.tracking.records import Record

_SPEEDS = (("speed/text_tokens", "tok/s"), ("speed/audio_frames", "frames/s"), ("speed/audio_seconds", "s audio/s"))


def describe(record: Record) -> str:
    """A record in words: loss, loss of text and of every codebook, speeds."""
    values = record.values
    parts = [f"loss {values['loss']:.3f}"] if "loss" in values else []
    if "loss/text" in values:
        parts.append(f"text {values['loss/text']:.3f}")
    codebooks = [values[name] for name in sorted(values, key=_natural) if name.startswith("loss/codebook")]
    if codebooks:
        parts.append("audio " + " ".join(f"{value:.2f}" for value in codebooks))
    speeds = [f"{_short(values[name])} {unit}" for name, unit in _SPEEDS if name in values]
    return "  ".join([*parts, *speeds])


class ProgressReport(StepCallback):
    """A sink for records and a bar over steps.

    Attributes:
        console: where it is shown.
    """

    def __init__(self, console: Console, max_steps: int) -> None:
        self.console = console
        self._max_steps = max_steps
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
                TextColumn("{task.fields[losses]}"),
                TimeElapsedColumn(),
                _Remaining(self._first_step),
                console=self.console,
            )
            self._task = self._bar.add_task("train", total=self._max_steps, completed=trainer.global_step, losses="")
            self._bar.start()

    def on_step_end(self, trainer: Trainer, module: LightningModule, step: int) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def write(self, record: Record) -> None:
        """Show a record of losses."""
        text = describe(record)
        if self._bar is not None and record.split == "train":
            self._bar.update(self._task, losses=text)
        elif record.split == "train":
            eta = _clock_time(self._remaining(record.step))
            say(self.console, f"step {record.step}/{self._max_steps}  {text}  ETA {eta}")
        elif record.split == "valid":
            say(self.console, f"step {record.step}  {record.split}: {text}")

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
