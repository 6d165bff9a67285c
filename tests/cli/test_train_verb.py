"""`bagpiper train`."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from runs import tiny_recipe
from typer.testing import CliRunner

from bagpiper.cli.train import add_verbs
from bagpiper.errors import UserError
from bagpiper.model import Bagpiper
from bagpiper.recipe.load import dump_recipe
from bagpiper.training.checkpoints import list_checkpoints

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def recipe_file(tmp_path, shared_parts):
    path = tmp_path / "tiny.yaml"
    path.write_text(dump_recipe(tiny_recipe(tmp_path / "run", shared_parts)))
    return path


def call(*arguments):
    app = typer.Typer()
    app.callback()(lambda: None)
    add_verbs(app)
    return CliRunner().invoke(app, ["train", *map(str, arguments)])


def refused(*arguments) -> str:
    error = call(*arguments).exception
    assert isinstance(error, UserError), error
    return str(error)


def test_trains_and_ends_with_answers_sounds_and_places(recipe_file, tmp_path):
    result = call(recipe_file, "trainer.max_steps=2")
    assert result.exit_code == 0, result.output
    assert result.output.count("\nheard ") == 3
    assert result.output.count("\nrendered ") == 3
    assert f"run: {tmp_path / 'run'}" in result.output
    assert f"sounds: {tmp_path / 'run' / 'listening'}" in result.output
    assert len(list((tmp_path / "run" / "listening" / "step-000002").glob("*.wav"))) == 3
    assert (tmp_path / "run" / "model" / "config.json").exists()


def test_resume_takes_its_recipe_from_the_run_and_overrides_from_the_line(recipe_file, tmp_path):
    assert call(recipe_file, "trainer.max_steps=2", "optimizer.decay_end_step=4").exit_code == 0
    result = call("--resume", tmp_path / "run", "trainer.max_steps=3")
    assert result.exit_code == 0, result.output
    assert list_checkpoints(tmp_path / "run")[-1].step == 3
    assert "cannot change seed" in refused("--resume", tmp_path / "run", "seed=5")


def test_dry_run_writes_nothing(recipe_file, tmp_path):
    result = call(recipe_file, "--dry-run")
    assert result.exit_code == 0
    assert "ready to train for 6 steps" in result.output
    assert not (tmp_path / "run").exists()


def test_user_errors(recipe_file, tmp_path):
    assert "name a recipe" in refused()
    assert "not a run folder" in refused("--resume", tmp_path / "nothing")
    assert "has its own recipe" in refused(recipe_file, "--resume", tmp_path)


def test_sigterm_saves_and_is_not_taken_for_the_end(recipe_file, tmp_path, monkeypatch):
    original = Bagpiper.training_step

    def step(self, batch, batch_idx):
        if batch_idx == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(Bagpiper, "training_step", step)
    result = call(recipe_file)
    assert result.exit_code == 143, "0 would tell a scheduler, or `a && b`, that the run is finished"
    assert f"bagpiper train --resume {tmp_path / 'run'}" in result.output
    assert [c.step for c in list_checkpoints(tmp_path / "run")] == [2]


def test_ctrl_c_saves_and_prints_the_command_that_goes_on(recipe_file, tmp_path):
    command = [sys.executable, "-m", "bagpiper.cli.main", "train", str(recipe_file), "trainer.max_steps=100000"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step ") or time.monotonic() > deadline:
                break
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert f"bagpiper train --resume {tmp_path / 'run'}" in output
    assert "Traceback" not in errors
    assert len(list_checkpoints(tmp_path / "run")) == 1


def test_a_run_whose_parity_check_fails_ends_with_exit_status_1(recipe_file, tmp_path, monkeypatch):
    """The model is there all the same; only who asks for more than training must know."""
    from bagpiper import run as composing
    from bagpiper.parity.report import STEP, Comparison, ParityReport

    def finish(comparison):
        report = ParityReport(("a",), "float32", 1, 1.0, (comparison,))
        monkeypatch.setattr(composing, "run", lambda *_: composing.Finished(tmp_path / "run", [], None, report))
        return call(recipe_file)

    assert finish(Comparison(STEP, 1e-6, 1e-4)).exit_code == 0
    failed = finish(Comparison(STEP, 1.0, 1e-4))
    assert failed.exit_code == 1
    assert str(tmp_path / "run" / "parity.json") in failed.output
