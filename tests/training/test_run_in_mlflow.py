"""Whole runs and MLflow: away, asked for a password, moved, evaluated."""

from __future__ import annotations

import io
import json
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_mlflow import FakeMlflow
from lightning import Callback
from mlflow import MlflowClient
from rich.console import Console
from runs import Shared, tiny_recipe, use_template

from bagpiper import api
from bagpiper import run as composing
from bagpiper.callbacks.checkpoint import Stopped
from bagpiper.data.ledger import LOST
from bagpiper.errors import UserError
from bagpiper.parity.report import ParityReport
from bagpiper.recipe.load import load_recipe
from bagpiper.recipe.settings import Recipe
from bagpiper.run import run
from bagpiper.tracking.mlflow_store import default_uri
from bagpiper.training.run_folder import drop_records, read_recipe


@pytest.fixture
def server() -> Iterator[FakeMlflow]:
    made = FakeMlflow()
    yield made
    made.stop()


def tracked(folder: Path, shared: Shared, **trainer: int) -> Recipe:
    recipe = tiny_recipe(folder, shared, **{"max_steps": 2, "log_every": 1, **trainer})
    recipe.tracking.enabled = True
    return recipe


def the_run(folder: Path) -> tuple[MlflowClient, Any]:
    client = MlflowClient(default_uri(folder))
    (found,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    return client, found


def artifacts(folder: Path) -> set[str]:
    client, found = the_run(folder)
    return {item.path for item in client.list_artifacts(found.info.run_id)}


def test_a_server_that_is_down_takes_no_time_and_gets_everything_from_a_resume(
    tmp_path: Path, shared_parts: Shared, server: FakeMlflow
) -> None:
    """Defect: 3 steps with a checkpoint each took 4 minutes, and what was recorded was lost for MLflow."""
    recipe = tracked(tmp_path / "run", shared_parts, max_steps=3, checkpoint_every=1)
    recipe.tracking.uri = server.uri
    told = io.StringIO()
    began = time.monotonic()
    run(recipe, console=Console(file=told, width=400))
    assert time.monotonic() - began < 20
    assert told.getvalue().count("is away") == 1
    assert "lacks 4 records" in told.getvalue() and f"`bagpiper train --resume {tmp_path / 'run'}`" in told.getvalue()
    server.start()
    run(recipe, resume=True, console=Console(file=io.StringIO()))
    assert server.steps("train/loss") == [1, 2, 3]
    files = {path.partition("/")[2] for path in server.files}
    assert {"recipe.yaml", "environment.json", "listening/step-000003/answers.json"} <= files
    (found,) = server.runs.values()
    assert found["info"]["status"] == "FINISHED"


def test_a_password_stands_in_no_file_of_a_run_and_the_run_goes_on_without(
    tmp_path: Path, shared_parts: Shared, server: FakeMlflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, told = tmp_path / "run", io.StringIO()
    console = Console(file=told, width=400)
    recipe = tracked(folder, shared_parts, checkpoint_every=1)
    recipe.tracking.uri = server.uri.replace("//", "//me:hunter2@")
    server.start()
    monkeypatch.setattr("sys.argv", ["bagpiper", "train", "x.yaml", f"tracking.uri={recipe.tracking.uri}"])
    run(recipe, console=console)
    assert server.steps("train/loss") == [1, 2]
    assert recipe.tracking.uri is not None and "hunter2" in recipe.tracking.uri, "it is still needed here"
    resumed = load_recipe(str(folder), [f"run_dir={folder}"])
    assert resumed.tracking.uri == server.uri.replace("//", "//***@")
    assert read_recipe(folder) == read_recipe(folder / "checkpoints" / "step-000002" / "resume")
    run(resumed, resume=True, console=console)
    assert "give tracking.uri=... again" in told.getvalue()
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert [path for path in files if b"hunter2" in path.read_bytes()] == []
    sent = json.dumps(server.runs) + "".join(data.decode("latin1") for data in server.files.values())
    assert "hunter2" not in told.getvalue() + sent


def test_other_secrets_of_a_recipe_must_be_given_again(tmp_path: Path, shared_parts: Shared) -> None:
    folder = tmp_path / "run"
    recipe = tracked(folder, shared_parts)
    recipe.tracking.enabled = False
    recipe.listening.captions = ["http://me:hunter2@host"]
    run(recipe, console=Console(file=io.StringIO()))
    with pytest.raises(UserError, match=r"keeps no secrets; give them again, listening\.captions=\.\.\.$"):
        run(load_recipe(str(folder), [f"run_dir={folder}"]), resume=True)


def test_a_moved_run_goes_on_in_its_own_database(tmp_path: Path, shared_parts: Shared, mlflow_template: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    use_template(old, mlflow_template)
    recipe = tracked(old, shared_parts)
    recipe.optimizer.decay_end_step = 3
    run(recipe, console=Console(file=io.StringIO()))
    shutil.move(old, new)
    longer = replace(recipe, run_dir=str(new), trainer=replace(recipe.trainer, max_steps=3))
    run(longer, resume=True, console=Console(file=io.StringIO()))
    assert not old.exists()
    client, found = the_run(new)
    sounds = {item.path for item in client.list_artifacts(found.info.run_id, "listening")}
    assert sounds == {"listening/step-000002", "listening/step-000003"}
    assert found.info.artifact_uri.startswith(new.as_uri())


def test_a_run_that_goes_back_by_another_plan_is_another_one_in_mlflow(
    tmp_path: Path, shared_parts: Shared, mlflow_template: Path
) -> None:
    """MLflow keeps every step that it was told, and kept those of the former plan in place of the new ones."""
    folder, quiet = tmp_path / "run", Console(file=io.StringIO())
    use_template(folder, mlflow_template)
    recipe = tracked(folder, shared_parts, max_steps=4, checkpoint_every=2)
    recipe.optimizer.decay_end_step = 4
    run(recipe, console=quiet)
    run_id = the_run(folder)[1].info.run_id
    shutil.rmtree(folder / "checkpoints" / "step-000004")
    drop_records(folder, 4)
    run(recipe, resume=True, console=quiet)
    assert the_run(folder)[1].info.run_id == run_id, "by the same plan it is the same run"
    shutil.rmtree(folder / "checkpoints" / "step-000004")
    drop_records(folder, 2)
    run(recipe, resume=True, console=quiet)
    client = MlflowClient(default_uri(folder))
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert len(runs) == 2
    for found in runs:
        assert [m.step for m in client.get_metric_history(found.info.run_id, "train/loss")] == [1, 2, 3, 4]


def test_a_run_is_finished_when_it_is_evaluated(
    tmp_path: Path, shared_parts: Shared, mlflow_template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Defect: MLflow was closed before the evaluation, whose figures it never got."""
    folder = tmp_path / "run"
    use_template(folder, mlflow_template)
    recipe = tracked(folder, shared_parts)
    recipe.eval = replace(recipe.eval, at_end=True, clips=2, cycles=0)
    evaluate, during = composing.evaluate, []

    def watched(*arguments: Any, **options: Any) -> Any:
        result = evaluate(*arguments, **options)
        during.append(the_run(folder)[1].info.status)
        return result

    monkeypatch.setattr(composing, "evaluate", watched)
    run(recipe, console=Console(file=io.StringIO()))
    assert during == ["RUNNING"] and the_run(folder)[1].info.status == "FINISHED"
    assert {"eval.json", "eval.txt"} <= artifacts(folder)


@pytest.mark.parametrize(("error", "status"), [(UserError("no corpus"), "FAILED"), (KeyboardInterrupt(), "KILLED")])
def test_a_run_whose_evaluation_ends_early_is_not_finished(
    tmp_path: Path,
    shared_parts: Shared,
    mlflow_template: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    status: str,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    folder = tmp_path / "run"
    use_template(folder, mlflow_template)
    recipe = tracked(folder, shared_parts, max_steps=1)
    recipe.eval = replace(recipe.eval, at_end=True)
    monkeypatch.setattr(composing, "evaluate", fail)
    with pytest.raises(type(error)):
        run(recipe, console=Console(file=io.StringIO()))
    assert the_run(folder)[1].info.status == status


def test_a_run_that_is_refused_leaves_no_run_in_mlflow(tmp_path: Path, shared_parts: Shared) -> None:
    """MLflow once began before the data were read, and its run stayed RUNNING for ever."""
    recipe = tracked(tmp_path / "run", shared_parts)
    recipe.data.token_budget = 3
    with pytest.raises(UserError):
        run(recipe, console=Console(file=io.StringIO()))
    assert not (tmp_path / "run" / "mlflow_run.json").exists()


def test_what_is_measured_later_is_shown_beside_the_metrics(
    tmp_path: Path, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)
    quiet = Console(file=io.StringIO())
    api.evaluate(folder, clips=2, cycles=0, console=quiet)
    assert {"eval.json", "eval.txt", "parity.json"} <= artifacts(folder)
    monkeypatch.setattr(ParityReport, "as_json", lambda self: {"measured": "again"})
    api.parity(folder, console=quiet)
    client, found = the_run(folder)
    parity = client.download_artifacts(found.info.run_id, "parity.json", str(tmp_path))
    assert json.loads(Path(parity).read_text()) == {"measured": "again"}
    assert found.info.status == "FINISHED" and found.info.artifact_uri.startswith(folder.as_uri())


@pytest.mark.parametrize("lost", ["no record", "no database", "a broken database"])
def test_what_is_measured_later_needs_no_mlflow(tmp_path: Path, tiny_run: Path, lost: str) -> None:
    folder, told = tmp_path / "run", io.StringIO()
    shutil.copytree(tiny_run, folder)
    if lost == "no record":
        (folder / "mlflow_run.json").unlink()
    elif lost == "no database":
        (folder / "mlflow.db").unlink()
    else:
        (folder / "mlflow.db").write_bytes(b"no database at all" * 1000)
    api.evaluate(folder, clips=2, cycles=0, console=Console(file=told, width=300))
    assert (folder / "eval.json").is_file()
    assert ("lacks eval.json, eval.txt" in told.getvalue()) == (lost != "no record")
    assert (folder / "mlflow.db").is_file() == (lost != "no database"), "nothing is made only to be found empty"


class Losing(Callback):
    """Loses examples in some micro-batches, as the data module counts them."""

    def __init__(self, batches: Sequence[int], stop_at: int | None = None) -> None:
        self.batches, self.stop_at = batches, stop_at

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx in self.batches:
            trainer.datamodule.ledger.count("soundscapes-train", LOST)
        if batch_idx == self.stop_at:
            signal.raise_signal(signal.SIGTERM)


def losses(folder: Path) -> list[tuple[int, float]]:
    """Steps of the records of the data's counts, and the examples lost until then."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(r["step"], r.get(f"soundscapes-train/{LOST}", 0)) for r in records if r["split"] == "data"]


def test_counts_of_the_data_follow_what_is_lost_while_training(
    tmp_path: Path, shared_parts: Shared, mlflow_template: Path
) -> None:
    folder = tmp_path / "run"
    use_template(folder, mlflow_template)
    recipe = tracked(folder, shared_parts, max_steps=3)
    run(recipe, console=Console(file=io.StringIO()), callbacks=[Losing([0, 4, 5])])
    assert losses(folder) == [(0, 0), (1, 1), (3, 3)]
    assert the_run(folder)[1].data.tags[f"data.soundscapes-train/{LOST}"] == "3"


def test_a_stopped_run_has_counted_what_it_lost(tmp_path: Path, shared_parts: Shared) -> None:
    """They were written only by a run that came to its end."""
    recipe = tracked(tmp_path / "run", shared_parts, max_steps=3)
    recipe.tracking.enabled = False
    with pytest.raises(Stopped):
        run(recipe, console=Console(file=io.StringIO()), callbacks=[Losing([1], stop_at=1)])
    assert losses(tmp_path / "run") == [(0, 0), (1, 1)]
