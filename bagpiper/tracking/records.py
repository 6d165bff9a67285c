"""A record of metrics, and what takes one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Record:
    """Metrics of one step.

    Attributes:
        step: optimizer steps taken.
        split: ``train``, ``valid``, ``data``, or ``log`` for what callbacks logged through Lightning.
        values: name without the split -> value.
    """

    step: int
    split: str
    values: dict[str, float]


class Sink(Protocol):
    """Where records go."""

    def write(self, record: Record) -> None:
        """Take a record."""

    def flush(self) -> None:
        """Make the records so far survive a crash."""
