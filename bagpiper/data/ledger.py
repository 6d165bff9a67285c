"""The ledger: everything that was read, left out, resampled or narrowed, counted per source."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Literal

from bagpiper.errors import UserError, brief
from bagpiper.names import distinct_names

OnBad = Literal["fail", "skip"]

READ = "read"
LOST = "lost_while_training"
REPEATED = "repeated_in_place_of_lost"
RESAMPLED = "resampled"
FIRST_CHANNEL = "first_channel_only"
MEAN_OF_CHANNELS = "mean_of_channels"
LOUDEST_CHANNEL = "loudest_channel_only"
SILENT_FIRST = "first_channel_silent"
SEEN_TWICE = "seen_twice"
TRAINED_ON_TOO = "trained_on_too"
CLIP_TRAINED_ON = "clip_trained_on_too"

_SHOWN = 3
"""Left-out examples named per source in the summary; all of them are counted."""


class Ledger:
    """Counts of what happened to the data; safe to use from several threads.

    What is counted per source: lines read, examples left out by reason, examples that are there twice, clips that are
    resampled, clips of several channels of which one is made, clips whose first channel is silent, times that an
    example could not be laid out later on (its file vanished, say), and times that one was trained on once more because
    no example of another pack could be.
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
    def sources(self) -> list[str]:
        """Sources of which something was counted."""
        with self._lock:
            return list(dict.fromkeys([*self._counts, *self._skips]))

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
                lines.append(f"{brief(source)}: {self._describe(source)}")
                lines.extend(f"  left out: {message}" for message in self._messages.get(source, []))
                hidden = sum(self._skips.get(source, Counter()).values()) - len(self._messages.get(source, []))
                if hidden:
                    lines.append(f"  and {hidden} more")
            return "\n".join(lines)

    def as_metrics(self) -> dict[str, float]:
        """The counts as ``<source>/<what>``, names that no two sources share, and ``skipped`` over all sources."""
        metrics = {"skipped": float(self.num_skipped)}
        with self._lock:
            names = distinct_names([*self._counts, *self._skips], parts=False)
            for source, counts in self._counts.items():
                for what, number in counts.items():
                    metrics[f"{names[source]}/{what}"] = float(number)
            for source, skips in self._skips.items():
                reasons = distinct_names(skips, parts=False)
                for reason, number in skips.items():
                    metrics[f"{names[source]}/skipped_{reasons[reason]}"] = float(number)
        return metrics

    def _describe(self, source: str) -> str:
        counts, skips = self._counts.get(source, Counter()), self._skips.get(source, Counter())
        parts = [f"{counts[READ]} examples read, {counts[READ] - sum(skips.values())} used"]
        if skips:
            reasons = ", ".join(f"{number} {reason}" for reason, number in skips.most_common())
            parts.append(f"{sum(skips.values())} left out ({reasons})")
        if counts[SEEN_TWICE]:
            parts.append(f"{counts[SEEN_TWICE]} training examples are there twice or more")
        if counts[TRAINED_ON_TOO]:
            parts.append(f"{counts[TRAINED_ON_TOO]} validation examples are trained on too")
        if counts[CLIP_TRAINED_ON]:
            parts.append(f"{counts[CLIP_TRAINED_ON]} other validation examples hold clips that are trained on")
        if counts[RESAMPLED]:
            parts.append(f"{counts[RESAMPLED]} clips resampled")
        if counts[FIRST_CHANNEL]:
            parts.append(f"first channel only of {counts[FIRST_CHANNEL]} clips")
        if counts[MEAN_OF_CHANNELS]:
            parts.append(f"mean of the channels of {counts[MEAN_OF_CHANNELS]} clips")
        if counts[LOUDEST_CHANNEL]:
            parts.append(f"loudest channel only of {counts[LOUDEST_CHANNEL]} clips")
        if counts[SILENT_FIRST]:
            clips = f"{counts[SILENT_FIRST]} clips whose first channel is silent while another is not"
            parts.append(f"{clips} (data.channel=loudest takes the other)")
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
        if number == 1:
            raise UserError(
                f"1 bad example: {self._messages[0]}; or set data.on_bad_example=skip to leave it out and count it"
            )
        more = " (there may be more: reading stopped here)" if number >= self._limit else ""
        listed = "\n".join(f"  {message}" for message in self._messages)
        raise UserError(
            f"{number} bad examples{more}:\n{listed}\n"
            "Correct them, or set data.on_bad_example=skip to leave them out and count them."
        )
