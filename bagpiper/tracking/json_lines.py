"""``metrics.jsonl``: one JSON object a record; what is not a finite number, which JSON does not know, is null."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from bagpiper.errors import UserError, reason
from bagpiper.tracking.records import Record


class JsonLines:
    """A file of records, each written once however often a run resumes.

    A run that resumes from an older checkpoint computes some records again; those that the file has are not written
    twice.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last: dict[tuple[str, ...], int] = {}

    def begin(self) -> JsonLines:
        """Look what the file has, and cut off a line that a killed process left without an end; returns itself.

        Raises:
            UserError: the file is damaged.
        """
        self._last, kept = {}, 0
        for record, end in read_records(self.path):
            key = _key(record.split, record.values)
            self._last[key] = max(record.step, self._last.get(key, -1))
            kept = end
        if self.path.exists():
            os.truncate(self.path, kept)
        return self

    def write(self, record: Record) -> None:
        """Append a record, unless the file has it."""
        key = _key(record.split, record.values)
        if record.step <= self._last.get(key, -1):
            return
        self._last[key] = record.step
        values = {name: _rounded(value) for name, value in record.values.items()}
        with open(self.path, "a", encoding="utf-8") as handle:
            handle.write(json.dumps({"step": record.step, "split": record.split, **values}, allow_nan=False) + "\n")

    def flush(self) -> None:
        """Sync the file."""
        if self.path.exists():
            with open(self.path, "rb") as handle:
                os.fsync(handle.fileno())


def read_records(path: Path, start: int = 0) -> Iterator[tuple[Record, int]]:
    """The records of a file that may be written at the same time.

    Args:
        path: ``metrics.jsonl``; it need not exist.
        start: offset in bytes of the first line.

    Raises:
        UserError: a line is no record.

    Yields:
        a record, and the offset behind its line. A line without an end is still being written, or was when the process
        was killed.
    """
    if not path.exists():
        return
    with open(path, "rb") as handle:
        handle.seek(start)
        for line in handle:
            if not line.endswith(b"\n"):
                return
            try:
                values = json.loads(line)
                step, split = values.pop("step"), values.pop("split")
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(
                    f"{path}: no record at byte {start:,} ({reason(error)}); remove that line, or the file, "
                    "whose curves are then gone"
                ) from error
            start += len(line)
            yield Record(step, split, {k: math.nan if v is None else v for k, v in values.items()}), start


def _key(split: str, names: Iterable[str]) -> tuple[str, ...]:
    """What tells records of one step apart: the split, and in ``log`` the names, since every callback logs its own."""
    return (split, *sorted(names)) if split == "log" else (split,)


def _rounded(value: float) -> float | None:
    return float(f"{value:.7g}") if math.isfinite(value) else None
