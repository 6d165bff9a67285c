"""Where MLflow is: folders with odd names, folders that move, addresses that lead nowhere."""

from __future__ import annotations

import json
import shlex
import shutil
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from mlflow import MlflowClient

from bagpiper.tracking.mlflow_place import AwayError, check_reachable, default_uri, follow_move, usable_uri

ODD = [
    "a b",
    "a%20b",
    "a%2Fb",
    "%",
    "a?b=c",
    "a#b",
    "a+b&c;d",
    "it's",
    'a"b',
    "a@b",
    "me:pw@x",
    "a\\b",
    "$HOME `x` ~",
    "[a]*{b}",
    "训练 é 😀",
    " edges ",
    "..a",
    "%(x)s",
    "token=1",
    "-a",
]


def sounds(path: Path, uri: str | None = None) -> dict[str, Path]:
    """Folders of sounds that MLflow finds for the only run, and where they are."""
    client = MlflowClient(uri or default_uri(path))
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    root = Path(unquote(urlsplit(run.info.artifact_uri).path))
    return {item.path: root / item.path for item in client.list_artifacts(run.info.run_id, "listening")}


@pytest.mark.parametrize("name", ODD)
def test_every_folder_holds_its_database_and_sounds_and_the_command_that_is_told_opens_it(
    folder: Any, name: str
) -> None:
    """Defect: ``?`` cut the address, and ``%20`` was read as a space."""
    folder.path = folder.path.rename(folder.path.with_name(name))
    folder.listen(2)
    folder.write(1)
    store = folder.begin()
    assert store.close("FINISHED") is None
    assert (folder.path / "mlflow.db").is_file()
    assert [path.name for path in folder.path.parent.iterdir()] == [name], "MLflow made a folder of the address"
    assert "***" not in store.page()
    told = shlex.split(store.page().rpartition(", then ")[0])
    (found,) = sounds(folder.path, told[3]).values()
    assert found.is_relative_to(folder.path / "mlartifacts") and (found / "caption0.wav").is_file()


# -- moved folders ---------------------------------------------------------------------------------------------------


def trained(folder: Any, step: int) -> None:
    folder.write(step)
    folder.listen(step)
    assert folder.begin().close("FINISHED") is None


@pytest.mark.parametrize("name", ["new", "a %20?'b"])
@pytest.mark.parametrize("how", [shutil.move, shutil.copytree])
def test_a_folder_that_was_moved_or_copied_keeps_its_sounds(folder: Any, name: str, how: Any) -> None:
    """Defect: new sounds went to the old place, which was made anew, and old ones were not found.

    All in one process, in which MLflow remembers places and keeps connections.
    """
    trained(folder, 2)
    old, new = folder.path, folder.path.parent / "elsewhere" / name
    new.parent.mkdir()
    how(old, new)
    before = sorted(old.rglob("*")) if how is shutil.copytree else []
    folder.path = new
    trained(folder, 4)
    places = sounds(new)
    assert sorted(places) == ["listening/step-000002", "listening/step-000004"]
    assert all(place.is_relative_to(new) and (place / "caption0.wav").is_file() for place in places.values())
    assert json.loads((new / "mlflow_run.json").read_text())["uri"] == default_uri(new)
    assert sorted(old.rglob("*")) == before
    if before:
        assert sorted(sounds(old)) == ["listening/step-000002"]


def test_a_new_run_where_a_moved_one_was_has_its_own_database(folder: Any, mlflow_template: Path) -> None:
    """MLflow keeps connections, and one to the moved database would be used for the new run."""
    trained(folder, 2)
    old = folder.path
    shutil.move(old, old.with_name("moved"))
    old.mkdir()
    shutil.copy(mlflow_template, old / "mlflow.db")
    folder.write(7)
    assert folder.begin().close("FINISHED") is None
    for path, step in ((old, 7), (old.with_name("moved"), 2)):
        with sqlite3.connect(path / "mlflow.db") as connection:
            assert connection.execute("SELECT DISTINCT step FROM metrics").fetchall() == [(step,)]


def test_only_rows_under_the_old_place_change(folder: Any) -> None:
    trained(folder, 2)
    old, new = folder.path, folder.path.with_name("run2")  # a name that goes on where the old one ends
    shutil.move(old, new)
    others = {"file:///data/mlartifacts", "s3://bucket/run/mlartifacts", f"{old.as_uri()}3/mlartifacts", "", None}
    with sqlite3.connect(new / "mlflow.db") as connection:
        for number, place in enumerate([*others, f"{old.as_uri()}/mlartifacts/x"]):
            connection.execute(
                "INSERT INTO experiments (experiment_id, name, artifact_location) VALUES (?, ?, ?)",
                (100 + number, f"e{number}", place),
            )
    assert follow_move(new, "bagpiper") is None
    with sqlite3.connect(new / "mlflow.db") as connection:
        rows = connection.execute("SELECT artifact_location FROM experiments WHERE experiment_id >= 100").fetchall()
    assert {place for (place,) in rows} == others | {f"{new.as_uri()}/mlartifacts/x"}


def test_a_moved_folder_that_has_lost_its_record_begins_a_run_in_its_new_place(folder: Any) -> None:
    """The experiment still has the old one."""
    trained(folder, 2)
    old, new = folder.path, folder.path.rename(folder.path.with_name("new"))
    (new / "mlflow_run.json").unlink()
    folder.path = new
    assert folder.begin().close("FINISHED") is None
    with sqlite3.connect(new / "mlflow.db") as connection:
        places = [place for (place,) in connection.execute("SELECT artifact_uri FROM runs")]
    assert len(places) == 2 and all(place.startswith(f"{new.as_uri()}/mlartifacts/") for place in places)
    assert not old.exists()


@pytest.mark.parametrize(("before", "after"), [("a", "a/b"), ("a/b", "a")])
def test_a_folder_that_moves_along_its_own_path(folder: Any, tmp_path: Path, before: str, after: str) -> None:
    aside, old, new = tmp_path / "aside", tmp_path / before, tmp_path / after
    old.parent.mkdir(exist_ok=True)
    folder.path = folder.path.rename(old)
    trained(folder, 2)
    shutil.move(old, aside)
    shutil.rmtree(tmp_path / "a", ignore_errors=True)
    new.parent.mkdir(exist_ok=True)
    folder.path = aside.rename(new)
    record = (new / "mlflow_run.json").read_text()
    for step in (4, 6):
        trained(folder, step)
        (new / "mlflow_run.json").write_text(record)  # killed before it was brought up to date
    assert len(sounds(new)) == 3 and all(place.is_relative_to(new) for place in sounds(new).values())


def test_a_database_given_by_the_user_is_left_alone(folder: Any, tmp_path: Path) -> None:
    shared = tmp_path / "shared.db"
    shutil.move(folder.path / "mlflow.db", shared)
    uri = f"sqlite:///{shared}"
    folder.begin(uri).close("FINISHED")
    folder.path = folder.path.rename(folder.path.with_name("new"))
    with sqlite3.connect(shared) as connection:
        before = connection.execute("SELECT artifact_uri FROM runs").fetchall()
        folder.begin(uri).close("FINISHED")
        assert connection.execute("SELECT artifact_uri FROM runs").fetchall() == before


@pytest.mark.parametrize("damage", ["DROP TABLE experiments", "ALTER TABLE runs RENAME COLUMN artifact_uri TO place"])
def test_a_database_that_is_not_as_expected_is_left_as_it_is_and_told(folder: Any, damage: str) -> None:
    trained(folder, 2)
    new = folder.path.rename(folder.path.with_name("new"))
    with sqlite3.connect(new / "mlflow.db") as connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute(damage)
        before = list(connection.iterdump())
    told = follow_move(new, "bagpiper")
    assert told is not None and "is not as expected" in told and "listening/" in told
    with sqlite3.connect(new / "mlflow.db") as connection:
        assert list(connection.iterdump()) == before


def test_a_database_that_is_locked_is_no_reason_to_write_to_the_old_place(
    folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(folder, 2)
    old, new = folder.path, folder.path.rename(folder.path.with_name("new"))
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *given, **options: connect(*given, **{**options, "timeout": 0.05}))
    with closing(sqlite3.connect(new / "mlflow.db", isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        with pytest.raises(AwayError, match="locked"):
            follow_move(new, "bagpiper")
    monkeypatch.undo()
    folder.path = new
    trained(folder, 4)
    assert len(sounds(new)) == 2 and not old.exists()


@pytest.mark.parametrize("record", ["{}", "no json", '{"key": "a"}', '{"uri": "sqlite:///mlflow.db"}', None])
def test_a_folder_with_no_run_has_nothing_to_follow(folder: Any, record: str | None) -> None:
    if record is not None:
        (folder.path / "mlflow_run.json").write_text(record)
    assert follow_move(folder.path, "bagpiper") is None
    (folder.path / "mlflow.db").write_bytes(b"")
    assert follow_move(folder.path, "bagpiper") is None


# -- addresses -------------------------------------------------------------------------------------------------------


def test_a_server_that_listens_is_reachable_and_one_that_does_not_is_not(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["bagpiper.tracking.mlflow_place"], "getproxies", dict)
    with pytest.raises(AwayError, match="Connection refused"):
        check_reachable(server.uri)
    with pytest.raises(AwayError, match="Connection refused"):
        check_reachable(f"postgresql+psycopg2://me:pw@127.0.0.1:{server.port}/db")
    server.start()
    check_reachable(server.uri)


def test_behind_a_proxy_only_the_client_knows_what_can_be_reached(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", "localhost")
    check_reachable(server.uri)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(AwayError):
        check_reachable(server.uri)


def test_a_database_that_cannot_be_made_is_not_reachable(tmp_path: Path) -> None:
    """MLflow tries that for 51 seconds."""
    check_reachable(default_uri(tmp_path))
    with pytest.raises(AwayError, match="unable to open database file"):
        check_reachable("sqlite+pysqlite:////proc/mlflow.db")
    with pytest.raises(AwayError, match="unable to open database file"):
        check_reachable(f"sqlite+pysqlite:///{tmp_path}/none/mlflow.db")
    check_reachable(f"sqlite:///{tmp_path}/none/mlflow.db")  # MLflow makes the folder
    check_reachable("sqlite://")
    assert list(tmp_path.iterdir()) == [tmp_path / "mlflow.db"]


@pytest.mark.parametrize("uri", ["http://[broken", "http://me:hunter2/x@host:9/", "http://127.0.0.1:abc"])
def test_what_is_no_address_is_said_without_quoting_it(uri: str) -> None:
    with pytest.raises(AwayError, match="^this is no address$"):
        check_reachable(uri)


@pytest.mark.parametrize("uri", ["databricks", "postgresql://me:pw/x@host/db", "./mlruns", "http://", ""])
def test_an_address_of_another_form_is_for_mlflow_to_judge(uri: str) -> None:
    check_reachable(uri)


@pytest.mark.parametrize(
    ("uri", "login", "usable"),
    [
        ("http://host/x", {}, "http://host/x"),
        ("http://***@host/x", {}, None),
        ("http://***@host/x", {"MLFLOW_TRACKING_USERNAME": "me"}, None),
        ("http://***@host/x", {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "pw"}, "http://host/x"),
        ("https://***@host", {"MLFLOW_TRACKING_TOKEN": "t"}, "https://host"),
        ("https://***@host/?token=***", {"MLFLOW_TRACKING_TOKEN": "t"}, None),
        ("postgresql://***@host/db", {"MLFLOW_TRACKING_TOKEN": "t"}, None),
    ],
)
def test_a_masked_address_needs_a_login_from_elsewhere(
    monkeypatch: pytest.MonkeyPatch, uri: str, login: dict[str, str], usable: str | None
) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in login.items():
        monkeypatch.setenv(name, value)
    assert usable_uri(uri) == usable
