"""The split: one clip, or one text, is never on both sides, and no stale validation file is left beside new lines."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bagpiper.data.importers import import_demo, import_dialogues, import_pairs
from bagpiper.data.split import SplitLine, held_out, valid_file
from bagpiper.draws import uniform
from bagpiper.errors import UserError


def pairs(folder: Any, *spellings: str, clips: int = 8) -> Path:
    """A manifest that names each of some clips by every spelling (``{n}`` is its number)."""
    for n in range(clips):
        folder.clip(f"audio/{n}.wav", np.full(80, n / clips, np.float32))
    rows = [
        {"id": f"{n}-{k}", "audio": name.format(n=n), "text": f"sound {n}"}
        for n in range(clips)
        for k, name in enumerate(spellings)
    ]
    return Path(folder.manifest(rows).path)


def sounds(file: Path) -> set[bytes]:
    """What the clips of a file of conversations hold; every path leads to one."""
    messages = [message for line in file.read_text("utf-8").splitlines() for message in json.loads(line)["messages"]]
    parts = [part for message in messages for part in message["content"] if part["type"] == "audio"]
    return {(file.parent / part["audio"]).read_bytes() for part in parts}


def assert_apart(out: Path) -> None:
    train, valid = sounds(out), sounds(valid_file(out))
    assert train and valid and not train & valid


# --- which lines stay together ----------------------------------------------------------------------------------------


def test_a_clip_under_several_names_is_on_one_side(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    home = folder.path
    monkeypatch.setenv("HOME", str(home))
    (home / "linked").symlink_to("audio")
    absolute = str(home / "audio")
    names = ["audio/{n}.wav", "./audio/{n}.wav", absolute + "/{n}.wav", "linked/{n}.wav", "~/audio/{n}.wav"]
    import_pairs(pairs(folder, *names), home / "out.jsonl", valid_share=0.5)
    assert_apart(home / "out.jsonl")


@pytest.mark.parametrize("make", [os.link, os.symlink, shutil.copy])
def test_copies_and_links_of_a_clip_are_on_one_side(make: Callable[[Path, Path], Any], folder: Any) -> None:
    pairs(folder, "audio/{n}.wav")
    for n in range(8):
        make(folder.path / f"audio/{n}.wav", folder.path / f"other{n}.wav")
    manifest = pairs(folder, "audio/{n}.wav", "other{n}.wav")
    import_pairs(manifest, folder.path / "out.jsonl", valid_share=0.5)
    assert_apart(folder.path / "out.jsonl")


def test_dialogues_are_tied_by_every_clip_that_they_share_also_through_others(folder: Any) -> None:
    for n in range(12):
        folder.clip(f"{n}.wav", np.full(80, n / 12, np.float32))
    shutil.copy(folder.path / "2.wav", folder.path / "copy of 2.wav")
    singles = [[str(n)] for n in range(3, 12)]
    clips = [["0", "1"], ["1", "2"], *singles, ["copy of 2", "3"], *([str(n), str(n + 1)] for n in (4, 6, 8))]
    rows = [
        {"example_id": "+".join(names), "messages": [["user", "audio", f"{name}.wav"] for name in names]}
        for names in clips
    ]
    out = folder.path / "out.jsonl"
    for share in (0.3, 0.5, 0.7):
        import_dialogues(Path(folder.manifest(rows).path), out, valid_share=share)
        assert_apart(out)


def test_lines_of_the_demo_are_tied_by_the_clip(folder: Any) -> None:
    manifest = pairs(folder, "audio/{n}.wav", "./audio/{n}.wav")
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    folder.manifest([{**row, "split": "pretrain", "caption": "a sound"} for row in rows])
    import_demo(manifest, folder.path / "out.jsonl", valid_share=0.5)
    assert_apart(folder.path / "out.jsonl")


SAME_TEXT = ["Café au lait", "Cafe\u0301  au lait ", "CAFÉ AU\u00a0LAIT", "Ｃａｆé au lait", "café\nau lait"]


def test_texts_that_look_alike_are_one_text() -> None:
    texts = [text + f" {n}" for n in range(20) for text in SAME_TEXT]
    sides = held_out([SplitLine(text.strip().lower(), text=text) for text in texts], 0.5)
    by_text = [sides[start : start + len(SAME_TEXT)] for start in range(0, len(sides), len(SAME_TEXT))]
    assert all(len(set(group)) == 1 for group in by_text)
    assert {group[0] for group in by_text} == {True, False}


def test_one_spelling_each_is_split_as_ever_by_the_keys_alone(folder: Any) -> None:
    """Else a new release would put other clips into the validation file of data that is trained on already."""
    manifest = pairs(folder, "audio/{n}.wav", clips=40)
    imported = import_pairs(manifest, folder.path / "out.jsonl", valid_share=0.25, task="text_to_audio")
    assert imported.valid_path is not None
    held = {json.loads(line)["id"] for line in imported.valid_path.read_text().splitlines()}
    assert held == {f"{n}-0.t2a" for n in range(40) if uniform("split", f"audio/{n}.wav") < 0.25}


def test_a_clip_that_is_left_out_still_ties_others_together(folder: Any) -> None:
    """With a limit or without, the other lines stay on their sides."""
    folder.clip("long.wav", np.zeros(8000, np.float32))
    folder.clip("short.wav", np.zeros(80, np.float32))
    rows = [{"id": f"long {n}", "audio": "long.wav", "text": f"text {n}"} for n in range(12)]
    rows += [{"id": f"short {n}", "audio": "short.wav", "text": f"text  {n}"} for n in range(12)]
    manifest, sides = Path(folder.manifest(rows).path), []
    for limit, name in ((None, "all.jsonl"), (0.1, "short.jsonl")):
        out = folder.path / name
        import_pairs(manifest, out, valid_share=0.5, split_by="text", max_seconds=limit)
        ids = {json.loads(line)["id"] for line in out.read_text().splitlines()}
        sides.append({name for name in ids if name.startswith("short")})
    assert sides[0] == sides[1] and 0 < len(sides[0]) < 24


# --- which files may be written ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("out", "valid"),
    [
        ("pairs.jsonl", "pairs.valid.jsonl"),
        ("set.v1", "set.v1.valid.jsonl"),
        ("set.v1.jsonl", "set.v1.valid.jsonl"),
        ("a", "a.valid.jsonl"),
        ("a.valid.jsonl", "a.valid.valid.jsonl"),
        (".jsonl", ".jsonl.valid.jsonl"),
        (".hidden", ".hidden.valid.jsonl"),
        ("folder.v1/a.json", "folder.v1/a.json.valid.jsonl"),
    ],
)
def test_the_validation_file_has_the_whole_name(out: str, valid: str) -> None:
    assert valid_file(Path(out)) == Path(valid)


def test_two_versions_have_two_validation_files(folder: Any) -> None:
    manifest = pairs(folder, "audio/{n}.wav")
    for name in ("set.v1", "set.v2"):
        import_pairs(manifest, folder.path / name, valid_share=0.5)
        assert_apart(folder.path / name)
    assert len(list(folder.path.glob("set.*"))) == 4


@pytest.mark.parametrize(
    "first, second", [("a", "a.jsonl"), ("a.jsonl", "a"), ("a.jsonl", "a.valid.jsonl"), ("a.valid.jsonl", "a.jsonl")]
)
@pytest.mark.parametrize("first_share", [0.0, 0.5])
def test_no_import_takes_the_validation_file_of_another(
    first: str, second: str, first_share: float, folder: Any
) -> None:
    manifest = pairs(folder, "audio/{n}.wav")
    import_pairs(manifest, folder.path / first, valid_share=first_share)
    before = {path.name: path.read_bytes() for path in folder.path.glob("a*") if path.is_file()}
    with pytest.raises(UserError, match="choose another name"):
        import_pairs(manifest, folder.path / second, valid_share=0.5)
    assert before == {path.name: path.read_bytes() for path in folder.path.glob("a*") if path.is_file()}


@pytest.mark.parametrize("share", [0.0, 1e-9])
def test_an_older_validation_file_is_not_left_beside_lines_that_may_be_its_own(share: float, folder: Any) -> None:
    manifest, out = pairs(folder, "audio/{n}.wav"), folder.path / "out.jsonl"
    import_pairs(manifest, out, valid_share=0.5)
    before = out.read_bytes(), valid_file(out).read_bytes()
    with pytest.raises(UserError, match="Remove it, or give a --valid-share that does; nothing was changed"):
        import_pairs(manifest, out, valid_share=share)
    assert before == (out.read_bytes(), valid_file(out).read_bytes())
    import_pairs(manifest, out, valid_share=0.7)
    assert_apart(out)
    out.unlink()
    with pytest.raises(UserError, match="there is no out.jsonl.*Remove or rename it"):
        import_pairs(manifest, out, valid_share=share)
    valid_file(out).unlink()
    import_pairs(manifest, out, valid_share=share)
    assert len(sounds(out)) == 8


@pytest.mark.parametrize("renamed", [0, 1])
def test_a_crash_leaves_no_old_validation_file_beside_new_lines(
    renamed: int, folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, out, new = pairs(folder, "audio/{n}.wav"), folder.path / "out.jsonl", folder.path / "new.jsonl"
    import_pairs(manifest, out, valid_share=0.3)
    import_pairs(manifest, new, valid_share=0.7)
    old = out.read_bytes()
    real, steps = os.replace, iter(range(2))

    def dying(source: Path, target: Path) -> None:
        if next(steps) == renamed:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", dying)
    with pytest.raises(KeyboardInterrupt):
        import_pairs(manifest, out, valid_share=0.7)
    assert out.read_bytes() == (new.read_bytes() if renamed else old)
    assert not valid_file(out).exists()


@pytest.mark.parametrize(
    "name", ["m.jsonl", "linked.jsonl", "hard.jsonl", "audio/../m.jsonl", "other.jsonl", "audio/3.wav"]
)
def test_neither_the_manifest_nor_a_clip_is_written_over_whatever_it_is_called(name: str, folder: Any) -> None:
    manifest = pairs(folder, "audio/{n}.wav").rename(folder.path / "m.jsonl")
    (folder.path / "linked.jsonl").symlink_to("m.jsonl")
    (folder.path / "hard.jsonl").hardlink_to(manifest)
    if name == "other.jsonl":  # the manifest would be its validation file
        manifest = manifest.rename(folder.path / "other.valid.jsonl")
        shutil.copy(manifest, folder.path / name)
    before = manifest.read_bytes(), (folder.path / "audio/3.wav").read_bytes()
    with pytest.raises(UserError, match="write the conversations to another file"):
        import_pairs(manifest, folder.path / name, valid_share=0.5)
    assert before == (manifest.read_bytes(), (folder.path / "audio/3.wav").read_bytes())


@pytest.mark.parametrize("name", ["audio", ".", "pipe"])
def test_a_folder_or_a_device_is_no_file_to_write(name: str, folder: Any) -> None:
    manifest = pairs(folder, "audio/{n}.wav")
    os.mkfifo(folder.path / "pipe")
    with pytest.raises(UserError, match="a folder or a device"):
        import_pairs(manifest, folder.path / name)
