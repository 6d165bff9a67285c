"""JSON lines, as manifests hold them: every line is a value or a fault, whatever stands in it."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bagpiper.errors import UserError, brief, shown

_DEEPEST = 100
"""Lists and objects inside one another. What writes JSON later on must not fail where reading did not, and that depends
on how deep in functions it stands."""

_MOST_DIGITS = 308
"""Of a whole number: as many as a float has. Python reads 4,300 and no more."""

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
"""Escapes of emoji, in two halves: most lines have none, and need not be looked through."""


def read_lines(path: Path) -> Iterator[tuple[int, Any, str | None]]:
    """The JSON lines of a file: (line number, value, None), or (line number, None, fault); blank lines are passed over.

    Raises:
        UserError: the file is missing, unreadable or empty.
    """
    if not os.path.exists(path):
        raise UserError(f"{brief(path)}: no such file; name a file of JSON lines (relative to the working folder)")
    if path.is_dir():
        raise UserError(f"{brief(path)}: this is a folder; name the file of JSON lines in it")
    try:
        with path.open("rb") as file:
            empty = True
            for number, raw in enumerate(file, start=1):
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                    if not line:
                        continue
                    value, fault = parse(line), None
                except ValueError as error:
                    value, fault = None, _told(error)
                empty = False
                yield number, value, fault
    except OSError as error:
        fault = error.strerror or brief(error)
        raise UserError(f"{brief(path)}: cannot be read ({fault}); check its permissions and the disk") from error
    if empty:
        raise UserError(f"{brief(path)}: the file holds no line; every line must be one JSON object")


def parse(text: str) -> Any:
    """The value of a JSON text; Python's own reader takes more than JSON, and fails in several ways.

    Raises:
        ValueError: no JSON, ``NaN`` or ``Infinity``, a number that no float holds, half a surrogate pair, or nested too
            deeply; the message is short.
    """
    too_deep = f"lists and objects nested more than {_DEEPEST} deep; flatten them"
    try:
        value = json.loads(text, parse_int=_whole, parse_float=_finite, parse_constant=_refuse)
    except RecursionError:
        raise ValueError(too_deep) from None
    if text.count("[") + text.count("{") > _DEEPEST and _depth(value) > _DEEPEST:
        raise ValueError(too_deep)
    if _SURROGATE.search(text) and not _is_unicode(value):
        raise ValueError("half a surrogate pair (as in \\ud83d) is not a character; correct the text")
    return value


def _told(error: ValueError) -> str:
    """What is wrong with a line, and the way out."""
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 text ({error.reason} at byte {error.start}); save the file as UTF-8"
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON ({error.msg} at column {error.colno}); every line must be one JSON object"
    return str(error)


def _whole(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise _too_large(digits)
    return int(digits)


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise _too_large(digits)
    return number


def _too_large(digits: str) -> ValueError:
    return ValueError(f"the number {shown(digits, 40)} is too large; write it as text, or take it out")


def _refuse(name: str) -> None:
    raise ValueError(f"not JSON ({name} is not a number of it); write null")


def _is_unicode(value: Any) -> bool:
    """Whether all texts in a value can be written as UTF-8; escapes can hold more, which no tokenizer takes."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _depth(value: Any) -> int:
    """Lists and objects inside one another, counted level by level."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
    return depth
