"""The probe table: what ``eval.json`` says, for people."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

DIRECTIONS = {
    "audio_to_caption": "audio -> caption",
    "caption_to_audio": "caption -> audio",
    "cycle_audio": "audio -> caption -> audio",
    "cycle_caption": "caption -> audio -> caption",
}
_WIDTH = 160
"""Columns of the text file; four directions need 130."""


def probe_table(result: Mapping[str, Any]) -> Table:
    """One column per direction, one row per kind of fact.

    Args:
        result: the content of ``eval.json``; directions that were left out are null or missing.
    """
    found = [name for name in DIRECTIONS if result.get(name)]
    kinds = list(dict.fromkeys(kind for name in found for kind in result[name]["facts"]))
    table = Table("facts", title="score (right / by chance)")
    for name in found:
        table.add_column(DIRECTIONS[name], justify="right")
    table.add_row("all", *(_cell(result[name]) for name in found), style="bold", end_section=True)
    for kind in kinds:
        table.add_row(kind, *(_cell(result[name]["facts"].get(kind)) for name in found))
    return table


def table_text(result: Mapping[str, Any]) -> str:
    """The table as plain text, as wide as it needs to be."""
    text = io.StringIO()
    Console(file=text, width=_WIDTH).print(probe_table(result))
    return "".join(f"{line.rstrip()}\n" for line in text.getvalue().splitlines())


def _cell(figures: Mapping[str, float] | None) -> str:
    if figures is None:
        return ""
    return f"{figures['score']:.2f} ({figures['value']:.2f} / {figures['chance']:.2f})"
