"""One file has many names: they are seen to be one, and a path that is written leads to it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from bagpiper.data import paths
from bagpiper.data.paths import contents, path_from, real_path, same_file
from bagpiper.errors import UserError


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``far/away`` behind the link ``near``, and two clips of different bytes and one length."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "near").symlink_to("far/away")
    (tmp_path / "a.wav").write_bytes(b"aaaa")
    (tmp_path / "b.wav").write_bytes(b"bbbb")
    return tmp_path


def test_links_copies_and_spellings_hold_the_same(place: Path) -> None:
    (place / "link.wav").symlink_to("a.wav")
    (place / "hard.wav").hardlink_to("a.wav")
    shutil.copy("a.wav", "far/away/copy.wav")
    names = ["a.wav", "./a.wav", str(place / "a.wav"), "near/../../a.wav", "link.wav", "hard.wav", "near/copy.wav"]
    held = contents([*names, "b.wav"])
    assert len({held[name] for name in names}) == 1
    assert held["b.wav"] != held["a.wav"]


def test_a_file_is_read_once_and_only_where_another_is_as_long(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "long.wav").write_bytes(b"longer")
    read: list[str] = []
    real = paths._digest
    monkeypatch.setattr(paths, "_digest", lambda file: read.append(file) or real(file))
    contents(["a.wav", "./a.wav", "b.wav", "near/../../a.wav", "long.wav"])
    assert sorted(map(os.path.basename, read)) == ["a.wav", "b.wav"]


def test_a_file_that_vanished_is_named(place: Path) -> None:
    with pytest.raises(UserError, match="gone.wav: cannot be read .No such file"):
        contents(["a.wav", "gone.wav"])


@pytest.mark.parametrize(
    ("folder", "path", "written"),
    [
        (".", "a.wav", "a.wav"),
        ("far", "./a.wav", "../a.wav"),
        ("new/folder", "a.wav", "../../a.wav"),
        ("near", "a.wav", "../../a.wav"),  # not ../a.wav, which is far/a.wav
        ("near/new", "a.wav", "../../../a.wav"),
        (".", "near/c.wav", "near/c.wav"),  # as it is spelled, where that leads there
        ("near", "near/c.wav", "c.wav"),
        ("far", "near/../b.wav", "b.wav"),
        (".", "./~/d.wav", "./~/d.wav"),  # not somebody's home
        (".", "./data:,e.wav", "./data:,e.wav"),  # no sound within the text
    ],
)
def test_a_written_path_leads_to_the_file_across_links(folder: str, path: str, written: str, place: Path) -> None:
    shutil.copy("a.wav", "far/b.wav")
    shutil.copy("a.wav", "far/away/c.wav")
    os.mkdir("~")
    shutil.copy("a.wav", "~/d.wav")
    shutil.copy("a.wav", "data:,e.wav")
    found = path_from(Path(folder), path)
    assert found == written
    Path(folder).mkdir(parents=True, exist_ok=True)
    assert os.path.samefile(os.path.join(folder, found), path)


def test_where_no_relative_path_leads_the_absolute_one_is_written(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other_drive(*_: str) -> str:
        raise ValueError

    monkeypatch.setattr(os.path, "relpath", other_drive)
    assert path_from(Path("far"), "a.wav") == str(place / "a.wav")
    with pytest.raises(UserError, match="gone.wav: cannot be reached from far"):
        path_from(Path("far"), "gone.wav")


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "loop"])
def test_names_that_no_file_can_have_are_no_crash(name: str, place: Path) -> None:
    (place / "loop").symlink_to("loop")
    assert not same_file(name, name)
    assert real_path(name)
