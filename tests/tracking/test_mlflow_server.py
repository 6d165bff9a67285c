"""A tracking server that is away, dies, hangs or wants a password: training does not notice, and nothing is lost."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bagpiper.recipe.settings import TrackingSettings
from bagpiper.tracking import mlflow_store
from bagpiper.tracking.mlflow_store import share_files

LOGIN = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")


@pytest.fixture(autouse=True)
def without_login(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LOGIN:
        monkeypatch.delenv(name, raising=False)


def until(condition: Callable[[], bool]) -> None:
    """Wait for a thread."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def files_at(server: Any) -> set[str]:
    return {path.partition("/")[2] for path in server.files}


def test_a_server_that_is_away_all_the_time_costs_no_time_and_gets_all_later(folder: Any, server: Any) -> None:
    """Defect: every checkpoint waited a minute, and what was recorded never arrived."""
    began = time.monotonic()
    store = folder.begin(server.uri)
    folder.write(1, 2, 3)
    folder.listen(2)
    until(lambda: len(folder.told) == 1)
    complaint = store.close("FINISHED")
    assert time.monotonic() - began < 5
    assert folder.told == [
        f"MLflow at {server.uri} is away (Connection refused). The run goes on; its records and files are kept in "
        f"{folder.path} and sent when MLflow is back"
    ]
    assert complaint == (
        f"MLflow at {server.uri} lacks 3 records and 2 files (Connection refused). They are kept in {folder.path}; "
        f"`bagpiper train --resume {folder.path}` sends them"
    )
    server.start()
    assert folder.begin(server.uri).close("FINISHED") is None
    assert server.steps("train/loss") == [1, 2, 3]
    assert files_at(server) == {"recipe.yaml", "listening/step-000002/caption0.wav"}
    (run,) = server.runs.values()
    assert run["info"]["status"] == "FINISHED"


def test_a_server_that_comes_while_the_run_goes_on_gets_everything(folder: Any, server: Any) -> None:
    store = folder.begin(server.uri)
    folder.write(1, 2)
    until(lambda: len(folder.told) == 1)
    server.start()
    until(lambda: len(folder.told) == 2)
    folder.write(3)
    assert store.close("FINISHED") is None
    assert server.steps("train/loss") == [1, 2, 3]
    assert "is away" in folder.told[0]
    assert folder.told[1:] == [f"MLflow at {server.uri} is back and has what was recorded meanwhile"]


@pytest.mark.parametrize("how", ["gone", "fails"])
def test_a_server_that_dies_and_comes_back_has_every_step_once(folder: Any, server: Any, how: str) -> None:
    def die() -> None:
        server.stop() if how == "gone" else setattr(server, "status", 500)

    def live() -> None:
        server.start() if how == "gone" else setattr(server, "status", 200)

    server.start()
    store = folder.begin(server.uri)
    folder.write(1)
    until(lambda: server.steps("train/loss") == [1])
    die()
    folder.write(2)
    folder.listen(2)
    until(lambda: len(folder.told) == 1)
    live()
    until(lambda: server.steps("train/loss") == [1, 2])
    folder.write(3)
    assert store.close("KILLED") is None
    assert server.steps("train/loss") == [1, 2, 3] and len(folder.told) == 2
    assert "listening/step-000002/caption0.wav" in files_at(server)
    assert len(server.runs) == 1


def test_a_server_that_hangs_does_not_hold_the_end(folder: Any, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_store, "_SERVER_PATIENCE", 0.5)
    server.start()
    server.hangs = True
    store = folder.begin(server.uri)
    folder.write(1)
    until(lambda: bool(server.logins))
    began = time.monotonic()
    complaint = store.close("FINISHED")
    assert 0.4 < time.monotonic() - began < 3
    assert complaint is not None and "lacks 1 record and 1 file (no answer)" in complaint


def test_a_slow_server_is_waited_for_as_long_as_it_answers(
    folder: Any, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_store, "_SERVER_PATIENCE", 0.8)
    answer = server.answer

    def slow(*arguments: Any) -> Any:
        time.sleep(0.3)
        return answer(*arguments)

    server.answer = slow
    server.start()
    folder.write(1)
    began = time.monotonic()
    assert folder.begin(server.uri).close("FINISHED") is None
    assert time.monotonic() - began > 0.8, "the test shows nothing"


def test_another_server_gets_a_run_with_everything(folder: Any, server: Any) -> None:
    folder.write(1, 2)
    assert folder.begin().close("KILLED") is None
    server.start()
    folder.write(3)
    assert folder.begin(server.uri).close("FINISHED") is None
    assert server.steps("train/loss") == [1, 2, 3] and "recipe.yaml" in files_at(server)
    record = json.loads((folder.path / "mlflow_run.json").read_text())
    assert record["uri"] == server.uri and record["run_id"] in server.runs


# -- passwords -------------------------------------------------------------------------------------------------------


def with_password(server: Any) -> str:
    return str(server.uri.replace("//", "//me:hunter2@"))


def header(login: str) -> str:
    return f"Basic {base64.b64encode(login.encode()).decode()}"


def test_a_password_is_used_and_stands_nowhere(folder: Any, server: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """MLflow itself prints the address of its server when a run ends."""
    uri = with_password(server)
    store = folder.begin(uri, params={"tracking.uri": uri}, tags={"where": uri}, run_name=uri)
    until(lambda: len(folder.told) == 1)
    server.start()
    until(lambda: len(folder.told) == 2)
    folder.write(1)
    assert store.close("FINISHED") is None
    assert server.logins == {header("me:hunter2")}
    written = [path.read_bytes().decode("latin1") for path in folder.path.rglob("*") if path.is_file()]
    shown = [*written, *folder.told, store.page(), json.dumps(server.runs), *capfd.readouterr()]
    assert [text for text in shown if "hunter2" in text] == []


def test_a_masked_address_works_with_a_login_from_the_environment(
    folder: Any, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.start()
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2")
    folder.write(1)
    assert folder.begin(server.uri.replace("//", "//***@")).close("FINISHED") is None
    assert server.logins == {header("me:hunter2")} and server.steps("train/loss") == [1]


def test_a_masked_address_without_a_login_keeps_the_records_and_says_how_to_go_on(folder: Any, server: Any) -> None:
    server.start()
    store = folder.begin(server.uri.replace("//", "//***@"))
    folder.write(1)
    until(lambda: len(folder.told) == 1)
    complaint = store.close("FINISHED")
    assert "give tracking.uri=... again, or set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in folder.told[0]
    assert complaint is not None and "lacks 1 record and 1 file" in complaint
    assert server.logins == set(), "nobody was asked with a wrong password"
    assert folder.begin(with_password(server)).close("FINISHED") is None
    assert server.steps("train/loss") == [1]


# -- files of a run that has ended -----------------------------------------------------------------------------------


def share(folder: Any, uri: str | None) -> None:
    (folder.path / "eval.json").write_text("{}")
    share_files(folder.path, TrackingSettings(uri=uri), ["eval.json", "eval.txt"], folder.told.append)


def test_files_of_an_ended_run_arrive_and_nothing_else_changes(folder: Any, server: Any) -> None:
    server.start()
    assert folder.begin(server.uri).close("FINISHED") is None
    folder.write(1)  # of another process, which sends it itself
    share(folder, server.uri)
    (run,) = server.runs.values()
    assert run["info"]["status"] == "FINISHED" and server.steps("train/loss") == []
    assert files_at(server) == {"recipe.yaml", "eval.json"} and folder.told == []


@pytest.mark.parametrize("state", ["away", "hangs", "forgotten"])
def test_a_server_that_cannot_take_them_is_told(
    folder: Any, server: Any, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    monkeypatch.setattr(mlflow_store, "_SERVER_PATIENCE", 0.5)
    server.start()
    folder.begin(server.uri).close("FINISHED")
    if state == "away":
        server.stop()
    server.hangs = state == "hangs"
    if state == "forgotten":
        server.runs.clear()
    share(folder, server.uri)
    why = {"away": "Connection refused", "hangs": "no answer", "forgotten": "the run of this folder is not there"}
    assert folder.told == [
        f"MLflow at {server.uri} lacks eval.json, eval.txt ({why[state]}); "
        f"`bagpiper train --resume {folder.path}` sends them"
    ]


def test_a_folder_without_a_run_in_mlflow_asks_nobody(folder: Any, server: Any) -> None:
    server.start()
    share(folder, server.uri)
    assert server.logins == set() and folder.told == []
    assert not (Path(folder.path) / "mlflow_run.json").exists()
