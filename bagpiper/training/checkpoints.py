"""Checkpoint folders: written to a temporary name, synced, renamed; a crash at any instant leaves a loadable one.

``checkpoints/step-000123/model/`` holds the weights, ``.../resume/state.pt`` everything else that a resumed run needs.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

STATE_VERSION = 1
_NAME = re.compile(r"step-(\d+)")


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


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A new folder under a temporary name, which becomes ``target`` when the block ends well and is removed otherwise.

    Everything in it is synced before the rename. An old ``target`` is moved aside first and removed last.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".tmp-{target.name}-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        sync_tree(temporary)
        remove_tree(target)
        os.rename(temporary, target)
        sync_folder(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove_tree(folder: Path) -> None:
    """Remove a folder so that no half of it is ever seen under its name."""
    if not folder.exists():
        return
    aside = folder.parent / f".tmp-old-{folder.name}-{os.getpid()}"
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(folder, aside)
    shutil.rmtree(aside, ignore_errors=True)


def remove_leftovers(run_dir: Path) -> None:
    """Remove what a killed process left under temporary names."""
    for folder in (run_dir, run_dir / "checkpoints"):
        for path in folder.glob(".tmp-*"):
            shutil.rmtree(path, ignore_errors=True)


def prune(run_dir: Path, keep: int) -> None:
    """Remove all but the newest checkpoints.

    Args:
        run_dir: the run.
        keep: how many stay, at least 1.
    """
    for checkpoint in list_checkpoints(run_dir)[: -max(1, keep)]:
        remove_tree(checkpoint.folder)


def publish(checkpoint: Checkpoint, target: Path) -> None:
    """Make ``target`` the model of a checkpoint, by hard links where the file system has them."""
    with replacing(target) as temporary:
        shutil.copytree(checkpoint.model, temporary, dirs_exist_ok=True, copy_function=_link_or_copy)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def sync_tree(folder: Path) -> None:
    """Force the files and folders under ``folder`` to the disk."""
    for root, _, names in os.walk(folder):
        for name in names:
            with open(Path(root) / name, "rb") as handle:
                os.fsync(handle.fileno())
        sync_folder(Path(root))


def sync_folder(folder: Path) -> None:
    """Force a folder's list of names to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        with open(temporary, "w", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
        """Read it; the empty ``state_dict`` is for Lightning, which insists on one.

        Raises:
            ValueError: written by another version of the format.
        """
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state.get("bagpiper_state_version") != STATE_VERSION:
            raise ValueError(
                f"{path} has version {state.get('bagpiper_state_version')} of the resume format, this bagpiper reads "
                f"{STATE_VERSION}; finish the run with the release that began it"
            )
        return {**state, "state_dict": {}}
