"""What messages quote of a user's is short, on one line and printable, whatever it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bagpiper.errors import brief, printable, shown


def nested(depth: int) -> list[object]:
    value: list[object] = []
    for _ in range(depth):
        value = [value]
    return value


QUOTED: dict[str, tuple[object, str]] = {
    "a text": ("robot", "'robot'"),
    "nothing": (None, "None"),
    "letters of all languages": ("ein Ton ♪", "'ein Ton ♪'"),
    "an escape sequence": ("a\nb\x1b[31m", r"'a\nb\x1b[31m'"),
    "half a surrogate pair": ("half \ud83d", r"'half \ud83d'"),
    "a change of direction": ("right\u202eleft", r"'right\u202eleft'"),
    "bytes": (b"\xff", r"b'\xff'"),
    "5,001 digits": (10**5000, "a value of type int, too long to be shown"),
    "lists in lists": (nested(100_000), "a value of type list, too long to be shown"),
}


@pytest.mark.parametrize("case", QUOTED)
def test_a_value_is_quoted_on_one_printable_line(case: str) -> None:
    value, text = QUOTED[case]
    assert shown(value) == text


def test_a_long_value_loses_its_middle_and_tells_its_length() -> None:
    assert shown("a" * 99 + "b" * 99, 20) == "'aaaaaaaaaaaaaa...bbbb' (200 characters)"
    part = {"type": "input_audio", "input_audio": {"data": "Zkxh" * 40_000, "format": "wav"}}
    assert shown(part).startswith("{'type': 'input_audio', 'input_audio': {'data': 'Zkxh")
    assert shown(part).endswith("'format': 'wav'}} (160,069 characters)")
    assert "\n" not in shown(np.zeros((100, 100)))


@given(st.recursive(st.one_of(st.text(), st.integers(), st.binary()), st.lists), st.integers(12, 200))
def test_whatever_is_shown_has_a_bounded_length(value: object, limit: int) -> None:
    text = shown(value, limit)
    assert len(text) <= limit + 40 and text.isprintable()
    text.encode()


def test_names_of_files_stay_as_they_are_unless_they_are_odd() -> None:
    assert brief(Path("my data/Töne.jsonl")) == "my data/Töne.jsonl"
    assert brief("a\n.wav") == r"'a\n.wav'"
    assert len(brief("x" * 100_000)) < 340 and brief("x" * 100_000).endswith("(100,002 characters)")


def test_a_terminal_gets_no_control_characters_but_line_breaks() -> None:
    assert printable("one:\n  '\x1b]0;evil\x07'\ttwo") == "one:\n  '\\x1b]0;evil\\x07'\\ttwo"
    assert printable("it's C:\\new") == "it's C:\\new"
