"""A step with numbers that are not finite is not taken: what the run has stays good, and the examples are named."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from lightning import Callback
from runs import tiny_recipe
from tiny import noise, tiny_batch, tiny_model

from bagpiper.errors import Diverged
from bagpiper.recipe.load import dump_recipe
from bagpiper.recipe.settings import SourceSettings
from bagpiper.run import run
from bagpiper.training.checkpoints import list_checkpoints
from bagpiper.weights.model_folder import load_model


def records(folder):
    """Lines of ``metrics.jsonl``, which is JSON without NaN."""

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def loud_sources(folder, bad=None):
    """Eight described clips; that of number ``bad`` has samples of 1e20, finite in the file and infinite as power."""
    lines = []
    for number in range(8):
        wave = noise(0.5, number) * (1e21 if number == bad else 1.0)
        soundfile.write(folder / f"{number}.wav", wave.astype(np.float32), 16000, subtype="FLOAT")
        content = [{"type": "audio", "audio": f"{number}.wav"}]
        turns = [{"role": "user", "content": content}, {"role": "assistant", "content": f"noise number {number}"}]
        lines.append(json.dumps({"id": f"clip{number}", "messages": turns}))
    (folder / "clips.jsonl").write_text("\n".join(lines))
    return [SourceSettings(str(folder / "clips.jsonl"))]


def recipe_of(folder, shared_parts, sources, **trainer):
    settings = {
        "max_steps": 8,
        "accumulate": 1,
        "log_every": 1,
        "checkpoint_every": 1,
        "keep_checkpoints": 99,
        **trainer,
    }
    recipe = tiny_recipe(folder, shared_parts, **settings)
    recipe.data.sources, recipe.data.soundscapes = sources, None
    recipe.data.token_budget, recipe.data.max_seconds, recipe.data.cfg_dropout = 60, 1.0, 0.0
    recipe.stage.train_encoder = False
    return recipe


def test_a_clip_of_1e20_stops_the_run_before_the_step_and_is_named(tmp_path, shared_parts):
    """It once trained on to the end, and every checkpoint that was kept held NaN."""
    recipe = recipe_of(tmp_path / "run", shared_parts, loud_sources(tmp_path, bad=3))
    with pytest.raises(
        Diverged, match=r"step (\d+) is not taken: the loss of these examples is not finite: clip3; "
    ) as told:
        run(recipe)
    step = int(str(told.value).split()[1])
    kept = [checkpoint.step for checkpoint in list_checkpoints(tmp_path / "run")]
    assert kept == list(range(1, step)), "all from before"
    assert f"step {step - 1}" in str(told.value) if kept else "no checkpoint" in str(told.value)
    for checkpoint in list_checkpoints(tmp_path / "run"):
        assert all(p.isfinite().all() for p in load_model(checkpoint.model).parameters())
    assert [r["step"] for r in records(tmp_path / "run") if r["split"] == "train"] == kept


def test_a_wild_learning_rate_ends_with_status_1_and_one_message(tmp_path, shared_parts):
    recipe = recipe_of(tmp_path / "run", shared_parts, loud_sources(tmp_path), max_steps=60, checkpoint_every=0)
    recipe.optimizer = replace(recipe.optimizer, lr=1e30, warmup_steps=0)
    (tmp_path / "wild.yaml").write_text(dump_recipe(recipe))
    done = subprocess.run(
        [sys.executable, "-m", "bagpiper.cli.main", "train", str(tmp_path / "wild.yaml")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: step 2 is not taken: ")
    assert "no checkpoint" in done.stderr and "optimizer.lr" in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "run" / "model").exists()


class Poison(Callback):
    """Makes the gradient of one step infinite, though its loss is finite."""

    def on_after_backward(self, trainer, pl_module):
        if trainer.global_step == 2:
            pl_module.adaptor.hidden.weight.grad.fill_(float("inf"))


def test_a_gradient_that_is_not_finite_stops_too_and_the_run_goes_on_from_the_last_checkpoint(tmp_path, shared_parts):
    sources = loud_sources(tmp_path)
    with pytest.raises(Diverged, match="step 3 is not taken: its gradient is not finite.*its examples: clip"):
        run(recipe_of(tmp_path / "run", shared_parts, sources, max_steps=4), callbacks=[Poison()])
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path / "run")] == [1, 2]
    run(recipe_of(tmp_path / "run", shared_parts, sources, max_steps=4), resume=True)
    whole = run(recipe_of(tmp_path / "whole", shared_parts, sources, max_steps=4)).folder
    ours, theirs = (load_model(folder / "model").state_dict() for folder in (tmp_path / "run", whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_examples_of_rows():
    model = tiny_model()
    batch = tiny_batch(model, "hst")
    starts = batch.spans.cu_seqlens.tolist()
    assert batch.examples_of(torch.tensor([starts[1]])) == ["s1"]
    assert batch.examples_of(torch.tensor([starts[3] - 1, starts[1] - 1, 0])) == ["h0", "t2"]
    assert batch.examples_of(torch.tensor([], dtype=torch.int64)) == []
