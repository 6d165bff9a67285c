"""How work is told in a terminal or a log: one line per finished part, a bar while it takes long."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bagpiper.redact import redact


def say(console: Console, text: str, style: str | None = None) -> None:
    """One line as it is: nothing highlighted, nothing taken for markup, not wrapped. Only secrets are masked."""
    console.print(redact(text), style=style, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def told(console: Console, what: str) -> Iterator[Callable[[str], None]]:
    """One line when the block ends: what was done, in how many seconds."""
    start = time.monotonic()
    said: list[str] = []
    yield said.append
    say(console, f"{what}: {' '.join(said)} ({time.monotonic() - start:.1f} s)")


@contextmanager
def counted(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar in a terminal, nothing elsewhere; the function takes what is done and the total."""
    if not console.is_terminal:
        yield lambda done, total: None
        return
    columns: list[Any] = [TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
