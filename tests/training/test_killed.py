"""kill -9 between a checkpoint and the next log, then resume."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from runs import tiny_recipe, use_template

from bagpiper.recipe.load import dump_recipe
from bagpiper.run import run
from bagpiper.tracking.mlflow_store import default_uri
from bagpiper.training.checkpoints import list_checkpoints

CHILD = """
import os, signal, sys
from bagpiper.callbacks.metrics import MetricsLog
from bagpiper.recipe.load import load_recipe
from bagpiper.run import run

original = MetricsLog.write
def write(self, row):
    if row.split == "train" and row.step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    original(self, row)
MetricsLog.write = write
run(load_recipe(sys.argv[1]))
"""


def recipe_at(folder, shared_parts, template):
    recipe = tiny_recipe(folder, shared_parts, log_every=1, checkpoint_every=3)
    recipe.tracking.enabled = True
    use_template(folder, template)
    return recipe


@pytest.fixture(scope="module")
def killed(tmp_path_factory, shared_parts, mlflow_template):
    """A run that was killed before it wrote the row of step 5; its checkpoint is of step 3."""
    folder = tmp_path_factory.mktemp("killed")
    recipe = recipe_at(folder / "run", shared_parts, mlflow_template)
    (folder / "tiny.yaml").write_text(dump_recipe(recipe))
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder / "tiny.yaml")],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == -9, done.stderr
    assert [c.step for c in list_checkpoints(folder / "run")] == [3]
    run(recipe, resume=True)
    return folder / "run"


def test_no_row_is_written_twice_and_none_is_missing(killed):
    rows = [json.loads(line) for line in (killed / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["split"] == "train"] == [1, 2, 3, 4, 5, 6]


def test_there_is_one_mlflow_run_with_every_step_once(killed):
    from mlflow import MlflowClient

    client = MlflowClient(default_uri(killed))
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert len(runs) == 1
    assert runs[0].info.status == "FINISHED"
    for name in ("train/loss", "train/loss/text"):
        history = client.get_metric_history(runs[0].info.run_id, name)
        assert sorted(m.step for m in history) == [1, 2, 3, 4, 5, 6]


def test_it_ends_where_the_run_would_have_ended(killed, tmp_path, shared_parts, pytestconfig):
    from safetensors.torch import load_file

    if pytestconfig.getoption("--rough"):
        pytest.skip("the process that was killed did not round as this one does")
    straight = run(tiny_recipe(tmp_path / "run", shared_parts)).folder
    ours, theirs = (load_file(f / "model" / "trained.safetensors") for f in (killed, straight))
    assert all((ours[name] == theirs[name]).all() for name in theirs)
