"""``metrics.jsonl``: one JSON object a record."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from bagpiper.tracking.records import Record


class JsonLines:
    """A file of records, each written once however often a run resumes.

    A run that resumes from an older checkpoint computes some records again; those that the file has are not written
    twice.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last: dict[tuple[str, ...], int] = {}
        if path.exists():
            self._read()

    def _read(self) -> None:
        kept = 0
        with open(self.path, "rb") as handle:
            for line in handle:
                if not line.endswith(b"\n"):
                    break  # the process was killed while it wrote this line
                record = json.loads(line)
                key = _key(record["split"], record.keys() - {"step", "split"})
                self._last[key] = max(record["step"], self._last.get(key, -1))
                kept += len(line)
        os.truncate(self.path, kept)

    def write(self, record: Record) -> None:
        """Append a record, unless the file has it."""
        key = _key(record.split, record.values)
        if record.step <= self._last.get(key, -1):
            return
        self._last[key] = record.step
        values = {name: _rounded(value) for name, value in record.values.items()}
        with open(self.path, "a", encoding="utf-8") as handle:
            handle.write(json.dumps({"step": record.step, "split": record.split, **values}) + "\n")

    def flush(self) -> None:
        """Sync the file."""
        if self.path.exists():
            with open(self.path, "rb") as handle:
                os.fsync(handle.fileno())


def _key(split: str, names: Iterable[str]) -> tuple[str, ...]:
    """What tells records of one step apart: the split, and in ``log`` the names, since every callback logs its own."""
    return (split, *sorted(names)) if split == "log" else (split,)


def _rounded(value: float) -> float:
    return float(f"{value:.7g}")
