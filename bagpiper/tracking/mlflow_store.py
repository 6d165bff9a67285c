"""Records, texts, pictures and sounds to MLflow, from a thread of its own.

Training never waits for a database or a server and never fails because of one: what cannot be written is counted and
reported once, and ``metrics.jsonl`` has every record anyway.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from bagpiper.files import write_text
from bagpiper.recipe.settings import TrackingSettings
from bagpiper.tracking.records import Record

RECORD = "mlflow_run.json"
_KEY_TAG = "bagpiper.key"
_MAX_METRICS, _MAX_PARAMS, _MAX_VALUE = 1000, 100, 6000
"""MLflow's own limits of one ``log_batch`` and of a parameter's value."""

_LOCAL_PAGE = "http://127.0.0.1:5000"
"""Where ``mlflow ui`` serves its page."""

_Call = Callable[[], None]
_Item = Record | threading.Event | _Call | None
"""What is queued: a record, an event to set when everything before it is stored, a call, None to end."""
_Group = list[Record] | threading.Event | _Call | None


def default_uri(run_dir: Path) -> str:
    """The SQLite file of a run."""
    return f"sqlite:///{(run_dir / 'mlflow.db').resolve()}"


class MlflowStore:
    """One MLflow run, however often the training resumes.

    ``mlflow_run.json`` is written before the run is made: a process killed in between finds its run by a tag.
    """

    def __init__(
        self,
        run_dir: Path,
        settings: TrackingSettings,
        *,
        run_name: str,
        params: Mapping[str, str],
        tags: Mapping[str, str] | None = None,
    ) -> None:
        self.uri = settings.uri or default_uri(run_dir)
        self.run_dir = run_dir
        self.run_id: str | None = None
        self._experiment_id: str | None = None
        self._settings = settings
        self._run_name = settings.run_name or run_name
        self._params, self._tags = dict(params), dict(tags or {})
        self._queue: queue.Queue[_Item] = queue.Queue()
        self._last: dict[str, int] = {}
        self._lost = 0
        self._first_error: str | None = None
        self._client: Any = None
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def write(self, record: Record) -> None:
        """Queue a record."""
        self._queue.put(record)

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Queue a file or folder for upload."""

        def upload() -> None:
            upload_one = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
            upload_one(self.run_id, str(path), folder)

        self._queue.put(upload)

    def flush(self, timeout: float = 60.0) -> None:
        """Wait until what is queued is stored; gives up after ``timeout`` seconds, or at once if there were errors."""
        if self._first_error is None:
            done = threading.Event()
            self._queue.put(done)
            done.wait(timeout)

    def close(self, status: str) -> str | None:
        """Store the rest and end the run.

        Args:
            status: FINISHED, KILLED or FAILED.

        Returns:
            what could not be stored and why, or None.
        """
        self._queue.put(lambda: self._client.set_terminated(self.run_id, status))
        self._queue.put(None)
        self._thread.join(timeout=60.0)
        left = self._queue.qsize() if self._thread.is_alive() else 0
        if self._lost or left:
            reason = self._first_error or f"{self.uri} does not answer"
            return f"MLflow: {self._lost + left} entries could not be stored ({reason}); metrics.jsonl has every record"
        return None

    def page(self) -> str:
        """How to see the run: an address, behind the command that serves it where there is no server.

        MLflow's page opens in its view for language applications, which shows neither runs nor artifacts at first; the
        address asks for the other view, and for the sounds and pictures.
        """
        is_server = self.uri.startswith(("http://", "https://"))
        address = self.uri.rstrip("/") if is_server else _LOCAL_PAGE
        if self.run_id is not None:
            run = f"#/experiments/{self._experiment_id}/runs/{self.run_id}"
            address += f"/{run}/artifacts?workflowType=machine_learning"
        return address if is_server else f"mlflow ui --backend-store-uri {self.uri}, then {address}"

    # -- the thread ---------------------------------------------------------------------------------------------

    def _work(self) -> None:
        self._attempt(self._open, 0)
        while True:
            for item in self._next_batch():
                if item is None:
                    return
                if isinstance(item, threading.Event):
                    item.set()
                elif isinstance(item, list):
                    self._attempt(partial(self._write_records, item), len(item))
                else:
                    self._attempt(item, 1)

    def _attempt(self, work: Callable[[], None], entries: int) -> None:
        """Do it, or count ``entries`` as lost; after a failed start everything is."""
        if self._client is None and work != self._open:
            self._lost += entries
            return
        try:
            work()
        except Exception as error:  # a failing server or database must not stop the training
            self._lost += entries
            text = str(error)
            self._first_error = self._first_error or f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"

    def _next_batch(self) -> list[_Group]:
        """What is queued, records that follow each other as one list."""
        items = [self._queue.get()]
        while not self._queue.empty():
            items.append(self._queue.get())
        grouped: list[_Group] = []
        for item in items:
            if not isinstance(item, Record):
                grouped.append(item)
            elif grouped and isinstance(last := grouped[-1], list):
                last.append(item)
            else:
                grouped.append([item])
        return grouped

    def _open(self) -> None:
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=self.uri)
        experiment = self._experiment(client)
        path = self.run_dir / RECORD
        record = json.loads(path.read_text()) if path.exists() else {"key": uuid.uuid4().hex}
        write_text(path, json.dumps(record))
        if "run_id" not in record:
            known = client.search_runs([experiment], filter_string=f"tags.`{_KEY_TAG}` = '{record['key']}'")
            tags = {**self._tags, _KEY_TAG: record["key"]}
            run = known[0] if known else client.create_run(experiment, run_name=self._run_name, tags=tags)
            record["run_id"] = run.info.run_id
            write_text(path, json.dumps({**record, "uri": self.uri, "experiment_id": experiment}))
        self.run_id, self._experiment_id = record["run_id"], experiment
        run = client.get_run(self.run_id)
        client.update_run(self.run_id, status="RUNNING")
        for name in run.data.metrics:
            self._last[name] = max(m.step for m in client.get_metric_history(self.run_id, name))
        self._log_params(client, run.data.params)
        self._client = client

    def _experiment(self, client: Any) -> str:
        name = self._settings.experiment
        found = client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        local = self._settings.uri is None
        location = (self.run_dir / "mlartifacts").resolve().as_uri() if local else None
        return str(client.create_experiment(name, artifact_location=location))

    def _log_params(self, client: Any, known: Mapping[str, str]) -> None:
        """Store the parameters; MLflow refuses new values of old ones, so those of a resumed run become tags."""
        from mlflow.entities import Param, RunTag

        fresh = [Param(k, v[:_MAX_VALUE]) for k, v in self._params.items() if k not in known]
        tags = [
            RunTag(f"resumed.{k}", v[:_MAX_VALUE])
            for k, v in self._params.items()
            if k in known and known[k] != v[:_MAX_VALUE]
        ]
        for start in range(0, len(fresh), _MAX_PARAMS):
            client.log_batch(self.run_id, params=fresh[start : start + _MAX_PARAMS])
        if tags:
            client.log_batch(self.run_id, tags=tags[:_MAX_PARAMS])

    def _write_records(self, records: list[Record]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = []
        for record in records:
            for name, value in record.values.items():
                full = name if record.split == "log" else f"{record.split}/{name}"
                if record.step > self._last.get(full, -1):
                    self._last[full] = record.step
                    metrics.append(Metric(full, float(value), now, record.step))
        for start in range(0, len(metrics), _MAX_METRICS):
            self._client.log_batch(self.run_id, metrics=metrics[start : start + _MAX_METRICS])


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A nested mapping as dotted keys and text values."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat
