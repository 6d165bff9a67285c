"""Manifests: every bad line is named or counted, none is lost."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bagpiper.data import examples as examples_room
from bagpiper.data.audio import inspect_clip
from bagpiper.data.examples import count_shared, distinct_clips
from bagpiper.data.ledger import READ, Ledger
from bagpiper.errors import UserError
from bagpiper.recipe.settings import SourceSettings

ASSISTANT = {"role": "assistant", "content": "hi"}

BAD_LINES: dict[str, tuple[str, str]] = {
    "not JSON": ('{"id": 1, "messages": [', "not JSON"),
    "a list": ("[1, 2]", "must be a JSON object"),
    "a number": ("7", "must be a JSON object"),
    "no messages": ('{"id": "x"}', "no 'messages'"),
    "no message": ('{"messages": []}', "at least one message"),
    "wrong role": ('{"messages": [{"role": "robot", "content": "hi"}]}', "allowed: system, user, assistant"),
    "wrong part": ('{"messages": [{"role": "user", "content": [{"type": "image"}]}]}', "a part must be"),
    "wrong loss": ('{"messages": [{"role": "user", "content": "hi", "loss": "yes"}]}', "must be true or false"),
    "a pair": ('{"audio": "good.wav", "caption": "a tone"}', "bagpiper data import-pairs"),
    "a row of ESPnet": ('{"messages": [["user", "text", "hi"]]}', "bagpiper data import-dialogues"),
    "half a surrogate": ('{"messages": [{"role": "user", "content": "\\ud83d"}]}', "surrogate"),
    "deeply nested": ("[" * 100000, "nested more than 100 deep"),
    "missing clip": (
        '{"messages": [{"role": "user", "content": [{"type": "audio", "audio": "gone.wav"}]}]}',
        "gone.wav: no such file",
    ),
    "no path": ('{"messages": [{"role": "user", "content": [{"type": "audio", "audio": ""}]}]}', "this is a folder"),
    "bad clip": (
        '{"messages": [{"role": "user", "content": [{"type": "audio", "audio": "text.wav"}]}]}',
        "not an audio file",
    ),
    "5,000 digits": ('{"phone": ' + "1" * 5000 + ', "messages": []}', "(5,002 characters) is too large"),
    "inline audio": (
        '{"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "QUJD"}}]}]}',
        "audio inside a line",
    ),
    "a name that no file has": (
        json.dumps({"messages": [{"role": "user", "content": [{"type": "audio", "audio": "x" * 4000}]}]}),
        "cannot be read (File name too long)",
    ),
    "repeated id": ('{"id": "first", "messages": [{"role": "assistant", "content": "hi"}]}', "was used in line 1"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_bad_line_is_named_by_file_and_line(case: str, folder: Any) -> None:
    line, words = BAD_LINES[case]
    folder.clip("good.wav")
    (folder.path / "text.wav").write_text("no audio at all")
    source = folder.manifest([{"id": "first", "messages": [ASSISTANT]}, "", line])
    with pytest.raises(UserError) as caught:
        folder.read(source)
    message = str(caught.value)
    assert f"{folder.path}/train.jsonl:3" in message and words in message
    assert "data.on_bad_example=skip" in message and "\n" not in message, "one fault, one line"


@pytest.mark.parametrize("case", BAD_LINES)
def test_bad_line_is_left_out_and_counted_where_the_recipe_says_so(case: str, folder: Any) -> None:
    line, words = BAD_LINES[case]
    folder.clip("good.wav")
    (folder.path / "text.wav").write_text("no audio at all")
    ledger = Ledger()
    source = folder.manifest([{"id": "first", "messages": [ASSISTANT]}, line, {"id": "last", "messages": [ASSISTANT]}])
    examples = folder.read(source, ledger=ledger, on_bad="skip")
    assert [example.conversation.id for example in examples] == ["first", "last"]
    assert ledger.num_skipped == 1
    assert "3 examples read, 2 used; 1 left out" in ledger.summary()
    assert "train.jsonl:2" in ledger.summary() and words in ledger.summary()
    metrics = ledger.as_metrics()
    assert metrics["skipped"] == 1 and metrics["train/read"] == 3
    assert sum(value for name, value in metrics.items() if name.startswith("train/skipped_")) == 1


def test_all_faults_come_at_once_up_to_twenty(folder: Any) -> None:
    folder.clip("good.wav")
    clip = {"role": "user", "content": [{"type": "audio", "audio": "gone.wav"}]}
    source = folder.manifest(["no json", {"id": "x", "messages": [clip, ASSISTANT]}, {"messages": [ASSISTANT]}, "7"])
    with pytest.raises(UserError) as caught:
        folder.read(source)
    assert all(f"train.jsonl:{line}:" in str(caught.value) for line in (1, 2, 4))
    assert str(caught.value).startswith("3 bad examples:")
    with pytest.raises(UserError, match="20 bad examples .there may be more") as caught:
        folder.read(folder.manifest(["no json"] * 50))
    assert str(caught.value).count("train.jsonl:") == 20


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "holds no line"),
        (b"\n\n", "holds no line"),
        (b'{"messages": "\xff\xfe"}\n', "not UTF-8"),
        (None, "no such file"),
    ],
)
def test_bad_manifest(content: bytes | None, words: str, folder: Any) -> None:
    path = folder.path / "train.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=words):
        folder.read(SourceSettings(path=str(path)))


def test_folder_as_manifest_and_senseless_weight(folder: Any) -> None:
    with pytest.raises(UserError, match="this is a folder"):
        folder.read(SourceSettings(path=str(folder.path)))
    source = folder.manifest([{"messages": [ASSISTANT]}])
    for weight in (0.0, -1.0, float("nan")):
        source.weight = weight
        with pytest.raises(UserError, match="weight"):
            folder.read(source)


def test_paths_start_at_the_manifest(folder: Any, monkeypatch: pytest.MonkeyPatch, rows: Any) -> None:
    folder.clip("clips/a.wav")
    absolute = str(folder.path / "clips" / "a.wav")
    source = folder.manifest([rows["heard"]("relative", "clips/a.wav"), rows["heard"]("absolute", absolute)])
    monkeypatch.chdir("/")
    first, second = folder.read(source)
    assert first.clips[0].sha256 == second.clips[0].sha256
    assert first.conversation.messages[0].clip.path == absolute == first.clips[0].path


def test_byte_order_mark_and_missing_ids_are_no_fault(folder: Any) -> None:
    line = json.dumps({"messages": [ASSISTANT]}).encode()
    (folder.path / "train.jsonl").write_bytes(b"\xef\xbb\xbf" + line + b"\n" + line + b"\n")
    examples = folder.read(SourceSettings(path=str(folder.path / "train.jsonl")))
    assert [example.conversation.id for example in examples] == ["train:1", "train:2"]


def test_two_sources_of_one_name_are_told_apart(folder: Any) -> None:
    (folder.path / "other").mkdir()
    sources = [folder.manifest([{"messages": [ASSISTANT]}], name) for name in ("train.jsonl", "other/train.jsonl")]
    names = {example.source for example in folder.read(*sources)}
    assert names == {source.path for source in sources}


def test_clips_are_inspected_once_and_narrowed_ones_counted_once(
    folder: Any, rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.clip("stereo.wav", np.zeros((8000, 2), dtype=np.float32))
    source = folder.manifest([rows["heard"]("h", "stereo.wav"), rows["spoken"]("s", "stereo.wav")])
    inspected = []
    monkeypatch.setattr(
        examples_room, "inspect_clip", lambda path, limit: inspected.append(path) or inspect_clip(path, limit)
    )
    ledger = Ledger()
    cache = folder.path / "cache" / "clips.json"
    examples = folder.read(source, ledger=ledger, clip_cache=cache)
    assert len(inspected) == 1
    assert "first channel only of 1 clips" in ledger.summary()
    assert folder.read(source, clip_cache=cache) == examples
    assert len(inspected) == 1, "a inspected clip is remembered"
    folder.clip("stereo.wav", np.zeros((9000, 2), dtype=np.float32))
    assert folder.read(source, clip_cache=cache)[0].clips[0].num_samples == 9000, "a changed clip is inspected again"
    cache.write_text("{damaged")
    assert folder.read(source, clip_cache=cache)[0].clips[0].num_samples == 9000
    with pytest.raises(UserError, match="clips may have 0.2 s"):
        folder.read(source, clip_cache=cache, max_seconds=0.2)


def test_distinct_clips_by_content(folder: Any, rows: Any) -> None:
    for name in ("a.wav", "b.wav"):
        folder.clip(name)
    folder.clip("c.wav", np.zeros(8000, dtype=np.float32))
    source = folder.manifest(
        [
            rows["spoken"]("1", "a.wav"),
            rows["spoken"]("2", "b.wav"),
            rows["heard"]("3", "c.wav"),
            rows["heard"]("4", "a.wav"),
        ]
    )
    examples = folder.read(source)
    assert [Path(clip.path).name for clip in distinct_clips(examples, spoken=True)] == ["a.wav"]
    assert [Path(clip.path).name for clip in distinct_clips(examples, spoken=False)] == ["c.wav", "a.wav"]


def test_one_clip_under_several_names_is_inspected_and_counted_once(
    folder: Any, rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.clip("a.wav", np.zeros((8000, 2), dtype=np.float32))
    (folder.path / "b.wav").symlink_to("a.wav")
    inspected = []
    monkeypatch.setattr(
        examples_room, "inspect_clip", lambda path, limit: inspected.append(path) or inspect_clip(path, limit)
    )
    ledger, cache = Ledger(), folder.path / "clips.json"
    folder.read(folder.manifest([rows["heard"]("a", "a.wav")]), clip_cache=cache)
    source = folder.manifest([rows["heard"](name, name) for name in ("a.wav", "b.wav", f"../{folder.path.name}/a.wav")])
    folder.read(source, clip_cache=cache, ledger=ledger)
    assert len(inspected) == 1
    assert ledger.as_metrics()["train/first_channel_only"] == 1


def test_another_clip_with_the_time_and_the_length_of_the_old_is_noticed(folder: Any, rows: Any) -> None:
    """`cp -p`, `rsync -t` and `tar` keep the time of change."""
    folder.clip("a.wav")
    cache, source = folder.path / "clips.json", folder.manifest([rows["heard"]("a", "a.wav")])
    before = folder.read(source, clip_cache=cache)[0].clips[0]
    status = os.stat(folder.path / "a.wav")
    folder.clip("a.wav", 0.5 * np.ones(before.num_samples, dtype=np.float32))
    os.utime(folder.path / "a.wav", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert os.stat(folder.path / "a.wav").st_size == status.st_size
    assert folder.read(source, clip_cache=cache)[0].clips[0].sha256 != before.sha256


@pytest.mark.parametrize("content", ["", "null", "[]", "3", '{"x": 1}', '{"x": [1, 2]}'])
def test_a_damaged_record_of_clips_costs_only_time(folder: Any, rows: Any, content: str) -> None:
    folder.clip("a.wav")
    cache = folder.path / "clips.json"
    cache.write_text(content.replace("x", str(folder.path / "a.wav")))
    (example,) = folder.read(folder.manifest([rows["heard"]("a", "a.wav")]), clip_cache=cache)
    assert len(example.clips) == 1


def test_what_is_in_the_data_twice_is_told_by_content_whatever_it_is_called(folder: Any, rows: Any) -> None:
    folder.clip("a.wav")
    folder.clip("copy.wav")
    folder.clip("other.wav", np.zeros(8000, dtype=np.float32))
    heard, ledger = rows["heard"], Ledger()
    train = folder.manifest([heard("1", "a.wav"), heard("2", "copy.wav"), heard("3", "a.wav", "another text")])
    valid = folder.manifest(
        [heard("x", "copy.wav"), heard("y", "copy.wav", "a third text"), heard("z", "other.wav")], "valid.jsonl"
    )
    count_shared(folder.read(train, ledger=ledger), folder.read(valid, ledger=ledger), ledger)
    trained, held_out = ledger.summary().splitlines()
    assert trained.endswith("3 used; 1 training examples are there twice or more")
    assert held_out.endswith(
        "3 used; 1 validation examples are trained on too; 1 other validation examples hold clips that are trained on"
    )
    metrics = ledger.as_metrics()
    assert (metrics["train/seen_twice"], metrics["valid/trained_on_too"], metrics["valid/clip_trained_on_too"]) == (
        1,
        1,
        1,
    )


def test_unwritable_cache_folder_names_the_way_out(folder: Any, rows: Any) -> None:
    folder.clip("a.wav")
    (folder.path / "blocked").write_text("a file where a folder should be")
    source = folder.manifest([rows["heard"]("h", "a.wav")])
    with pytest.raises(UserError, match="cannot be written .*free space or choose another folder"):
        folder.read(source, clip_cache=folder.path / "blocked" / "clips.json")


def test_metric_names_fit_mlflow_and_no_two_sources_share_a_count() -> None:
    ledger = Ledger()
    ledger.skip("a b/c:d", "audio: not audio", "x")
    assert "a_b_c_d/skipped_audio_not_audio" in ledger.as_metrics()
    for number, source in enumerate(["a_b_c_d", "a b c d", "训练", "测试", "тест"], start=1):
        ledger.count(source, READ, number)
    assert {name: value for name, value in ledger.as_metrics().items() if name.endswith("/read")} == {
        "a_b_c_d/read": 1,
        "a_b_c_d-2/read": 2,
        "训练/read": 3,
        "测试/read": 4,
        "тест/read": 5,
    }


def test_sources_of_the_same_name_are_told_apart(folder: Any) -> None:
    """Training and validation files are often called alike; they once shared their counts."""
    line, ledger = {"id": "x", "messages": [ASSISTANT]}, Ledger()
    (folder.path / "b").mkdir()
    first, second = folder.manifest([line]), folder.manifest([line], "b/train.jsonl")
    folder.read(first, ledger=ledger)
    folder.read(second, ledger=ledger)
    folder.read(second, first, ledger=ledger)
    assert ledger.sources == ["train", second.path, f"{second.path} (2)", first.path]
    assert [value for name, value in ledger.as_metrics().items() if name.endswith("/read")] == [1, 1, 1, 1]


def test_every_left_out_example_is_counted_even_if_not_shown() -> None:
    ledger = Ledger()
    for number in range(10):
        ledger.skip("train", "bad line", f"train.jsonl:{number}: bad")
    assert "10 left out (10 bad line)" in ledger.summary() and "and 7 more" in ledger.summary()
