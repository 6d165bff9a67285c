"""Names that MLflow takes for metrics, parameters and tags, one for each text and no two alike."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_LENGTH = 230
"""MLflow takes 250 characters; the rest is for a number and a prefix."""


def distinct_names(
    texts: Iterable[str], known: Mapping[str, str] | None = None, *, parts: bool = True
) -> dict[str, str]:
    """Text -> name.

    A text that is a name keeps itself: letters and digits of any script, ``_``, ``-``, ``.``, and between parts ``/``,
    ``:`` and spaces. In others ``_`` stands for what MLflow refuses; where that makes two texts alike, a number tells
    them apart.

    Args:
        texts: the texts; a later one gives way to an earlier one, and all to those that are names.
        known: names given before; they stay.
        parts: whether ``/``, ``:`` and spaces may stay.
    """
    names = dict(known or {})
    fresh = [text for text in dict.fromkeys(texts) if text not in names]
    taken = set(names.values())
    for text in sorted(fresh, key=lambda text: _legal(text, parts) != text):
        legal = _legal(text, parts)
        name, number = legal, 1
        while name in taken:
            number += 1
            name = f"{legal}-{number}"
        names[text] = name
        taken.add(name)
    return names


def _legal(text: str, parts: bool) -> str:
    """What MLflow takes: no other characters, and nothing that is or looks like another path (``a//b``, ``..a``)."""
    if not parts:
        return re.sub(r"[^\w.-]+", "_", text)[:_LENGTH]
    cleaned = re.sub(r"[^\w./: -]+", "_", text)[:_LENGTH]
    path = "/".join(part for part in cleaned.split("/") if part not in ("", ".", "..")) or "_"
    return f"__{path[2:]}" if path.startswith("..") else path
