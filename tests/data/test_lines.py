"""JSON lines: whatever stands in a line is a value or one short fault; whatever stands in a file, a message."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bagpiper.data.lines import parse, read_lines
from bagpiper.errors import UserError

BAD: dict[str, tuple[str, str]] = {
    "a number of 5,000 digits": ('{"phone": ' + "1" * 5000 + "}", "111111111' (5,002 characters) is too large"),
    "a float that is infinite": ('{"x": -1e999}', "the number '-1e999' is too large"),
    "NaN": ('{"x": NaN}', "(NaN is not a number of it); write null"),
    "Infinity": ('{"x": [-Infinity]}', "(-Infinity is not a number of it); write null"),
    "lists in lists": ("[" * 150 + "]" * 150, "nested more than 100 deep"),
    "lists in lists without an end": ("[" * 100_000, "nested more than 100 deep"),
    "half a surrogate pair, deep inside": ('{"a": [{"\\ud83d": 1}]}', "half a surrogate pair"),
    "a NUL": ('{"a": "\x00"}', "not JSON (Invalid control character"),
    "two objects": ("{}{}", "not JSON (Extra data at column 3); every line must be one JSON object"),
    "a byte order mark in the middle": ("\ufeff{}", "not JSON"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_line_is_one_short_fault_and_the_next_is_read(case: str, tmp_path: Path) -> None:
    line, words = BAD[case]
    (tmp_path / "a.jsonl").write_text(f'{{"first": 1}}\n{line}\n{{"last": 1}}\n', "utf-8")
    first, (number, value, fault), last = read_lines(tmp_path / "a.jsonl")
    assert (first, last) == ((1, {"first": 1}, None), (3, {"last": 1}, None))
    assert (number, value) == (2, None)
    assert fault is not None and len(fault) < 200 and fault.isprintable()
    assert words in fault


@pytest.mark.parametrize("value", [10**307, -1.5e308, "\U0001f600 ♪", "\x00", {"a": [[[]]] * 200}, None, True])
def test_all_that_json_can_hold_is_read(value: object) -> None:
    assert parse(json.dumps(value)) == value
    assert parse(json.dumps(value, ensure_ascii=False)) == value


def test_a_line_of_ten_million_characters_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('"' + "x" * 10**7 + '"')
    ((number, value, fault),) = read_lines(tmp_path / "a.jsonl")
    assert (number, len(value), fault) == (1, 10**7, None)


@pytest.mark.parametrize("name", ["gone.jsonl", "x" * 5000, "a\x1b[31m.jsonl"])
def test_a_file_that_is_not_there_is_told_in_one_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file") as caught:
        list(read_lines(tmp_path / name))
    assert len(str(caught.value)) < 500 and str(caught.value).isprintable()
