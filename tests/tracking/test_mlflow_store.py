"""MLflow: one run across resumes, no step twice, and never an error that stops training."""

import json
import shutil

import pytest
from mlflow import MlflowClient

from bagpiper.recipe.settings import TrackingSettings
from bagpiper.tracking.mlflow_store import MlflowStore, default_uri, flatten
from bagpiper.tracking.records import Record


@pytest.fixture
def run_dir(tmp_path, mlflow_template):
    shutil.copy(mlflow_template, tmp_path / "mlflow.db")
    return tmp_path


def store_at(run_dir, **params) -> MlflowStore:
    return MlflowStore(run_dir, TrackingSettings(), run_name="tiny", params={"seed": "1", **params})


def the_run(run_dir):
    client = MlflowClient(default_uri(run_dir))
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert len(runs) == 1
    return client, runs[0]


def test_rows_parameters_and_artifacts(run_dir):
    store = store_at(run_dir)
    for step in (1, 2):
        store.write(Record(step, "train", {"loss": 1.0 / step, "loss/text": 3.0}))
    (run_dir / "recipe.yaml").write_text("version: 1\n")
    (run_dir / "listening").mkdir()
    (run_dir / "listening" / "a.txt").write_text("a bell")
    store.artifact(run_dir / "recipe.yaml")
    store.artifact(run_dir / "listening", "listening/step-2")
    assert store.close("FINISHED") is None
    client, run = the_run(run_dir)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"seed": "1"}
    assert [m.step for m in client.get_metric_history(run.info.run_id, "train/loss")] == [1, 2]
    assert (run_dir / "mlartifacts" / run.info.run_id / "artifacts" / "listening" / "step-2" / "a.txt").exists()


def test_one_run_across_resumes_and_no_step_twice(run_dir):
    first = store_at(run_dir)
    for step in (1, 2, 3):
        first.write(Record(step, "train", {"loss": 1.0}))
    first.flush()  # killed here: no close
    second = store_at(run_dir, **{"trainer.max_steps": "9"})
    for step in (2, 3, 4):
        second.write(Record(step, "train", {"loss": 2.0}))
    second.write(Record(3, "valid", {"loss": 2.0}))
    second.close("FINISHED")
    first.close("KILLED")
    client, run = the_run(run_dir)
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(m.step, m.value) for m in history] == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0)]
    assert [m.step for m in client.get_metric_history(run.info.run_id, "valid/loss")] == [3]


def test_killed_between_making_the_run_and_noting_its_id_finds_it_again(run_dir):
    store = store_at(run_dir)
    store.flush()
    record = json.loads((run_dir / "mlflow_run.json").read_text())
    (run_dir / "mlflow_run.json").write_text(json.dumps({"key": record["key"]}))
    store_at(run_dir).close("FINISHED")
    assert the_run(run_dir)[1].info.run_id == record["run_id"]


def test_a_changed_parameter_of_a_resumed_run_becomes_a_tag(run_dir):
    store_at(run_dir).close("KILLED")
    assert store_at(run_dir, seed="2").close("FINISHED") is None
    run = the_run(run_dir)[1]
    assert run.data.params["seed"] == "1"
    assert run.data.tags["resumed.seed"] == "2"


def test_the_page_opens_at_the_sounds_of_the_run(run_dir):
    """MLflow's page opens in a view that shows no runs; the address asks for the one that does."""
    store = store_at(run_dir)
    store.close("FINISHED")
    _, run = the_run(run_dir)
    where = f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}/artifacts?workflowType=machine_learning"
    assert store.page() == (f"mlflow ui --backend-store-uri {default_uri(run_dir)}, then http://127.0.0.1:5000/{where}")


@pytest.mark.parametrize(
    ("uri", "page"),
    [
        ("http://127.0.0.1:1/", "http://127.0.0.1:1"),
        (
            "sqlite:////proc/no/mlflow.db",
            "mlflow ui --backend-store-uri sqlite:////proc/no/mlflow.db, then http://127.0.0.1:5000",
        ),
    ],
)
def test_the_page_of_a_store_that_does_not_answer(tmp_path, monkeypatch, uri, page):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    store = MlflowStore(tmp_path, TrackingSettings(uri=uri), run_name="x", params={})
    assert store.close("FINISHED") is not None
    assert store.page() == page


def test_a_broken_store_is_reported_once_and_stops_nothing(tmp_path):
    settings = TrackingSettings(uri="sqlite:////proc/no/such/folder/mlflow.db")
    store = MlflowStore(tmp_path, settings, run_name="x", params={})
    for step in range(3):
        store.write(Record(step, "train", {"loss": 1.0}))
    store.flush()
    complaint = store.close("FINISHED")
    assert complaint is not None
    assert "MLflow: 4 entries could not be stored" in complaint
    assert "metrics.jsonl has every record" in complaint


def test_flatten():
    assert flatten({"a": {"b": 1, "c": {"d": None}}, "e": [1]}) == {"a.b": "1", "a.c.d": "None", "e": "[1]"}
