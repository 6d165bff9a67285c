"""MLflow beside training: one run across resumes, no step twice, nothing that stops or holds training."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from bagpiper.errors import UserError
from bagpiper.tracking import mlflow_store
from bagpiper.tracking.mlflow_store import default_uri, flatten


def the_run(path: Path) -> tuple[MlflowClient, Any]:
    client = MlflowClient(default_uri(path))
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    return client, run


def steps(path: Path, name: str) -> list[tuple[int, float]]:
    client, run = the_run(path)
    return [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]


def kill(folder: Any, store: Any) -> None:
    """End a store's thread where it stands."""
    folder.lost = UserError("killed")
    store._thread.join()
    folder.lost = None


def test_records_parameters_and_files(folder: Any) -> None:
    store = folder.begin()
    folder.write(1, 2, **{"loss": 0.5, "loss/text": 3.0})
    folder.listen(2)
    assert store.close("FINISHED") is None
    run = the_run(folder.path)[1]
    assert run.info.status == "FINISHED"
    assert run.data.params == {"seed": "1"}
    assert steps(folder.path, "train/loss") == [(1, 0.5), (2, 0.5)]
    artifacts = folder.path / "mlartifacts" / run.info.run_id / "artifacts"
    assert (artifacts / "recipe.yaml").is_file()
    assert (artifacts / "listening" / "step-000002" / "caption0.wav").read_bytes() == b"a bell"
    assert folder.told == []


def test_one_run_across_resumes_and_no_step_twice(folder: Any) -> None:
    folder.write(1, 2, 3)
    kill(folder, folder.begin())
    folder.write(2, 3, 4, value=2.0)  # the file has 2 and 3
    folder.write(3, split="valid")
    assert folder.begin(params={"trainer.max_steps": "9"}).close("FINISHED") is None
    assert steps(folder.path, "train/loss") == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0)]
    assert steps(folder.path, "valid/loss") == [(3, 1.0)]


def test_what_a_killed_process_had_not_sent_is_sent_by_the_next(folder: Any) -> None:
    """Records once waited in memory, and a checkpoint waited for them."""
    store = folder.begin()
    store.close("KILLED")
    folder.write(1, 2)
    folder.listen(2)
    folder.begin().close("FINISHED")
    assert [step for step, _ in steps(folder.path, "train/loss")] == [1, 2]
    client, run = the_run(folder.path)
    assert [item.path for item in client.list_artifacts(run.info.run_id, "listening")] == ["listening/step-000002"]


def test_a_folder_that_another_process_has_is_left_to_it(folder: Any) -> None:
    folder.lost = UserError("another process trains here")
    folder.write(1)
    assert folder.begin().close("FAILED") is None
    assert not (folder.path / "mlflow_run.json").exists() and folder.told == []


def test_killed_between_making_the_run_and_noting_its_id_finds_it_again(folder: Any) -> None:
    folder.begin().close("KILLED")
    path = folder.path / "mlflow_run.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({"key": record["key"]}))
    folder.begin().close("FINISHED")
    assert the_run(folder.path)[1].info.run_id == record["run_id"]


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"key": "a", "run_id": "0123456789abcdef0123456789abcdef"}'])
def test_a_record_that_tells_of_no_run_there_begins_another(folder: Any, damage: str) -> None:
    (folder.path / "mlflow_run.json").write_text(damage)
    folder.write(1)
    assert folder.begin().close("FINISHED") is None
    assert json.loads((folder.path / "mlflow_run.json").read_text())["run_id"] == the_run(folder.path)[1].info.run_id


def test_a_changed_parameter_of_a_resumed_run_becomes_a_tag(folder: Any) -> None:
    folder.begin().close("KILLED")
    assert folder.begin(params={"seed": "2"}).close("FINISHED") is None
    run = the_run(folder.path)[1]
    assert run.data.params["seed"] == "1"
    assert run.data.tags["resumed.seed"] == "2"


def test_counts_of_the_data_are_tags_and_follow_losses(folder: Any) -> None:
    """As metrics they were charts of one point, on the first screen before the loss."""
    folder.write(0, split="data", **{"skipped": 0.0, "训练/read": 8.0})
    folder.write(4, split="data", **{"skipped": 0.0, "训练/read": 8.0, "训练/lost_while_training": 1234567.0})
    folder.write(1)
    folder.begin().close("FINISHED")
    run = the_run(folder.path)[1]
    counts = {name: value for name, value in run.data.tags.items() if name.startswith("data.")}
    assert counts == {"data.skipped": "0", "data.训练/read": "8", "data.训练/lost_while_training": "1234567"}
    assert list(run.data.metrics) == ["train/loss"]


def test_names_that_mlflow_refuses_do_not_take_a_batch_with_them(folder: Any) -> None:
    names = ["norm#1", "norm_1", "a//b", "../c", "百分比%", "x" * 300]
    folder.write(1, split="log", **dict.fromkeys(names, 2.0))
    folder.write(1)
    assert folder.begin(params={"a#b": "1", "a_b": "2"}).close("FINISHED") is None
    run = the_run(folder.path)[1]
    assert len(run.data.metrics) == len(names) + 1, "each has a name of its own"
    assert run.data.params == {"a_b-2": "1", "a_b": "2"}


def test_what_mlflow_refuses_is_told_and_does_not_stand_in_the_way(folder: Any, server: Any) -> None:
    server.start()
    server.refuses = "poison"
    folder.write(1)
    complaint = folder.begin(server.uri, params={"poison": "1"}).close("FINISHED")
    assert complaint == (
        "MLflow refused 1 params: RestException: INVALID_PARAMETER_VALUE: no poison; metrics.jsonl has every record"
    )
    assert server.steps("train/loss") == [1]


def test_a_database_that_cannot_be_written_to_is_told_once_and_stops_nothing(folder: Any) -> None:
    folder.write(1, 2, 3)
    store = folder.begin("sqlite:////proc/no/such/folder/mlflow.db")
    complaint = store.close("FINISHED")
    assert complaint is not None and "lacks 3 records and 1 file" in complaint
    assert f"`bagpiper train --resume {folder.path}` sends them" in complaint


def test_a_run_that_was_deleted_in_mlflow_says_so(folder: Any) -> None:
    folder.begin().close("KILLED")
    client, run = the_run(folder.path)
    client.delete_run(run.info.run_id)
    complaint = folder.begin().close("FINISHED")
    assert complaint is not None and "is deleted there; restore it in MLflow" in complaint


def test_the_page_opens_at_the_sounds_of_the_run(folder: Any) -> None:
    """MLflow's page opens in a view that shows no runs; the address asks for the one that does."""
    store = folder.begin()
    store.close("FINISHED")
    info = the_run(folder.path)[1].info
    where = f"#/experiments/{info.experiment_id}/runs/{info.run_id}/artifacts?workflowType=machine_learning"
    command, address = store.page().split(", then ")
    assert shlex.split(command) == ["mlflow", "ui", "--backend-store-uri", default_uri(folder.path)]
    assert address == f"http://127.0.0.1:5000/{where}"


@pytest.mark.parametrize(
    ("uri", "page"),
    [
        ("http://127.0.0.1:1/", "http://127.0.0.1:1"),
        ("https://me:hunter2@host/mlflow?token=x", "https://host/mlflow"),
        (
            "postgresql://me:hunter2@host/db",
            "mlflow ui --backend-store-uri 'postgresql://***@host/db', then http://127.0.0.1:5000",
        ),
    ],
)
def test_the_page_of_a_store_that_does_not_answer(folder: Any, uri: str, page: str) -> None:
    assert folder.store(uri).page() == page


def test_the_environment_is_put_back(folder: Any, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    before = dict(os.environ)
    seen: dict[str, str] = {}
    connect = mlflow_store.connect

    def look(*arguments: Any) -> Any:
        seen.update(os.environ)
        return connect(*arguments)

    monkeypatch.setattr(mlflow_store, "connect", look)
    folder.begin(server.uri).close("FINISHED")
    assert seen["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "1" and seen["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert dict(os.environ) == before


def test_flatten() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": None}}, "e": [1]}) == {"a.b": "1", "a.c.d": "None", "e": "[1]"}
