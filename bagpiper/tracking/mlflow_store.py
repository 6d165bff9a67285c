"""A run in MLflow, kept up by a thread of its own.

The run folder is what lasts: ``metrics.jsonl`` has every record, sounds and pictures lie beside it, and MLflow shows
what the folder has. So training never waits for a database or a server and never fails because of one, and nothing is
lost while it is away: what MLflow lacks is sent when it is back, or when the run is resumed.
"""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bagpiper.errors import UserError
from bagpiper.recipe.settings import TrackingSettings
from bagpiper.redact import redact
from bagpiper.tracking.json_lines import read_records
from bagpiper.tracking.mlflow_place import (
    ARTIFACTS,
    DATABASE,
    LOGIN,
    AwayError,
    check_reachable,
    default_uri,
    follow_move,
    is_server,
    mlflow_settings,
    page_of,
    read_record,
    usable_uri,
)
from bagpiper.tracking.mlflow_run import About, Mark, MlflowRun, files_of, in_words, mark_of

_LOCAL_PAGE = "http://127.0.0.1:5000"
"""Where ``mlflow ui`` serves its page."""

_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
"""Seconds between two looks at the folder; doubled after every failure, up to the second."""

_SERVER_PATIENCE, _DATABASE_PATIENCE, _AWAY_PATIENCE = 10.0, 60.0, 3.0
"""Seconds that the end of a run waits for a call that does not come back. Making a database takes 9 s, on a busy
machine 35 s; where nobody answers, one more attempt is enough."""

_SHOWN = 3
"""Refusals that are told one by one."""


class MlflowStore:
    """One MLflow run, however often the training resumes."""

    def __init__(
        self,
        run_dir: Path,
        settings: TrackingSettings,
        *,
        run_name: str,
        params: Mapping[str, str],
        records: str,
        tags: Mapping[str, str] | None = None,
        shown: Sequence[str] = (),
        tell: Callable[[str], None] = lambda text: None,
        still_ours: Callable[[], None] = lambda: None,
    ) -> None:
        """Set up; nothing happens before ``start``.

        Args:
            run_dir: the run folder.
            settings: where MLflow is.
            run_name: if the settings have none.
            params, tags: of the run.
            records: name of the file of records in the run folder.
            shown: names of files and folders in the run folder that MLflow shows beside the metrics.
            tell: gets a line when MLflow is away, and one when it is back.
            still_ours: raises a UserError when another process has the run folder, whose records are not ours to send.
        """
        self.uri = settings.uri or default_uri(run_dir)
        self.run_dir = run_dir
        self._settings = settings
        artifacts = None if settings.uri else (run_dir / ARTIFACTS).resolve()
        self._about = About(redact(settings.experiment), artifacts, settings.run_name or run_name, params, tags or {})
        self._records = run_dir / records
        self._shown = list(shown)
        self._tell = tell
        self._still_ours = still_ours
        self._run: MlflowRun | None = None
        self._connected = False
        self._seen: list[Mark | None] = []
        self._why_away: str | None = None
        self._status: str | None = None
        self._has_ended = False
        self._closing = threading.Event()
        self._patience = _AWAY_PATIENCE
        self._last_answer = 0.0
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)

    def start(self) -> None:
        """Begin to send what MLflow lacks."""
        self._thread.start()

    def close(self, status: str) -> str | None:
        """Send the rest and end the run, as long as MLflow answers.

        Args:
            status: FINISHED, KILLED or FAILED.

        Returns:
            what is not in MLflow, why, and what sends it; None if everything is there.
        """
        self._last_answer = time.monotonic()
        self._status = status
        self._closing.set()
        while self._thread.is_alive() and time.monotonic() - self._last_answer < self._patience:
            self._thread.join(0.05)
        return self._refused() if self._has_ended else self._missing()

    def page(self) -> str:
        """How to see the run: an address, behind the command that serves it where there is no server.

        MLflow's page opens in its view for language applications, which shows neither runs nor artifacts at first; the
        address asks for the other view, and for the sounds and pictures.
        """
        address = page_of(self.uri) if is_server(self.uri) else _LOCAL_PAGE
        if self._run is not None:
            run = f"#/experiments/{self._run.experiment_id}/runs/{self._run.run_id}"
            address += f"/{run}/artifacts?workflowType=machine_learning"
        if is_server(self.uri):
            return address
        return f"mlflow ui --backend-store-uri {shlex.quote(redact(self.uri))}, then {address}"

    # -- the thread ---------------------------------------------------------------------------------------------

    def _work(self) -> None:
        pause = _PAUSE
        with mlflow_settings(self.uri):
            while True:
                status = self._status  # before looking, so that the last look sees everything
                try:
                    self._still_ours()
                    self._mirror(status)
                    self._be_back()
                    pause = _PAUSE
                except UserError:
                    self._has_ended = True  # the training meets it too, and tells
                    return
                except Exception as error:  # whatever fails there must not stop the training
                    self._be_away(error)
                    pause = min(2 * pause, _LONGEST_PAUSE)
                if status is not None:
                    return
                self._closing.wait(pause)

    def _mirror(self, status: str | None) -> None:
        """Send what MLflow lacks and, if the run has ended, how."""
        if self._run is None or not self._connected:
            self._patience = _AWAY_PATIENCE
            self._run = connect(self.run_dir, self._settings, self._about, self._answered, self._tell)
            assert self._run is not None
            self._run.begin(self._about)
            self._connected, self._seen = True, []
        self._run.send_records(self._records)
        seen = [mark_of(self.run_dir / name) for name in self._shown]
        if seen != self._seen or status is not None:
            self._run.send_files(files_of(self.run_dir, self._shown))
            self._seen = seen
        if status is not None:
            self._run.end(status)
            self._has_ended = True

    def _answered(self) -> None:
        self._last_answer = time.monotonic()
        self._patience = _SERVER_PATIENCE if is_server(self.uri) else _DATABASE_PATIENCE

    def _be_away(self, error: Exception) -> None:
        self._connected = False
        try:
            check_reachable(self.uri)
        except AwayError as away:
            error = away  # says it shorter than what broke off
        if self._why_away is None and self._status is None:  # at the end ``close`` tells
            self._tell(
                f"MLflow at {redact(self.uri)} is away ({in_words(error)}). The run goes on; its records and files are "
                f"kept in {self.run_dir} and sent when MLflow is back"
            )
        self._why_away = in_words(error)

    def _be_back(self) -> None:
        if self._why_away is not None:
            self._tell(f"MLflow at {redact(self.uri)} is back and has what was recorded meanwhile")
        self._why_away = None

    # -- what to tell at the end --------------------------------------------------------------------------------

    def _missing(self) -> str:
        run, before = self._run, self._run is None and "run_id" in read_record(self.run_dir)
        records = sum(1 for _ in read_records(self._records, run.records_end if run else 0))
        there = run.files if run else {}
        paths = files_of(self.run_dir, self._shown)
        files = sum(there.get(path.relative_to(self.run_dir)) != mark_of(path) for path in paths)
        return (
            f"MLflow at {redact(self.uri)} lacks {'up to ' if before else ''}{_number(records, 'record')} and "
            f"{_number(files, 'file')} ({self._why_away or 'no answer'}). They are kept in {self.run_dir}; "
            f"{_resume(self.run_dir)} sends them"
        )

    def _refused(self) -> str | None:
        refused = self._run.refused if self._run else []
        if not refused:
            return None
        more = f" and {len(refused) - _SHOWN} more" if len(refused) > _SHOWN else ""
        return f"MLflow refused {'; '.join(refused[:_SHOWN])}{more}; {self._records.name} has every record"


def share_files(
    run_dir: Path, settings: TrackingSettings, names: Sequence[str], tell: Callable[[str], None] = lambda text: None
) -> None:
    """Send files to the MLflow run of a run folder that has one; the run may have ended.

    Args:
        run_dir: the run folder.
        settings: where MLflow is.
        names: of files in the folder.
        tell: gets a line where they could not be sent: nothing is raised.
    """
    uri = settings.uri or default_uri(run_dir)
    if "run_id" not in read_record(run_dir):
        return
    failures = ["no answer"]

    def send() -> None:
        try:
            with mlflow_settings(uri):
                run = connect(run_dir, settings, None, lambda: None, tell)
                if run is None:
                    raise AwayError("the run of this folder is not there")
                run.send_files(files_of(run_dir, names))
                failures[:] = run.refused
        except Exception as error:
            failures[:] = [in_words(error)]

    thread = threading.Thread(target=send, name="mlflow files", daemon=True)
    thread.start()
    thread.join(_SERVER_PATIENCE if is_server(uri) else _DATABASE_PATIENCE)
    if failures:
        tell(f"MLflow at {redact(uri)} lacks {', '.join(names)} ({failures[0]}); {_resume(run_dir)} sends them")


def connect(
    run_dir: Path,
    settings: TrackingSettings,
    about: About | None,
    progress: Callable[[], None],
    tell: Callable[[str], None],
) -> MlflowRun | None:
    """Reach MLflow, at first by a look that does not take long, and find or make the run of a folder.

    Args:
        run_dir: the run folder.
        settings: where MLflow is; a password may be masked.
        about, progress: as for ``MlflowRun.open``.
        tell: gets a line if the folder was moved and its database cannot follow.

    Raises:
        Exception: that does not work.
    """
    usable = usable_uri(settings.uri) if settings.uri else default_uri(run_dir)
    if usable is None:
        raise AwayError(
            f"the password is not kept in a run folder; give tracking.uri=... again, or set {' and '.join(LOGIN)}"
        )
    if usable == default_uri(run_dir):
        if about is None and not (run_dir / DATABASE).is_file():
            raise AwayError("there is no such file")
        complaint = follow_move(run_dir, redact(settings.experiment))
        if complaint:
            tell(complaint)
    check_reachable(usable)
    progress()
    return MlflowRun.open(run_dir, usable, about, progress)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A nested mapping as dotted keys and text values."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat


def _number(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _resume(run_dir: Path) -> str:
    return f"`bagpiper train --resume {shlex.quote(str(run_dir))}`"
