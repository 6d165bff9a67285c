"""What the records of a run say, and what is said when they cannot be written."""

import errno
import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import tiny_settings

from bagpiper.errors import UserError
from bagpiper.recipe.settings import Recipe
from bagpiper.training import run_folder


def a_recipe(folder: Path, **changes) -> Recipe:
    return replace(Recipe(name="tiny", run_dir=str(folder), model=tiny_settings()), **changes)


def begin(folder: Path, **changes) -> Recipe:
    recipe = a_recipe(folder, **changes)
    run_folder.write_records(folder, recipe)
    return recipe


def complete(folder: Path, step: int) -> None:
    checkpoint = folder / "checkpoints" / f"step-{step:06d}"
    (checkpoint / "model").mkdir(parents=True)
    (checkpoint / "resume").mkdir()
    (checkpoint / "resume" / "state.pt").write_bytes(b"x")


def test_records_of_a_new_run(tmp_path):
    recipe = begin(tmp_path / "run")
    assert run_folder.read_recipe(tmp_path / "run") == run_folder.as_dict(recipe)
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["packages"]["torch"]
    assert set(environment) >= {"python", "platform", "git", "command"}


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "run"
    with pytest.raises(UserError, match=r"cannot be written to.*run_dir="):
        run_folder.write_records(folder, a_recipe(folder))


def test_full_disk_is_one_message_that_names_the_last_checkpoint(tmp_path, monkeypatch):
    recipe = begin(tmp_path)
    complete(tmp_path, 7)

    def full(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"no space left.*step-000007.*--resume"):
        run_folder.write_records(tmp_path, recipe)


def test_fingerprint_of_a_refitted_codec_is_refused(tmp_path):
    record = {"layout": "a", "tokenizer": "t", "codec": "first fit"}
    run_folder.check_fingerprint(tmp_path, record)
    run_folder.write_fingerprint(tmp_path, record)
    run_folder.check_fingerprint(tmp_path, record)
    with pytest.raises(UserError, match=r"changed codec, layout.*codec\.safetensors"):
        run_folder.check_fingerprint(tmp_path, {**record, "codec": "second fit", "layout": "b"})


def test_git_state_outside_a_repository_is_none(tmp_path):
    assert run_folder.git_state(tmp_path) is None


def test_records_after_a_step_are_dropped_whole(tmp_path):
    path = tmp_path / "metrics.jsonl"
    run_folder.drop_records(tmp_path, 3)
    assert not path.exists()
    lines = [json.dumps({"step": step, "split": "train"}) + "\n" for step in (0, 2, 3, 4, 6)]
    path.write_text("".join(lines) + '{"step": 2, "sp')  # killed while it wrote
    run_folder.drop_records(tmp_path, 3)
    assert path.read_text() == "".join(lines[:3])


def test_what_a_checkpoint_says_stands_in_for_a_fingerprint_that_is_gone(tmp_path):
    record = {"layout": "a", "tokenizer": "t", "codec": "first fit"}
    run_folder.check_fingerprint(tmp_path, record, record)
    with pytest.raises(UserError, match="changed codec"):
        run_folder.check_fingerprint(tmp_path, {**record, "codec": "second fit"}, record)
    run_folder.write_fingerprint(tmp_path, record)
    with pytest.raises(UserError, match="changed codec"):
        run_folder.check_fingerprint(tmp_path, {**record, "codec": "second fit"}, {**record, "codec": "second fit"})
