"""A run and its folder: who else may be in it, what an earlier attempt left there, what its checkpoints remember."""

import errno
import fcntl
import json
import os
import time
from dataclasses import replace

import pytest
import yaml
from lightning import Callback
from rich.console import Console
from runs import tiny_recipe
from typer.testing import CliRunner

from bagpiper.cli.main import build_app
from bagpiper.errors import UserError
from bagpiper.llms.configs import TokenizerConfig
from bagpiper.llms.tokenizer import TextTokenizer
from bagpiper.model import Bagpiper
from bagpiper.recipe.load import dump_recipe
from bagpiper.run import run
from bagpiper.training import begin, run_folder, run_lock
from bagpiper.training.checkpoints import list_checkpoints
from bagpiper.training.run_lock import LOCK
from bagpiper.weights.model_folder import load_model


class AtStep(Callback):
    """Does something after a step, within the next one."""

    def __init__(self, step, do):
        self.step, self.do = step, do

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        if trainer.global_step == self.step:
            self.do()


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def snapshot(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_holds_its_folder_from_before_its_first_record_to_the_end(tmp_path, shared_parts, resume, monkeypatch):
    """Two processes once trained in one folder and wrote every step twice."""
    recipe = tiny_recipe(tmp_path / "run", shared_parts, max_steps=3, accumulate=1, checkpoint_every=1)
    (tmp_path / "tiny.yaml").write_text(dump_recipe(recipe))
    refused = []
    write = run_folder.write_records

    def look_first(folder, its_recipe):
        assert json.loads((folder / LOCK).read_text())["pid"] == os.getpid()
        write(folder, its_recipe)

    monkeypatch.setattr(run_folder, "write_records", look_first)

    def start_others():
        before = snapshot(tmp_path / "run")
        for again in (False, True):
            with pytest.raises(UserError, match=f"another process trains here.*{os.getpid()}"):
                run(recipe, resume=again)
        for arguments in (["tiny.yaml"], ["--resume", "run"], ["tiny.yaml", "--dry-run"]):
            paths = [str(tmp_path / word) if not word.startswith("-") else word for word in arguments]
            error = CliRunner().invoke(build_app(), ["train", *paths]).exception
            assert isinstance(error, UserError) and "another process trains here" in str(error)
            refused.append(arguments)
        assert snapshot(tmp_path / "run") == before

    if resume:
        recipe.optimizer.decay_end_step = 3
        run(replace(recipe, trainer=replace(recipe.trainer, max_steps=1)))
    run(recipe, resume=resume, callbacks=[AtStep(2, start_others)])
    assert len(refused) == 3
    assert not (tmp_path / "run" / LOCK).exists()


def test_a_run_that_fails_leaves_its_folder_free(tmp_path, shared_parts, monkeypatch):
    recipe = tiny_recipe(tmp_path / "run", shared_parts, max_steps=1)
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(Bagpiper, "training_step", lambda *_: 1 / 0)
        run(recipe)
    assert not (tmp_path / "run" / LOCK).exists()
    run(recipe)


@pytest.mark.parametrize("checkpoint_every", [0, 1])
def test_a_run_that_lost_its_folder_writes_nothing_more(tmp_path, shared_parts, monkeypatch, checkpoint_every):
    """It stood still for a minute where only heartbeats tell, and another process took over."""
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "No locks available")))
    folder = tmp_path / "run"

    def lose():
        (folder / LOCK).unlink()
        (folder / LOCK).write_text(json.dumps({"host": "elsewhere", "pid": 7, "since": "now"}))
        found.update(snapshot(folder))

    found = {}
    recipe = tiny_recipe(folder, shared_parts, accumulate=1, log_every=1, checkpoint_every=checkpoint_every)
    with pytest.raises(UserError, match=r"stood still.*process 7 on elsewhere.*Nothing more is written"):
        run(recipe, callbacks=[AtStep(3, lose)])
    assert snapshot(folder) == found
    assert [record["step"] for record in records(folder) if record["split"] == "train"] == [1, 2, 3]


@pytest.mark.parametrize(
    ("resume", "message"),
    [(False, "holds a run of this recipe already"), (True, "another process has just trained here.*start again")],
)
def test_who_trained_between_the_look_and_the_lock_is_noticed(tmp_path, shared_parts, monkeypatch, resume, message):
    recipe = tiny_recipe(tmp_path / "run", shared_parts, max_steps=2, accumulate=1)
    recipe.optimizer.decay_end_step = 2
    if resume:
        run(replace(recipe, trainer=replace(recipe.trainer, max_steps=1)))

    def late(folder):
        monkeypatch.undo()
        run(recipe, resume=resume)
        return begin.hold(folder)

    monkeypatch.setattr(begin, "hold", late)
    with pytest.raises(UserError, match=message):
        run(recipe, resume=resume)
    assert list_checkpoints(tmp_path / "run")[-1].step == 2
    run(recipe, resume=True)


def test_a_read_only_folder_is_told_as_before(tmp_path, shared_parts, monkeypatch):
    def denied(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(run_folder.Path, "write_bytes", denied)
    with pytest.raises(UserError, match=r"cannot be written to \(Permission denied\)"):
        run(tiny_recipe(tmp_path / "run", shared_parts))


def test_the_lock_is_looked_at_without_the_file_systems_clock_where_nothing_can_be_written(tmp_path, monkeypatch):
    (tmp_path / LOCK).write_text(json.dumps({"host": "elsewhere", "pid": 7, "since": "now"}))

    def denied(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(run_lock.Path, "touch", denied)
    with pytest.raises(UserError, match="another process trains here"):
        run_lock.check_free(tmp_path)


def test_every_checkpoint_keeps_the_recipe_that_it_was_trained_under(tmp_path, shared_parts):
    folder = tmp_path / "run"
    recipe = tiny_recipe(folder, shared_parts, max_steps=2, accumulate=1, keep_checkpoints=9)
    run(recipe)
    recipe.trainer.max_steps, recipe.optimizer.decay_end_step = 3, 3
    run(recipe, resume=True)
    stored = [yaml.safe_load(checkpoint.recipe.read_text()) for checkpoint in list_checkpoints(folder)]
    assert [(one["trainer"]["max_steps"], one["optimizer"]["decay_end_step"]) for one in stored] == [(2, None), (3, 3)]
    assert stored[-1] == run_folder.as_dict(recipe)
    assert not list((folder / "model").rglob("recipe.yaml"))


def test_what_an_attempt_prepared_is_made_anew_for_another_recipe(tmp_path, shared_parts, monkeypatch):
    """Nothing was trained, yet the folder was refused; and a tokenizer of other ids must not be taken over."""
    folder = tmp_path / "run"
    recipe = tiny_recipe(folder, shared_parts, max_steps=1, accumulate=1)
    recipe.model.codec = replace(recipe.model.codec, path=None)
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(Bagpiper, "training_step", lambda *_: 1 / 0)
        run(recipe)
    assert TextTokenizer.load(folder / "tokenizer").size == 300
    codec = (folder / "codec.safetensors").stat().st_mtime_ns
    recipe.model.llm = replace(recipe.model.llm, tokenizer=TokenizerConfig(vocab_size=280))
    heard = Console(record=True, width=400)
    run(recipe, console=heard)
    said = heard.export_text()
    assert said.count("nothing was trained here yet") == 1
    assert "model.llm.tokenizer.vocab_size (300 -> 280)" in said
    assert "tokenizer, codec.safetensors, fingerprint.json, metrics.jsonl" in said
    assert load_model(folder / "model").tokenizer.size == TextTokenizer.load(folder / "tokenizer").size == 280
    assert (folder / "codec.safetensors").stat().st_mtime_ns != codec
    assert [record["split"] for record in records(folder)].count("data") == 1


def test_a_corpus_of_another_recipe_is_made_anew_where_nothing_was_trained(tmp_path, shared_parts, monkeypatch):
    """The way out of "holds another corpus" was to remove it by hand."""
    folder = tmp_path / "run"
    recipe = tiny_recipe(folder, shared_parts, max_steps=1, accumulate=1)
    recipe.data.soundscapes = replace(recipe.data.soundscapes, folder=None, train=4, valid=2, test=0)
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(Bagpiper, "training_step", lambda *_: 1 / 0)
        run(recipe)
    recipe.data.soundscapes = replace(recipe.data.soundscapes, train=5)
    run(recipe)
    assert len((folder / "corpus" / "train.jsonl").read_text().splitlines()) == 5


def test_other_ranks_wait_until_the_main_one_has_cleared_the_folder(tmp_path, shared_parts, monkeypatch):
    folder = tmp_path / "run"
    recipe = tiny_recipe(folder, shared_parts)
    run_folder.write_records(folder, recipe)
    other = replace(recipe, seed=7)
    waits = []

    class Clock:
        monotonic = time.monotonic

        @staticmethod
        def sleep(seconds):
            waits.append(seconds)
            if len(waits) == 3:
                run_folder.write_records(folder, other)

    monkeypatch.setattr(begin, "time", Clock)
    begin.begin(other, folder, False, Console(quiet=True), None, is_main=False)
    assert len(waits) == 3
    begin.begin(other, folder, False, Console(quiet=True), None, is_main=False)
    assert len(waits) == 3
