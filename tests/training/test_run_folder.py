"""Who may write into a run folder, and what its records say."""

import errno
import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import tiny_settings

from bagpiper.errors import UserError
from bagpiper.recipe.settings import OptimizerSettings, Recipe, TrainerSettings
from bagpiper.training import run_folder


def a_recipe(folder: Path, **changes) -> Recipe:
    return replace(Recipe(name="tiny", run_dir=str(folder), model=tiny_settings()), **changes)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def begin(folder: Path, **changes) -> Recipe:
    recipe = a_recipe(folder, **changes)
    run_folder.check_new(folder, recipe)
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


def test_a_run_that_never_reached_a_checkpoint_may_start_again(tmp_path):
    run_folder.check_new(tmp_path, begin(tmp_path))


def test_run_of_another_recipe_is_refused_untouched(tmp_path):
    begin(tmp_path)
    before = snapshot(tmp_path)
    other = a_recipe(tmp_path, optimizer=OptimizerSettings(lr=3e-4))
    with pytest.raises(UserError, match=r"another recipe.*optimizer\.lr.*run_dir="):
        run_folder.check_new(tmp_path, other)
    assert snapshot(tmp_path) == before


def test_second_start_of_a_run_says_how_to_resume(tmp_path):
    recipe = begin(tmp_path)
    complete(tmp_path, 3)
    with pytest.raises(UserError, match=f"--resume {tmp_path}"):
        run_folder.check_new(tmp_path, recipe)


def test_folder_with_a_model_but_no_recipe_is_refused(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(UserError, match="holds a model"):
        run_folder.check_new(tmp_path, a_recipe(tmp_path))


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


def test_only_harmless_keys_may_change_on_resume(tmp_path):
    recipe = begin(tmp_path)
    complete(tmp_path, 1)
    run_folder.check_resume(tmp_path, replace(recipe, trainer=TrainerSettings(max_steps=5000, log_every=1)))
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match=r"cannot change seed, trainer\.accumulate"):
        run_folder.check_resume(tmp_path, replace(recipe, seed=1, trainer=TrainerSettings(accumulate=3)))
    assert snapshot(tmp_path) == before


def test_resume_without_run_or_checkpoint(tmp_path):
    with pytest.raises(UserError, match="not a run folder"):
        run_folder.check_resume(tmp_path, a_recipe(tmp_path))
    recipe = begin(tmp_path)
    with pytest.raises(UserError, match="no complete checkpoint"):
        run_folder.check_resume(tmp_path, recipe)


def test_fingerprint_of_a_refitted_codec_is_refused(tmp_path):
    record = {"layout": "a", "tokenizer": "t", "codec": "first fit"}
    run_folder.check_fingerprint(tmp_path, record)
    run_folder.write_fingerprint(tmp_path, record)
    run_folder.check_fingerprint(tmp_path, record)
    with pytest.raises(UserError, match=r"changed codec, layout.*codec\.safetensors"):
        run_folder.check_fingerprint(tmp_path, {**record, "codec": "second fit", "layout": "b"})


def test_command_line_is_recorded_without_secrets():
    given = [
        "bagpiper",
        "train",
        "data.token_budget=64",
        "hf_token=abc",
        "plugins.api_key=1",
        "tracking.uri=http://me:pw@host/x",
    ]
    assert run_folder.without_secrets(given) == [
        "bagpiper",
        "train",
        "data.token_budget=64",
        "hf_token=***",
        "plugins.api_key=***",
        "tracking.uri=http://***@host/x",
    ]


def test_git_state_outside_a_repository_is_none(tmp_path):
    assert run_folder.git_state(tmp_path) is None
