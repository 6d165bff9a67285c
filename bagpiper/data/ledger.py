"""The ledger: everything that was read, left out, resampled or narrowed, counted per source."""

from __future__ import annotations

import re
import threading
from collections import Counter
from typing import Literal

from bagpiper.errors import UserError

OnBad = Literal["fail", "skip"]

READ = "read"
LOST = "lost_while_training"
REPEATED = "repeated_in_place_of_lost"
RESAMPLED = "resampled"
FIRST_CHANNEL = "first_channel_only"

_SHOWN = 3
"""Left-out examples named per source in the summary; all of them are counted."""


class Ledger:
    """Counts of what happened to the data; safe to use from several threads.

    What is counted per source: lines read, examples left out by reason, clips that are resampled, clips of which only
    the first channel is used, times that an example could not be laid out later on (its file vanished, say), and times
    that one was trained on once more because no example of another pack could be.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, Counter[str]] = {}
        self._skips: dict[str, Counter[str]] = {}
        self._messages: dict[str, list[str]] = {}

    def count(self, source: str, what: str, number: int = 1) -> None:
        """Add to a count of a source."""
        with self._lock:
            self._counts.setdefault(source, Counter())[what] += number

    def skip(self, source: str, reason: str, message: str) -> None:
        """Count an example that is left out.

        Args:
            source: its source.
            reason: a few words, the same for all examples with the same fault.
            message: names file and line.
        """
        with self._lock:
            self._skips.setdefault(source, Counter())[reason] += 1
            shown = self._messages.setdefault(source, [])
            if len(shown) < _SHOWN:
                shown.append(message)

    @property
    def num_skipped(self) -> int:
        """Examples left out, of all sources."""
        with self._lock:
            return sum(sum(skips.values()) for skips in self._skips.values())

    def summary(self) -> str:
        """One message for the user: a line per source, then the first examples that were left out."""
        with self._lock:
            lines = []
            for source in dict.fromkeys([*self._counts, *self._skips]):
                lines.append(f"{source}: {self._describe(source)}")
                lines.extend(f"  left out: {message}" for message in self._messages.get(source, []))
                hidden = sum(self._skips.get(source, Counter()).values()) - len(self._messages.get(source, []))
                if hidden:
                    lines.append(f"  and {hidden} more")
            return "\n".join(lines)

    def as_metrics(self) -> dict[str, float]:
        """The counts as ``<source>/<what>``, and ``skipped`` over all sources."""
        metrics = {"skipped": float(self.num_skipped)}
        with self._lock:
            for source, counts in self._counts.items():
                for what, number in counts.items():
                    metrics[f"{_metric_name(source)}/{what}"] = float(number)
            for source, skips in self._skips.items():
                for reason, number in skips.items():
                    metrics[f"{_metric_name(source)}/skipped_{_metric_name(reason)}"] = float(number)
        return metrics

    def _describe(self, source: str) -> str:
        counts, skips = self._counts.get(source, Counter()), self._skips.get(source, Counter())
        parts = [f"{counts[READ]} examples read, {counts[READ] - sum(skips.values())} used"]
        if skips:
            reasons = ", ".join(f"{number} {reason}" for reason, number in skips.most_common())
            parts.append(f"{sum(skips.values())} left out ({reasons})")
        if counts[RESAMPLED]:
            parts.append(f"{counts[RESAMPLED]} clips resampled")
        if counts[FIRST_CHANNEL]:
            parts.append(f"first channel only of {counts[FIRST_CHANNEL]} clips")
        if counts[LOST]:
            parts.append(f"{counts[LOST]} times an example could not be read while training")
        if counts[REPEATED]:
            parts.append(f"{counts[REPEATED]} times an example was trained on once more, in place of a lost pack")
        return "; ".join(parts)


class Faults:
    """What to do with bad examples: stop with all faults at once, or leave them out and count them."""

    def __init__(self, on_bad: OnBad, ledger: Ledger, limit: int = 20) -> None:
        """Args: on_bad: of the recipe; ledger: counts what is left out; limit: faults that end the reading at once."""
        self._on_bad = on_bad
        self._ledger = ledger
        self._limit = limit
        self._messages: list[str] = []

    def add(self, source: str, reason: str, message: str) -> None:
        """Take note of a bad example.

        Raises:
            UserError: in ``fail`` mode, when ``limit`` faults have come together.
        """
        if self._on_bad == "skip":
            self._ledger.skip(source, reason, message)
            return
        self._messages.append(message)
        if len(self._messages) >= self._limit:
            self.raise_if_any()

    def raise_if_any(self) -> None:
        """Stop if there were faults in ``fail`` mode.

        Raises:
            UserError: names every fault met so far.
        """
        if not self._messages:
            return
        number = len(self._messages)
        more = " (there may be more: reading stopped here)" if number >= self._limit else ""
        listed = "\n".join(f"  {message}" for message in self._messages)
        raise UserError(
            f"{number} bad example{'s' if number > 1 else ''}{more}:\n{listed}\n"
            "Correct them, or set data.on_bad_example=skip to leave them out and count them."
        )


def _metric_name(text: str) -> str:
    """A name that MLflow accepts: letters, digits, '_', '-' and '.'."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text)
