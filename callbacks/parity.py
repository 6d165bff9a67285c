"""The parity check at the end of training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from lightning import Callback, LightningModule, Trainer
from rich.console import Console

from bagpiper.console import say
from bagpiper.data.examples import Example
from bagpiper.errors import UserError
from bagpiper.ops.shards import is_sharded
from bagpiper.parity.compare import check_parity, choose_examples, write_report
from bagpiper.parity.report import ParityReport
from bagpiper.recipe.settings import Recipe


class ParityCheck(Callback):
    """Compares training, decoding and the exported model once, when training ends.

    What keeps it from comparing (memory, the disk, a clip that has gone) is told and does not stop the run: its
    checkpoint is written.

    Attributes:
        report: the outcome; None until training has ended, or if nothing could be compared.
    """

    def __init__(
        self,
        run_dir: Path,
        recipe: Recipe,
        valid: Sequence[Example],
        train: Sequence[Example],
        console: Console,
    ) -> None:
        """Set up.

        Args:
            run_dir: gets ``parity.json``.
            recipe: of the run.
            valid, train: examples.
            console: where the outcome is told.
        """
        self.run_dir = run_dir
        self.report: ParityReport | None = None
        self._recipe = recipe
        self._valid, self._train = valid, train
        self._console = console

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare, on the first rank."""
        if not trainer.is_global_zero:
            return
        command = f"`bagpiper parity {self.run_dir}` compares on one device"
        if is_sharded(pl_module):
            say(self._console, f"parity: not compared, the model is spread over devices; {command}")
            return
        layout = cast(Any, trainer).datamodule.layout
        try:
            report = check_parity(
                cast(Any, pl_module),
                layout,
                choose_examples(layout, self._valid, self._train),
                generation=self._recipe.sampling,
                lora=self._recipe.stage.lora,
                precision=self._recipe.trainer.precision,
                workspace=self.run_dir / ".tmp-parity",
            )
            write_report(report, self.run_dir)
        except (UserError, OSError, torch.OutOfMemoryError) as error:
            say(self._console, f"parity: not compared ({error}); {command}")
            return
        self.report = report
        if report.passed:
            say(self._console, report.summary())
        else:
            self._console.print(report.table())
