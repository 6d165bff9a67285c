"""A Lightning Logger over the run's sinks: what callbacks and ``self.log`` log arrives where all metrics do."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from bagpiper.tracking.records import Record, Sink


class SinkLogger(Logger):
    """Hands what Lightning logs to sinks, as records of the split ``log``."""

    def __init__(self, sinks: Sequence[Sink], folder: Path) -> None:
        """Args: sinks: of the run, none on ranks that write nothing; folder: of the run."""
        super().__init__()
        self._sinks = list(sinks)
        self._folder = folder

    @property
    def name(self) -> str:
        """Of the experiment, for Lightning; no folder is named after it."""
        return "bagpiper"

    @property
    def version(self) -> str:
        """Of the run, for Lightning."""
        return self._folder.name

    @property
    def save_dir(self) -> str:
        """Where callbacks that write files of their own may do so."""
        return str(self._folder)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write a record. Lightning's ``epoch`` is left out: the training stream is endless, it would always be 0."""
        values = {name: float(value) for name, value in metrics.items() if name != "epoch"}
        if values:
            for sink in self._sinks:
                sink.write(Record(step or 0, "log", values))

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run's recipe, which has every setting, is logged already."""
