"""Checkpoints at the end of optimizer steps, and stopping on a signal."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning import LightningModule, Trainer

from bagpiper.callbacks.clock import Clock
from bagpiper.callbacks.step import StepCallback
from bagpiper.errors import UserError
from bagpiper.files import replacing_folder
from bagpiper.ops.shards import whole_state
from bagpiper.training.checkpoints import checkpoint_at, prune
from bagpiper.training.run_folder import disk_errors

SIGNALS = (signal.SIGTERM, signal.SIGINT)


SaveModel = Callable[[LightningModule, Path, Mapping[str, torch.Tensor]], None]
"""Writes the weights of a module, given as a state dict of whole tensors, to a folder."""


class Stopped(Exception):  # noqa: N818 (not an error)
    """A signal asked the run to stop; its checkpoint is written.

    Attributes:
        signum: which signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


class Checkpoints(StepCallback):
    """Writes ``checkpoints/step-N`` when everything else about step N (record, validation, listening) is done.

    Only ends of optimizer steps are saved: inside an accumulation window the gradients so far would be lost. A signal
    (SIGTERM, Ctrl-C) lets the step finish, is followed by a checkpoint and raises ``Stopped``; a second one is taken by
    whoever handled it before, so a second Ctrl-C interrupts at once.

    Attributes:
        every: steps between two checkpoints; 0 writes only the last.
    """

    def __init__(
        self,
        run_dir: Path,
        save_model: SaveModel,
        recipe: str,
        *,
        every: int,
        keep: int,
        validate_every: int,
        clock: Clock,
        before: Sequence[Callable[[], None]] = (),
    ) -> None:
        """Set up.

        Args:
            run_dir: the run.
            save_model: writes the module's weights, given as a state dict, to a folder.
            recipe: the recipe of the run as YAML, which a resumed run is compared with.
            every: steps between two checkpoints.
            keep: newest checkpoints kept.
            validate_every: steps between two validations; a checkpoint of such a step waits for the validation.
            clock: stands still while a checkpoint is written.
            before: called before a checkpoint is written: logs make themselves durable here, and whoever has lost the
                run folder to another process says so.
        """
        self.run_dir = run_dir
        self.every = every
        self._save_model = save_model
        self._recipe = recipe
        self._keep = keep
        self._validate_every = validate_every
        self._clock = clock
        self._before = before
        self._signum: int | None = None
        self._former: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen for signals (after Lightning has set its own handlers)."""
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            for signum in SIGNALS:
                self._former[signum] = signal.signal(signum, self._on_signal)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self._signum = signum
        signal.signal(signum, self._former[signum])

    def on_step_end(self, trainer: Trainer, module: LightningModule, step: int) -> None:
        """Save now, unless a validation of this step comes first."""
        if not (self._validate_every and step % self._validate_every == 0):
            self._end_step(trainer, module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after the validation of a step."""
        self._end_step(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signals back."""
        self._give_back()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self._give_back()

    def _give_back(self) -> None:
        for signum, handler in self._former.items():
            signal.signal(signum, handler)
        self._former = {}

    def _end_step(self, trainer: Trainer, module: LightningModule) -> None:
        signum = self._agree(trainer)
        step = trainer.global_step
        if signum or step == trainer.max_steps or (self.every and step % self.every == 0):
            with self._clock.paused():
                self.save(trainer, module)
        if signum:
            raise Stopped(signum)

    def _agree(self, trainer: Trainer) -> int:
        """The signal that any rank has received, or 0."""
        if trainer.world_size == 1:
            return self._signum or 0
        flag = torch.tensor(self._signum or 0, device=trainer.strategy.root_device)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        return int(flag.item())

    def save(self, trainer: Trainer, module: LightningModule) -> None:
        """Write the checkpoint of this step, then remove the oldest.

        Raises:
            UserError: the disk is full, or the folder is gone or another process's; older checkpoints are untouched.
        """
        for make_durable in self._before:
            make_durable()
        checkpoint = checkpoint_at(self.run_dir, trainer.global_step)
        if trainer.strategy.broadcast(checkpoint.state.is_file()):
            return  # resumed from it and stopped again before the next step
        state = whole_state(module)
        if not trainer.is_global_zero:
            trainer.save_checkpoint(checkpoint.state)  # takes part; rank 0 says where to
            self._hear_of_main(trainer)
            return
        failure: Exception | None = None
        try:
            with disk_errors(self.run_dir), replacing_folder(checkpoint.folder) as folder:
                trainer.save_checkpoint(folder / "resume" / checkpoint.state.name)
                (folder / "resume" / checkpoint.recipe.name).write_text(self._recipe, encoding="utf-8")
                self._save_model(module, folder / "model", state)
        except Exception as error:
            failure = error
            raise
        finally:
            trainer.strategy.broadcast(None if failure is None else str(failure))
        prune(self.run_dir, self._keep)

    def _hear_of_main(self, trainer: Trainer) -> None:
        """Wait until rank 0 has written the rest.

        Raises:
            UserError: it could not; this rank would wait for it for ever.
        """
        failure = trainer.strategy.broadcast(None)
        if failure is not None:
            raise UserError(failure)
