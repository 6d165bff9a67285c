"""Seconds spent training, without what was spent watching."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """A stopwatch that validation, listening and checkpoints pause."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._paused_since: float | None = None

    def lap(self) -> float:
        """Seconds since the last lap, pauses left out."""
        now = time.perf_counter()
        seconds = now - self._start
        self._start = now
        return max(seconds, 1e-9)

    def pause(self) -> None:
        """Stop counting."""
        if self._paused_since is None:
            self._paused_since = time.perf_counter()

    def go_on(self) -> None:
        """Count again."""
        if self._paused_since is not None:
            self._start += time.perf_counter() - self._paused_since
            self._paused_since = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Not counting inside the block."""
        self.pause()
        try:
            yield
        finally:
            self.go_on()
