"""Conversions that can be killed at any instant and continued by running them again."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bagpiper.errors import UserError
from bagpiper.files import put_in_place, remove_leftovers, sync, write_text

PLAN = "plan.json"

Progress = Callable[[str, int, int], None]
"""Told what is being done, how many bytes of it are, and of how many."""


def check_target(out: Path) -> None:
    """Refuse to write over anything.

    Raises:
        UserError: there is something already.
    """
    if out.exists():
        raise UserError(f"{out} exists already; nothing was changed. Choose another name, or remove it first")


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody is told of."""


@dataclass
class Meter:
    """Sums what is done of one step.

    Attributes:
        tell: told of every change.
        what: the step.
        total, done: bytes.
    """

    tell: Progress
    what: str
    total: int
    done: int = 0

    def __call__(self, count: int) -> None:
        """More bytes are done."""
        self.done += count
        self.tell(self.what, self.done, self.total)


@contextmanager
def continued_folder(out: Path, plan: Mapping[str, Any]) -> Iterator[Path]:
    """A folder to write files into; it becomes ``out`` when the block ends well.

    It lies in ``<out>.partial`` beside the plan. A later call with the same plan gets the same folder back, with the
    files that were finished; with another plan it starts anew. Files in it must be renamed to their names when whole.

    Args:
        out: the folder to make.
        plan: everything that decides what the files hold (plain values).
    """
    work = _work_folder(out, plan)
    folder = work / "folder"
    folder.mkdir(exist_ok=True)
    remove_leftovers(folder)
    yield folder
    check_target(out)
    put_in_place(folder, out)
    shutil.rmtree(work, ignore_errors=True)


@contextmanager
def continued_file(out: Path, plan: Mapping[str, Any]) -> Iterator[Path]:
    """The same for one file that the caller writes piece by piece, and syncs."""
    work = _work_folder(out, plan)
    file = work / out.name
    yield file
    check_target(out)
    os.replace(file, out)
    sync(out.parent)
    shutil.rmtree(work, ignore_errors=True)


def _work_folder(out: Path, plan: Mapping[str, Any]) -> Path:
    """``<out>.partial``, emptied if it belongs to another plan."""
    work = out.with_name(out.name + ".partial")
    record = work / PLAN
    text = json.dumps(plan, indent=2, sort_keys=True) + "\n"
    if not (record.is_file() and record.read_text(encoding="utf-8") == text):
        shutil.rmtree(work, ignore_errors=True)
        write_text(record, text)
    return work


def identity_of(path: Path) -> dict[str, Any]:
    """What tells a file from another one without reading it: place, size, time of its last change."""
    found = path.stat()
    return {"path": str(path.resolve()), "bytes": found.st_size, "changed_ns": found.st_mtime_ns}


def identity_of_folder(folder: Path) -> list[dict[str, Any]]:
    """The same for the files of a model folder."""
    return [identity_of(path) for path in sorted(folder.iterdir()) if path.is_file()]
