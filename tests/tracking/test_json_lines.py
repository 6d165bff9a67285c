"""Records of metrics are written once, and survive crashes."""

import json
import math

import pytest

from bagpiper.tracking.json_lines import JsonLines, read_records
from bagpiper.tracking.records import Record


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_records_of_steps_that_the_file_has_are_not_written_twice(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = JsonLines(path).begin()
    for step in (10, 20, 30):
        first.write(Record(step, "train", {"loss": 1.0 / step}))
    first.write(Record(20, "valid", {"loss": 5.0}))
    again = JsonLines(path).begin()  # resumed from step 10
    for step in (20, 30, 40):
        again.write(Record(step, "train", {"loss": 7.0}))
    again.write(Record(20, "valid", {"loss": 7.0}))
    again.write(Record(40, "valid", {"loss": 7.0}))
    again.flush()
    assert [(r["split"], r["step"], r["loss"]) for r in lines_of(path)] == [
        ("train", 10, 0.1),
        ("train", 20, 0.05),
        ("train", 30, 0.03333333),
        ("valid", 20, 5.0),
        ("train", 40, 7.0),
        ("valid", 40, 7.0),
    ]


def test_what_is_not_finite_is_null_in_json_and_nan_again_when_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    JsonLines(path).begin().write(Record(1, "train", {"loss": math.nan, "gradient_norm": math.inf, "rows": 3}))
    line = json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert line == {"step": 1, "split": "train", "loss": None, "gradient_norm": None, "rows": 3}
    ((record, _),) = read_records(path)
    assert math.isnan(record.values["loss"]) and record.values["rows"] == 3
    JsonLines(path).begin().write(Record(1, "train", {"loss": 1.0}))
    assert len(lines_of(path)) == 1


def test_a_line_cut_by_a_kill_is_removed_and_written_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    JsonLines(path).begin().write(Record(1, "train", {"loss": 1.0}))
    with path.open("a") as handle:
        handle.write('{"step": 2, "split": "tr')
    JsonLines(path).begin().write(Record(2, "train", {"loss": 2.0}))
    assert [r["step"] for r in lines_of(path)] == [1, 2]
