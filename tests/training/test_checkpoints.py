"""Checkpoint folders survive crashes."""

import os
from pathlib import Path

import pytest
import torch

from bagpiper import files
from bagpiper.files import replacing_folder
from bagpiper.training import checkpoints
from bagpiper.training.checkpoints import StateFile, checkpoint_at, list_checkpoints, prune, publish


def write(run_dir: Path, step: int, content: str = "w") -> checkpoints.Checkpoint:
    checkpoint = checkpoint_at(run_dir, step)
    with replacing_folder(checkpoint.folder) as folder:
        (folder / "model").mkdir()
        (folder / "model" / "weights").write_text(content)
        (folder / "resume").mkdir()
        (folder / "resume" / "state.pt").write_text("s")
    return checkpoint


def test_listed_by_number_not_by_name(tmp_path):
    for step in (9, 1_000_000, 999_999):
        write(tmp_path, step)
    assert [c.step for c in list_checkpoints(tmp_path)] == [9, 999_999, 1_000_000]


@pytest.mark.parametrize("instant", ["inside", "sync_tree", "rename"])
def test_crash_at_any_instant_leaves_the_former_checkpoint(tmp_path, monkeypatch, instant):
    """Defect of the official trainer: an incomplete checkpoint was picked as the latest (spec section 9.4)."""
    write(tmp_path, 1)

    class Killed(BaseException):
        pass

    def die(*_args):
        raise Killed

    if instant == "sync_tree":
        monkeypatch.setattr(files, "sync_tree", die)
    if instant == "rename":
        monkeypatch.setattr(os, "rename", die)
    monkeypatch.setattr(files.shutil, "rmtree", lambda *a, **k: None)  # a killed process cleans nothing up
    with pytest.raises(Killed), replacing_folder(checkpoint_at(tmp_path, 2).folder) as folder:
        (folder / "model").mkdir()
        (folder / "resume").mkdir()
        (folder / "resume" / "state.pt").write_text("half")
        if instant == "inside":
            raise Killed
    assert [c.step for c in list_checkpoints(tmp_path)] == [1]
    assert list((tmp_path / "checkpoints").glob(".tmp-*"))
    monkeypatch.undo()
    checkpoints.remove_leftovers(tmp_path)
    assert not list((tmp_path / "checkpoints").glob(".tmp-*"))
    assert [c.step for c in list_checkpoints(tmp_path)] == [1]


def test_incomplete_folder_under_a_final_name_is_no_checkpoint(tmp_path):
    (tmp_path / "checkpoints" / "step-000005" / "model").mkdir(parents=True)
    assert list_checkpoints(tmp_path) == []


def test_prune_keeps_the_newest_and_at_least_one(tmp_path):
    for step in range(5):
        write(tmp_path, step)
    prune(tmp_path, 2)
    assert [c.step for c in list_checkpoints(tmp_path)] == [3, 4]
    prune(tmp_path, 0)
    assert [c.step for c in list_checkpoints(tmp_path)] == [4]
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-000004"]


def test_publish_replaces_the_model_and_shares_the_files(tmp_path):
    first, second = write(tmp_path, 1, "one"), write(tmp_path, 2, "two")
    publish(first, tmp_path / "model")
    publish(second, tmp_path / "model")
    weights = tmp_path / "model" / "weights"
    assert weights.read_text() == "two"
    assert weights.stat().st_ino == (second.model / "weights").stat().st_ino
    assert [p.name for p in tmp_path.glob(".tmp-*")] == []


def test_state_holds_no_weights_and_loads_without_pickle(tmp_path):
    path = tmp_path / "resume" / "state.pt"
    StateFile().save_checkpoint(
        {"state_dict": {"w": torch.ones(1000)}, "optimizer_states": [{"m": torch.ones(2)}]}, path
    )
    raw = torch.load(path, weights_only=True)
    assert "state_dict" not in raw
    assert path.stat().st_size < 3000
    loaded = StateFile().load_checkpoint(path)
    assert loaded["state_dict"] == {}
    assert torch.equal(loaded["optimizer_states"][0]["m"], torch.ones(2))


def test_state_that_runs_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, ("true",)

    path = tmp_path / "state.pt"
    torch.save({"bagpiper_state_version": checkpoints.STATE_VERSION, "x": Evil()}, path)
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        StateFile().load_checkpoint(path)


def test_state_of_another_version_says_what_to_do(tmp_path):
    path = tmp_path / "state.pt"
    torch.save({"bagpiper_state_version": 99}, path)
    with pytest.raises(ValueError, match="version 99"):
        StateFile().load_checkpoint(path)
