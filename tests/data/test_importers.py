"""Importers: rows of other projects become conversations, or faults with their line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bagpiper.data.importers import import_demo, import_dialogues, import_pairs, soundscape_sources
from bagpiper.errors import UserError
from bagpiper.language.conversation import from_json
from bagpiper.recipe.settings import SourceSettings


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def shape(row: dict[str, Any]) -> list[tuple[str, str]]:
    return [(message.role, message.modality) for message in from_json(row).messages]


def test_pairs_in_both_directions(folder: Any) -> None:
    folder.clip("audio/a.wav")
    folder.manifest([{"id": "a", "audio": "audio/a.wav", "caption": "Ein Ton ♪", "text": "x", "facts": {"n": 1}}])
    out = folder.path / "out" / "pairs.jsonl"
    imported = import_pairs(folder.path / "train.jsonl", out)
    assert (imported.lines, imported.train, imported.valid, imported.faults) == (1, 2, 0, ())
    first, second = lines(out)
    assert first["id"] == "a.a2t" and second["id"] == "a.t2a"
    assert shape(first) == [("user", "audio"), ("assistant", "text")]
    assert shape(second) == [("user", "text"), ("assistant", "audio")]
    assert from_json(first).messages[0].clip.path == "../audio/a.wav", "relative to the new file"
    assert from_json(first).messages[1].text == "Ein Ton ♪"
    assert first["facts"] == {"n": 1} and first["text"] == "x" and "caption" not in first
    examples = folder.read(SourceSettings(path=str(out)))
    assert [sorted(example.clips) for example in examples] == [[0], [1]]


def test_pairs_in_one_direction_with_a_question_and_a_chosen_key(folder: Any) -> None:
    folder.clip("a.wav")
    folder.manifest([{"audio": "a.wav", "caption": "a tone", "text": "beep"}])
    out = folder.path / "out.jsonl"
    import_pairs(folder.path / "train.jsonl", out, task="audio_to_text", text_key="text", question="What is said?")
    (row,) = lines(out)
    assert row["id"] == "train:1.a2t"
    assert shape(row) == [("user", "audio"), ("user", "text"), ("assistant", "text")]
    assert [m.text for m in from_json(row).messages[1:]] == ["What is said?", "beep"]
    import_pairs(folder.path / "train.jsonl", out, task="text_to_audio")
    assert [shape(row) for row in lines(out)] == [[("user", "text"), ("assistant", "audio")]]


BAD_PAIRS = {
    "not json": ("{", "not JSON"),
    "not an object": ("3", "must be a JSON object"),
    "no audio": ('{"caption": "x"}', "belongs under 'audio'"),
    "audio is gone": ('{"audio": "gone.wav", "caption": "x"}', "gone.wav: no such file"),
    "inline audio": ('{"audio": {"bytes": "UklGRg==", "path": null}, "caption": "x"}', "audio inside a line"),
    "a data URI": ('{"audio": "data:audio/wav;base64,UklGRg==", "caption": "x"}', "audio inside a line"),
    "an address": ('{"audio": "https://host/a.wav", "caption": "x"}', "at an address, cannot be read yet"),
    "5,000 digits": ('{"audio": "a.wav", "caption": ' + "1" * 5000 + "}", "(5,002 characters) is too large"),
    "a flood": ('{"audio": "a.wav", "caption": [' + "1, " * 50000 + "1]}", "(150,003 characters)"),
    "another user's home": ('{"audio": "~nobody-here/a.wav", "caption": "x"}', "~nobody-here/a.wav: no such file"),
    "no text": ('{"audio": "a.wav"}', "no text under 'text'"),
    "blank caption": ('{"audio": "a.wav", "caption": " "}', "no text under 'caption'"),
    "repeated id": ('{"id": "good", "audio": "a.wav", "caption": "x"}', "used in line 1"),
    "half a surrogate": ('{"audio": "a.wav", "caption": "\\ud83d"}', "surrogate"),
}


@pytest.mark.parametrize("case", BAD_PAIRS)
def test_bad_row_is_reported_with_its_line_and_the_others_are_written(case: str, folder: Any) -> None:
    line, words = BAD_PAIRS[case]
    folder.clip("a.wav")
    folder.manifest([{"id": "good", "audio": "a.wav", "caption": "x"}, line])
    imported = import_pairs(folder.path / "train.jsonl", folder.path / "out.jsonl")
    assert (imported.lines, imported.train) == (2, 2)
    (fault,) = imported.faults
    assert f"{folder.path}/train.jsonl:2: " in fault and words in fault
    assert len(fault) < 400 and fault.isprintable()


def test_a_clip_that_cannot_be_measured_is_a_fault_of_its_line(folder: Any) -> None:
    folder.clip("a.wav")
    (folder.path / "text.wav").write_text("no audio at all")
    folder.manifest([{"audio": name, "caption": "x"} for name in ("a.wav", "text.wav")])
    imported = import_pairs(folder.path / "train.jsonl", folder.path / "out.jsonl", max_seconds=1)
    assert imported.train == 2 and f"{folder.path}/train.jsonl:2: " in imported.faults[0]


def test_paths_lead_to_the_clips_across_links(folder: Any) -> None:
    """The manifest, the clips and the new file each lie behind a link; ``..`` then leads elsewhere than it reads."""
    home = folder.path
    folder.clip("data/audio/a.wav")
    (home / "data" / "set").mkdir()
    (home / "far" / "away").mkdir(parents=True)
    (home / "near").symlink_to("far/away")
    (home / "linked").symlink_to("data/set")
    folder.manifest([{"audio": "../audio/a.wav", "caption": "x"}], "data/set/m.jsonl")
    for out in (home / "near" / "out.jsonl", home / "near" / "new" / "out.jsonl", home / "linked" / "out.jsonl"):
        import_pairs(home / "linked" / "m.jsonl", out)
        assert len(folder.read(SourceSettings(path=str(out)))) == 2


def test_longer_clips_are_left_out_counted_and_move_no_other_line(folder: Any) -> None:
    folder.clip("long.wav", np.zeros(24000, np.float32))
    short = [folder.clip(f"{number}.wav") for number in range(20)]
    folder.manifest([{"id": name, "audio": name, "caption": name} for name in (*short, "long.wav")])
    manifest, out = folder.path / "train.jsonl", folder.path / "out.jsonl"
    import_pairs(manifest, out, valid_share=0.3)
    everything = {row["id"] for row in lines(out)}
    imported = import_pairs(manifest, out, valid_share=0.3, max_seconds=0.5)
    assert (imported.lines, imported.longer, imported.faults) == (21, 1, ())
    assert imported.train + imported.valid == 40, "0.5 s is not longer than 0.5 s"
    assert {row["id"] for row in lines(out)} == {name for name in everything if not name.startswith("long")}
    with pytest.raises(UserError, match="none of 21 lines .*\n.*every clip is longer than asked for"):
        import_pairs(manifest, folder.path / "none.jsonl", max_seconds=0.1)
    with pytest.raises(UserError, match="max seconds 0; it must be more than 0"):
        import_pairs(manifest, out, max_seconds=0)


def test_nothing_imported_is_an_error(folder: Any) -> None:
    folder.manifest(["{", "3"])
    with pytest.raises(UserError, match="none of 2 lines could be imported"):
        import_pairs(folder.path / "train.jsonl", folder.path / "out.jsonl")
    assert not (folder.path / "out.jsonl").exists()


def test_the_manifest_is_not_overwritten_and_the_share_is_checked(folder: Any) -> None:
    folder.clip("a.wav")
    source = Path(folder.manifest([{"audio": "a.wav", "caption": "x"}]).path)
    with pytest.raises(UserError, match="this would replace the manifest itself"):
        import_pairs(source, source)
    with pytest.raises(UserError, match="less than 1"):
        import_pairs(source, folder.path / "out.jsonl", valid_share=1.0)


def test_split_is_by_hash_keeps_clips_together_and_is_stable(folder: Any) -> None:
    for number in range(60):
        folder.clip(f"{number}.wav", np.full(80, number / 60, np.float32))
    rows = [{"id": f"{n}-{k}", "audio": f"{n}.wav", "caption": f"{k}"} for n in range(60) for k in range(2)]
    manifest, out = folder.path / "train.jsonl", folder.path / "out.jsonl"

    def split(rows: list[dict[str, Any]], by: Any) -> tuple[set[str], set[str]]:
        folder.manifest(rows)
        imported = import_pairs(manifest, out, task="audio_to_text", valid_share=0.25, split_by=by)
        assert imported.train + imported.valid == len(rows) and imported.valid_path == folder.path / "out.valid.jsonl"
        return {row["id"] for row in lines(out)}, {row["id"] for row in lines(folder.path / "out.valid.jsonl")}

    train, valid = split(rows, "audio")
    assert not {name.split("-")[0] for name in train} & {name.split("-")[0] for name in valid}
    assert 12 <= len(valid) <= 48
    fewer_train, fewer_valid = split(rows[::-1][:60], "audio")
    assert fewer_train <= train and fewer_valid <= valid, "a row's side does not depend on the other rows"
    rows = [{**row, "caption": f"text {number // 3}"} for number, row in enumerate(rows)]
    texts = {f"{row['id']}.a2t": row["caption"] for row in rows}
    train, valid = split(rows, "text")
    assert not {texts[name] for name in train} & {texts[name] for name in valid}


def test_dialogues(folder: Any) -> None:
    folder.clip("audio/a.wav")
    good = {
        "example_id": "d",
        "messages": [["system", "text", "Hi."], ["user", "audio", "audio/a.wav"], ["assistant", "text", "A."]],
    }
    bad = [
        {"messages": [["robot", "text", "x"]]},
        {"messages": [["user", "image", "x.png"]]},
        {"messages": [["user", "text"]]},
        {"messages": []},
        {"messages": [["user", "audio", "gone.wav"]]},
    ]
    folder.manifest([good, *bad])
    out = folder.path / "new" / "out.jsonl"
    imported = import_dialogues(folder.path / "train.jsonl", out)
    (row,) = lines(out)
    assert row["id"] == "d" and "example_id" not in row
    assert shape(row) == [("system", "text"), ("user", "audio"), ("assistant", "text")]
    words = ("role 'robot'", "modality 'image'", "three strings", "must be a list", "gone.wav: no such file")
    for line, fault, word in zip(range(2, 7), imported.faults, words, strict=True):
        assert f"train.jsonl:{line}" in fault and word in fault


def demo_row(**changes: Any) -> dict[str, Any]:
    row = {"id": "x", "split": "posttrain", "task": "understanding", "audio": "a.wav", "caption": "A tone."}
    return {
        **row,
        "question": "What?",
        "think": "- So.",
        "answer": "A tone",
        "request": None,
        "source": "demo",
        **changes,
    }


def test_demo_rows_take_the_official_form(folder: Any) -> None:
    """Spec section 2.5, byte for byte."""
    folder.clip("a.wav")
    generation = {"task": "generation", "request": "Make a tone.", "question": None, "answer": None}
    folder.manifest(
        [
            demo_row(),
            demo_row(id="g", system="You make audio.", **generation),
            demo_row(id="p", split="pretrain", question=None, think=None, answer=None),
            demo_row(id="no think", think=None),
            demo_row(id="other", task="translation"),
        ]
    )
    imported = import_demo(folder.path / "train.jsonl", folder.path / "out.jsonl")
    understand, generate, a2t, t2a = (from_json(row) for row in lines(folder.path / "out.jsonl"))
    assert [m.text if m.modality == "text" else "*" for m in understand.messages] == [
        "You are an audio understanding assistant.",
        "*",
        "What?",
        "Caption of the audio: A tone.\n\n<think>\n- So.\n</think>\n\nA tone",
    ]
    assert [m.role for m in understand.messages] == ["system", "user", "user", "assistant"]
    assert [m.text if m.modality == "text" else "*" for m in generate.messages] == [
        "You make audio.",
        "Make a tone.",
        "<think>\n- So.\n</think>\n\nA tone.",
        "*",
    ]
    assert [m.role for m in generate.messages] == ["system", "user", "assistant", "assistant"]
    assert (a2t.id, t2a.id) == ("p.a2t", "p.t2a") and len(a2t.messages) == len(t2a.messages) == 2
    assert understand.meta == {"source": "demo", "split": "posttrain", "task": "understanding"}
    assert len(imported.faults) == 2
    assert ":4: no text under 'think'" in imported.faults[0] and "'translation'" in imported.faults[1]


def test_soundscapes_become_sources(folder: Any) -> None:
    folder.clip("audio/a.wav")
    row = {"id": "train_0", "audio": "audio/a.wav", "caption": "a bell", "duration": 0.5, "facts": {"sounds": ["bell"]}}
    folder.manifest([row])
    folder.manifest([{**row, "id": "valid_0"}], "valid.jsonl")
    folder.manifest([], "test.jsonl")
    train, valid = soundscape_sources(folder.path)
    assert [source.name for source in (*train, *valid)] == ["soundscapes-train", "soundscapes-valid"]
    examples = folder.read(*train)
    assert [example.conversation.id for example in examples] == ["train_0.a2t", "train_0.t2a"]
    assert all(example.conversation.meta["facts"] == {"sounds": ["bell"]} for example in examples)
    written = Path(train[0].path)
    before = written.stat().st_mtime_ns
    soundscape_sources(folder.path)
    assert written.stat().st_mtime_ns == before, "left alone"
    folder.manifest([{**row, "caption": "a horn"}])
    soundscape_sources(folder.path)
    assert lines(written)[0]["messages"][1]["content"][0]["text"] == "a horn", "another corpus is not mistaken for it"
    (folder.path / "audio" / "a.wav").unlink()
    with pytest.raises(UserError, match="remove it to make it anew|none of 1 lines"):
        soundscape_sources(folder.path)


REAL = {"asterisk_en": (466, 932), "sfx_music": (170, 340), "tiny_permissive": (33, 66)}


@pytest.mark.parametrize("name", REAL)
def test_real_manifests_of_pairs_import_whole(name: str, real_audio: Path, tmp_path: Path) -> None:
    imported = import_pairs(real_audio / name / "manifest.jsonl", tmp_path / "out.jsonl")
    assert (imported.lines, imported.train, imported.faults) == (*REAL[name], ())


def test_real_demo_imports_whole_and_keeps_its_long_captions(real_audio: Path, tmp_path: Path, folder: Any) -> None:
    imported = import_demo(real_audio / "bagpiper_demo" / "manifest.jsonl", tmp_path / "out.jsonl")
    assert (imported.lines, imported.train, imported.faults) == (42, 61, ())
    rows = lines(tmp_path / "out.jsonl")
    assert max(len(m.text.split()) for row in rows for m in from_json(row).messages if m.modality == "text") > 1000
    examples = folder.read(SourceSettings(path=str(tmp_path / "out.jsonl")), max_seconds=31)
    assert len(examples) == 61 and all(example.clips for example in examples)


@pytest.mark.golden
def test_official_dialogues_import_whole(golden: Path, tmp_path: Path, folder: Any) -> None:
    imported = import_dialogues(golden / "dialogues.jsonl", tmp_path / "out.jsonl")
    assert imported.lines == imported.train > 0 and not imported.faults
    for ours, theirs in zip(lines(tmp_path / "out.jsonl"), lines(golden / "dialogues.jsonl"), strict=True):
        assert [list(turn) for turn in shape(ours)] == [turn[:2] for turn in theirs["messages"]]
    assert len(folder.read(SourceSettings(path=str(tmp_path / "out.jsonl")))) == imported.train


def verb(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bagpiper.cli.main", "data", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120, check=False)


def test_import_pairs_as_a_command(folder: Any) -> None:
    folder.clip("a.wav")
    out = folder.path / "out.jsonl"
    folder.clip("long.wav", np.zeros(24000, np.float32))
    folder.manifest([{"audio": "a.wav", "caption": "x"}, "{", {"audio": "long.wav", "caption": "y"}])
    words = ["import-pairs", folder.path / "train.jsonl", "-o", out, "--task", "text_to_audio", "--max-seconds", 1]
    done = verb(*words)
    assert done.returncode == 0, done.stderr
    assert "3 lines read, 1 left out, 1 with longer clips left out" in done.stdout
    assert "train.jsonl:2: not JSON" in done.stderr
    assert f"1 conversations written to {out}" in done.stdout and len(lines(out)) == 1


def test_import_dialogues_as_a_command(folder: Any) -> None:
    folder.manifest([{"example_id": str(n), "messages": [["assistant", "text", "hi"]]} for n in range(20)])
    out = folder.path / "out.jsonl"
    done = verb("import-dialogues", folder.path / "train.jsonl", "-o", out, "--valid-share", 0.5)
    assert done.returncode == 0, done.stderr
    assert len(lines(out)) + len(lines(folder.path / "out.valid.jsonl")) == 20
    assert str(folder.path / "out.valid.jsonl") in done.stdout


def test_import_demo_as_a_command_refuses_what_is_no_demo(folder: Any) -> None:
    folder.manifest([{"messages": []}])
    done = verb("import-demo", folder.path / "train.jsonl", "-o", folder.path / "out.jsonl")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "train.jsonl:1: no audio file" in done.stderr
