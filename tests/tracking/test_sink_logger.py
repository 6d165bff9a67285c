"""What callbacks of the user's log through Lightning arrives where the run's own metrics go."""

import json

from lightning import Callback
from lightning.pytorch.callbacks import LearningRateMonitor
from runs import STEPS, tiny_recipe, use_template

from bagpiper.run import run
from bagpiper.tracking.json_lines import JsonLines
from bagpiper.tracking.logger import SinkLogger
from bagpiper.tracking.mlflow_store import default_uri


class Norms(Callback):
    """Logs as a user would."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        pl_module.log("norms/adaptor", float(pl_module.adaptor.hidden.weight.norm()))


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_logs_of_callbacks_arrive_in_mlflow_and_in_the_file(tmp_path, shared_parts, mlflow_template):
    from mlflow import MlflowClient

    recipe = tiny_recipe(tmp_path / "run", shared_parts, log_every=2)
    recipe.tracking.enabled = True
    use_template(tmp_path / "run", mlflow_template)
    folder = run(recipe, callbacks=[Norms(), LearningRateMonitor()]).folder
    logged = [line for line in lines_of(folder) if line["split"] == "log"]
    rates = [line for line in logged if "lr-AdamW/pg1" in line]
    norms = [line for line in logged if "norms/adaptor" in line]
    assert len(rates) == len(norms) == STEPS // 2
    assert not any("epoch" in line for line in logged)
    client = MlflowClient(default_uri(folder))
    (found,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert {"lr-AdamW/pg1", "norms/adaptor", "train/loss"} <= set(found.data.metrics)


def test_records_of_one_step_are_told_apart_by_their_names_and_written_once(tmp_path):
    for _ in range(2):  # the second time as after a resume
        logger = SinkLogger([JsonLines(tmp_path / "metrics.jsonl").begin()], tmp_path)
        logger.log_metrics({"a": 1.0, "epoch": 0}, step=3)
        logger.log_metrics({"b": 2.0}, step=3)
        logger.log_metrics({"epoch": 0}, step=4)
    assert lines_of(tmp_path) == [
        {"step": 3, "split": "log", "a": 1.0},
        {"step": 3, "split": "log", "b": 2.0},
    ]
