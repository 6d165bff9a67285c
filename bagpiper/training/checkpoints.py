"""Checkpoint folders: written to a temporary name, synced, renamed; a crash at any instant leaves a loadable one.

``checkpoints/step-000123/model/`` holds the weights, ``.../resume/state.pt`` everything else that a resumed run needs
and ``.../resume/recipe.yaml`` the recipe that both come from.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from bagpiper import files
from bagpiper.errors import Diverged, UserError, reason
from bagpiper.pretrained import fault_of

STATE_VERSION = 1
OPTIMIZER = "optimizer"
"""Folder beside ``state.pt`` with the optimizer's state where it is spread over ranks, a file of each."""
_NAME = re.compile(r"step-(\d+)")
_DATA = "PackDataModule"
_PARTS = (_DATA, "loops", "global_step", "metrics")
"""Keys of a state, the data module's among them."""


@dataclass(frozen=True)
class Checkpoint:
    """One complete checkpoint.

    Attributes:
        step: optimizer steps taken.
        folder: ``.../checkpoints/step-000123``.
    """

    step: int
    folder: Path

    @property
    def model(self) -> Path:
        """The folder of weights."""
        return self.folder / "model"

    @property
    def state(self) -> Path:
        """The file of everything else: optimizer, schedule, loops, position in the data, open metrics."""
        return self.folder / "resume" / "state.pt"

    @property
    def recipe(self) -> Path:
        """The recipe that the run had when this was written; the first releases wrote none."""
        return self.folder / "resume" / "recipe.yaml"


def checkpoint_at(run_dir: Path, step: int) -> Checkpoint:
    """The checkpoint of a step, whether it exists or not."""
    return Checkpoint(step, run_dir / "checkpoints" / f"step-{step:06d}")


def list_checkpoints(run_dir: Path) -> list[Checkpoint]:
    """Complete checkpoints, oldest first. Folders that a crash left half written have other names."""
    found = []
    folder = run_dir / "checkpoints"
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _NAME.fullmatch(path.name)
        if match:
            found.append(Checkpoint(int(match[1]), path))
    return sorted((c for c in found if c.state.is_file() and c.model.is_dir()), key=lambda c: c.step)


def remove_leftovers(run_dir: Path) -> None:
    """Remove what a killed process left under temporary names."""
    for folder in (run_dir, run_dir / "checkpoints"):
        files.remove_leftovers(folder)


def prune(run_dir: Path, keep: int) -> None:
    """Remove all but the newest checkpoints.

    Args:
        run_dir: the run.
        keep: how many stay, at least 1.
    """
    for checkpoint in list_checkpoints(run_dir)[: -max(1, keep)]:
        files.remove_tree(checkpoint.folder)


def publish(checkpoint: Checkpoint, target: Path) -> None:
    """Make ``target`` the model of a checkpoint, by hard links where the file system has them."""
    with files.replacing_folder(target) as temporary:
        shutil.copytree(checkpoint.model, temporary, dirs_exist_ok=True, copy_function=files.link_or_copy)


def check_whole(checkpoint: Checkpoint, older: Sequence[Checkpoint]) -> None:
    """Look whether a checkpoint's state can be read; its weights are checked when they are.

    Args:
        checkpoint: the one to resume from.
        older: complete ones before it, for the way out.

    Raises:
        UserError: it is damaged.
    """
    path, fault, cause = checkpoint.state, None, None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch, zipfile and pickle have each their own for a damaged file
        fault, cause = fault_of(path) or f"cannot be read, it is damaged or cut off ({reason(error)})", error
    else:
        if not isinstance(state, dict) or not set(_PARTS) <= set(state):
            fault = f"is no state of a run: it lacks {', '.join(_PARTS)}"
        elif "optimizer_states" not in state and not (path.parent / OPTIMIZER / ".metadata").is_file():
            fault = f"has no optimizer's state, nor has {OPTIMIZER}/ beside it"
    if fault is not None:
        other = f"remove {checkpoint.folder} to resume from {older[-1].folder.name}" if older else _anew(checkpoint)
        raise UserError(f"{path} {fault}; put it back, or {other}") from cause


def _anew(checkpoint: Checkpoint) -> str:
    return f"start a new run with its weights (start_from={checkpoint.model}) in another run_dir"


def data_state(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a checkpoint knows of the data and the place in them."""
    return dict(torch.load(checkpoint.state, map_location="cpu", weights_only=True, mmap=True)[_DATA])


@contextmanager
def way_back(run_dir: Path) -> Iterator[None]:
    """Add to the message of a run that diverges what is left of it, and what to do.

    Raises:
        Diverged: with the addition.
    """
    try:
        yield
    except Diverged as error:
        complete = list_checkpoints(run_dir)
        kept, start = "no checkpoint was written before (trainer.checkpoint_every)", ""
        if complete:
            kept = f"the checkpoint of step {complete[-1].step} is from before"
            start = f" that may begin there (start_from={complete[-1].model})"
        raise Diverged(
            f"{error}; {kept}. If these examples are damaged, take them out; if not, start a run{start} with a lower "
            "optimizer.lr"
        ) from error


class StateFile(TorchCheckpointIO):
    """How Lightning's checkpoint becomes ``resume/state.pt``: without weights, which ``model/`` has already.

    Lightning's own writer builds the whole checkpoint in memory first (twice the optimizer's size) and reads pickles;
    this one streams to the file and loads with ``weights_only``.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write everything but the weights."""
        state = {name: value for name, value in checkpoint.items() if name != "state_dict"}
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        torch.save({**state, "bagpiper_state_version": STATE_VERSION}, path)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read it; the empty ``state_dict`` is for Lightning, which insists on one."""
        state = read_state(path)
        sharded = Path(path).parent / OPTIMIZER
        if "optimizer_states" not in state and sharded.is_dir():
            state["optimizer_states"] = [by_number(_whole(sharded))]
        return {**state, "state_dict": {}}


def read_state(path: Path) -> dict[str, Any]:
    """What stands in a ``state.pt``.

    Raises:
        UserError: written by another version of the format.
    """
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    if state.get("bagpiper_state_version") != STATE_VERSION:
        raise UserError(
            f"{path} has version {state.get('bagpiper_state_version')} of the resume format, this bagpiper reads "
            f"{STATE_VERSION}; finish the run with the release that began it"
        )
    return state


def by_number(state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state by names of parameters, as by their numbers in the order of its groups."""
    names = [name for group in state["param_groups"] for name in group["params"]]
    numbers = {name: number for number, name in enumerate(names)}
    groups = [{**group, "params": [numbers[name] for name in group["params"]]} for group in state["param_groups"]]
    return {"state": {numbers[name]: own for name, own in state["state"].items()}, "param_groups": groups}


def _whole(sharded: Path) -> Any:
    """What is in a folder of shards, put together; for a moment it is on the disk a second time."""
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    with tempfile.TemporaryDirectory(prefix=files.TEMPORARY, dir=sharded.parents[2]) as folder:
        dcp_to_torch_save(sharded, Path(folder, "whole.pt"))
        return torch.load(Path(folder, "whole.pt"), weights_only=True)
