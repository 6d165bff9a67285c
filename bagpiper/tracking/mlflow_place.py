"""Where MLflow is: the run folder's own database, which goes where the folder goes, or a server that may be away."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from bagpiper.files import write_text
from bagpiper.redact import MASK

DATABASE, ARTIFACTS, RECORD = "mlflow.db", "mlartifacts", "mlflow_run.json"
_TIMEOUT = 2.0
_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
LOGIN = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")

_REQUESTS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
"""MLflow's own patience is 4 minutes for every call that fails; who calls here tries again by itself."""
_QUIET = {"MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}
"""When a run ends MLflow prints the address of its server, password and all."""
_FILE = {"MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "NullPool"}
"""A connection that stays open goes with a database that is moved, and a new run in the old place would use it."""


class AwayError(Exception):
    """Nothing answers where MLflow should be."""


def default_uri(run_dir: Path) -> str:
    """The SQLite file of a run."""
    path = str((run_dir / DATABASE).resolve())
    quoted = quote(path)
    # behind "sqlite:///" MLflow makes folders of the text as it stands, with %20 in their names; not with the driver
    return f"sqlite:///{path}" if quoted == path else f"sqlite+pysqlite:///{quoted}"


def usable_uri(uri: str) -> str | None:
    """The address to use, or None where its password is not known: a run folder keeps none.

    Args:
        uri: of the recipe; of a resumed run user and password may be masked. They are left out if MLflow takes others
            from the environment.
    """
    from_environment = all(os.environ.get(name) for name in LOGIN) or os.environ.get("MLFLOW_TRACKING_TOKEN")
    if is_server(uri) and from_environment:
        uri = uri.replace(f"//{MASK}@", "//", 1)
    return None if MASK in uri else uri


def is_server(uri: str) -> bool:
    """Whether an address is that of an MLflow server, not of a database."""
    return uri.startswith(("http://", "https://"))


def page_of(uri: str) -> str:
    """The address of a server's page: without user and password, which a browser asks for."""
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl().rstrip("/")


def check_reachable(uri: str) -> None:
    """Look whether something is there, within 2 seconds, before MLflow tries and waits much longer.

    Raises:
        AwayError: nothing is, and why.
    """
    try:
        parts = urlsplit(uri)
        scheme, host, port = parts.scheme.partition("+")[0], parts.hostname, parts.port
    except ValueError:
        if is_server(uri):
            raise AwayError("this is no address") from None  # the error may quote a part of a password
        return  # a database's address of a form that only its driver knows
    port = port or _PORTS.get(scheme)
    try:
        if scheme == "sqlite" and "uri=" not in parts.query:
            _check_database(Path(unquote(parts.path[1:])), makes_folder=parts.scheme == "sqlite")
        elif host and port and (proxy_bypass(host) or not {scheme, "all"} & getproxies().keys()):
            socket.create_connection((host, port), timeout=_TIMEOUT).close()
    except (OSError, sqlite3.Error) as error:
        raise AwayError(getattr(error, "strerror", None) or str(error)) from error


def _check_database(path: Path, makes_folder: bool) -> None:
    """What MLflow tries for 51 seconds; where it makes the folder, it says at once if it cannot."""
    if path.name and not (makes_folder and not path.parent.is_dir()):
        sqlite3.connect(path).close()


@contextmanager
def mlflow_settings(uri: str) -> Iterator[None]:
    """How MLflow behaves in the block: few and short tries, unless the environment says otherwise, and no address told.

    MLflow takes its settings from nowhere but the environment, which is put back.
    """
    wanted = _REQUESTS | (_FILE if uri.startswith("sqlite") else {})
    ours = {name: value for name, value in wanted.items() if name not in os.environ} | _QUIET
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ.update({name: value} if value is not None else {})


def read_record(run_dir: Path) -> dict[str, Any]:
    """What ``mlflow_run.json`` says of the run in MLflow; nothing if there is none, or a damaged one."""
    try:
        record = json.loads((run_dir / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def write_record(run_dir: Path, record: dict[str, Any]) -> None:
    """Write ``mlflow_run.json``."""
    write_text(run_dir / RECORD, json.dumps(record))


def follow_move(run_dir: Path, experiment: str) -> str | None:
    """Bring the places of artifacts in a run's own database up to date, if the folder was moved or copied.

    MLflow keeps them as absolute paths: after a move new sounds went to the old place, which was made anew, and those
    from before were not found. Only rows that lie under the old place of this folder change.

    Args:
        run_dir: where the folder is now.
        experiment: name of the one that the run belongs to, or will.

    Returns:
        What could not be done and what follows from it, or None.

    Raises:
        AwayError: the database cannot be written to now.
    """
    database = run_dir / DATABASE
    if not database.is_file() or not database.stat().st_size:
        return None
    try:
        with closing(sqlite3.connect(database, timeout=10.0)) as connection, connection:
            here = (run_dir / ARTIFACTS).resolve()
            for old in (_places(connection, experiment) | _place_in(read_record(run_dir))) - {here}:
                _replace(connection, old.as_uri(), here.as_uri())
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) != sqlite3.SQLITE_ERROR:
            raise AwayError(str(error)) from error  # locked, say; what is written meanwhile would go to the old place
        return (
            f"MLflow: {database} is not as expected ({error}), so it may look for sounds where {run_dir} was before it "
            "was moved; they lie under listening/"
        )
    return None


def _places(connection: sqlite3.Connection, experiment: str) -> set[Path]:
    """The folder of artifacts when the experiment was made; a database that was only just begun has no tables yet."""
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchone():
        return set()
    rows = connection.execute("SELECT artifact_location FROM experiments WHERE name = ?", (experiment,)).fetchall()
    uris = [urlsplit(location or "") for (location,) in rows]
    return {Path(unquote(u.path)) for u in uris if u.scheme == "file" and u.path.endswith(f"/{ARTIFACTS}")}


def _place_in(record: dict[str, Any]) -> set[Path]:
    """The folder of artifacts beside the database that a record tells of, if that is a run's own."""
    scheme, _, path = str(record.get("uri", "")).partition(":///")
    is_own = scheme in ("sqlite", "sqlite+pysqlite") and path.startswith("/") and path.endswith(f"/{DATABASE}")
    return {Path(unquote(path)).with_name(ARTIFACTS)} if is_own else set()


def _replace(connection: sqlite3.Connection, old: str, new: str) -> None:
    for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
        connection.execute(
            f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE {column} = ? OR substr({column}, 1, ?) = ?",
            (new, len(old) + 1, old, len(old) + 1, f"{old}/"),
        )
