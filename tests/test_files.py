"""Files and folders are whole or not there."""

import os

import pytest

from bagpiper import files
from bagpiper.errors import UserError


def test_home_is_found_where_there_is_one(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    paths = ["~/a", "a/~", "~nobody-here/a", "~\0", "~\ud83d"]
    assert [files.at_home(path) for path in paths] == ["/home/me/a", *paths[1:]]


def test_file_is_replaced_whole_or_not_at_all(tmp_path):
    target = tmp_path / "folder" / "a.txt"
    files.write_text(target, "one")
    with pytest.raises(RuntimeError), files.replacing_file(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "one"
    files.write_text(target, "two")
    assert target.read_text() == "two"
    assert [path.name for path in target.parent.iterdir()] == ["a.txt"]


def test_only_durable_files_wait_for_the_disk(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    files.write_for_user(tmp_path / "cache", b"1")
    assert synced == []
    files.write_text(tmp_path / "record", "1")
    assert len(synced) == 2  # the file and its folder


def test_user_hears_why_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be written"):
        files.write_for_user(tmp_path / "file" / "below", b"1")


def test_files_that_belong_together_are_untouched_when_one_cannot_be_written(tmp_path):
    one, other = tmp_path / "one", tmp_path / "folder" / "other"
    files.write_together({one: b"1", other: b"1"})
    assert (one.read_bytes(), other.read_bytes()) == (b"1", b"1")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="one: cannot be written"):
        files.write_together({one: b"2", other: b"2", tmp_path / "file" / "below": b"2"})
    assert (one.read_bytes(), other.read_bytes()) == (b"1", b"1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "one"]


def test_folder_is_never_missing_under_its_name(tmp_path, monkeypatch):
    """The old folder is only moved aside when the new one is ready, and comes off the disk last."""
    target = tmp_path / "model"
    with files.replacing_folder(target) as folder:
        (folder / "a").write_text("one")
    removed = []
    real = files.shutil.rmtree

    def watch(path, **options):
        if "old-" in path.name and path.exists():
            removed.append((target / "a").read_text())
        real(path, **options)

    monkeypatch.setattr(files.shutil, "rmtree", watch)
    with files.replacing_folder(target) as folder:
        (folder / "a").write_text("two")
    assert removed == ["two"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_leftovers_are_removed_and_nothing_else(tmp_path):
    for name in (".tmp-x-1", "kept"):
        (tmp_path / name).write_text("")
        (tmp_path / f"{name}-folder").mkdir()
    files.remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "kept-folder"]
