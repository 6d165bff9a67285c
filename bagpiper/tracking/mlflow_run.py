"""One run in MLflow as the mirror of a run folder: what the folder holds and MLflow lacks is sent."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from bagpiper.files import TEMPORARY
from bagpiper.names import distinct_names
from bagpiper.redact import redact
from bagpiper.tracking.json_lines import read_records
from bagpiper.tracking.mlflow_place import AwayError, read_record, write_record
from bagpiper.tracking.records import Record

_KEY_TAG = "bagpiper.key"
_MAX_METRICS, _MAX_NAMES = 1000, 100
"""MLflow's own limits of one ``log_batch``: of metrics, and of parameters or tags."""
_MAX_VALUE = 6000
"""Characters of a parameter's value; ``recipe.yaml`` has it whole."""
_RECORDS = 100
"""Records that are read before they are sent."""

Mark = tuple[int, int]
"""When a file was changed last, and its size in bytes."""


@dataclass(frozen=True)
class About:
    """What MLflow says of a run beside its records.

    Attributes:
        experiment: name.
        artifacts: folder for artifacts of an experiment that is made for this run; None leaves it to MLflow.
        name: of the run.
        params, tags: name -> value.
    """

    experiment: str
    artifacts: Path | None
    name: str
    params: Mapping[str, str]
    tags: Mapping[str, str]


class MlflowRun:
    """A run in MLflow, seen through a connection that may break at any call; a new one asks anew what is there.

    Attributes:
        run_id, experiment_id: in MLflow.
        records_end: offset in the file of records up to which MLflow has everything.
        files: those that are there, by their place in the run folder.
        refused: what MLflow does not take, and why.
    """

    def __init__(self, folder: Path, client: Any, run: Any, artifacts: Any) -> None:
        self.run_id, self.experiment_id = str(run.info.run_id), str(run.info.experiment_id)
        self.records_end = 0
        self.files: dict[Path, Mark] = {}
        self.refused: list[str] = []
        self._folder = folder
        self._client = client
        self._artifacts = artifacts
        self._params, self._tags = dict(run.data.params), dict(run.data.tags)
        # these have their steps, as run.data.metrics has not, and the history, which may be long, is not asked for
        self._last = {metric.key: int(metric.step) for metric in run.data.to_proto().metrics}
        self._names: dict[str, str] = {}
        self._listings: dict[Path, dict[Path, int]] = {}

    @classmethod
    def open(cls, folder: Path, uri: str, about: About | None, progress: Callable[[], None]) -> MlflowRun | None:
        """Find the run that belongs to a run folder, or make it.

        Args:
            folder: the run folder. Its ``mlflow_run.json`` is written before the run is made: a process killed in
                between finds its run by a tag.
            uri: of MLflow.
            about: the run, if it must be made; with None nothing is made.
            progress: called after every call of MLflow that has come back.

        Returns:
            The run; None if there is none and none is to be made.

        Raises:
            Exception: of MLflow's, and of the libraries below it.
        """
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)  # its import has set another level
        client = _Watched(MlflowClient(tracking_uri=uri), progress)
        progress()
        record = {"key": uuid.uuid4().hex, **read_record(folder)}
        run = _run_with_id(client, record.get("run_id"))
        if run is None and about is not None:
            write_record(folder, {"key": record["key"], "uri": redact(uri)})
            run = _make_run(client, record["key"], about)
        if run is None:
            return None
        noted = {**record, "run_id": run.info.run_id, "uri": redact(uri), "experiment_id": run.info.experiment_id}
        if noted != read_record(folder):
            write_record(folder, noted)
        if run.info.lifecycle_stage == "deleted":
            raise AwayError(f"run {run.info.run_id} is deleted there; restore it in MLflow")
        return cls(folder, client, run, _Watched(_artifacts_of(run, uri), progress))

    def begin(self, about: About) -> None:
        """Say that the run goes on, and with which parameters.

        MLflow refuses new values of old parameters, so those of a resumed run become tags.
        """
        from mlflow.entities import Param

        self._call("status", self._client.update_run, self.run_id, status="RUNNING")
        names = distinct_names(about.params)
        values = {names[key]: redact(value)[:_MAX_VALUE] for key, value in about.params.items()}
        self._send("params", [Param(k, v) for k, v in values.items() if k not in self._params], _MAX_NAMES)
        changed = {k: v for k, v in values.items() if k in self._params and self._params[k] != v}
        self._send_tags({f"resumed.{k}": v for k, v in changed.items()})
        self._params = {**values, **self._params}

    def end(self, status: str) -> None:
        """Say how the run has ended."""
        self._call("status", self._client.set_terminated, self.run_id, status)

    def send_records(self, path: Path) -> None:
        """Send what MLflow lacks: metrics as curves; counts of the data, which are none, as tags.

        Args:
            path: the file of records.
        """
        records, counts = read_records(path, self.records_end), {}
        while part := list(islice(records, _RECORDS)):
            self._send("metrics", [metric for record, _ in part for metric in self._metrics(record)], _MAX_METRICS)
            for record, _ in part:
                counts.update(record.values if record.split == "data" else {})
            self.records_end = part[-1][1]
        names = distinct_names(counts)
        self._send_tags({f"data.{names[name]}": f"{value:.17g}" for name, value in counts.items()})

    def send_files(self, paths: Sequence[Path]) -> None:
        """Send the files that MLflow lacks.

        Those that lie in the run folder itself are sent once by every connection, because they may have changed; those
        in folders never change, and are sent if there is none of their size.

        Args:
            paths: files in the run folder.
        """
        for path in paths:
            place, mark = path.relative_to(self._folder), mark_of(path)
            if mark is None or self.files.get(place) == mark:
                continue
            if place.parent == Path() or self._listing(place.parent).get(place) != mark[1]:
                folder = None if place.parent == Path() else place.parent.as_posix()
                self._call(str(place), self._artifacts.log_artifact, str(path), folder)
            self.files[place] = mark

    # -- one call at a time -----------------------------------------------------------------------------------------

    def _metrics(self, record: Record) -> Iterator[Any]:
        """The record's metrics, but for those that are there."""
        from mlflow.entities import Metric

        if record.split == "data":
            return
        now = int(time.time() * 1000)
        full = {name if record.split == "log" else f"{record.split}/{name}": v for name, v in record.values.items()}
        self._names = distinct_names(full, self._names)
        for text, value in full.items():
            name = self._names[text]
            if record.step > self._last.get(name, -1):
                self._last[name] = record.step
                yield Metric(name, float(value), now, record.step)

    def _send_tags(self, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        self._send("tags", [RunTag(k, v) for k, v in tags.items() if self._tags.get(k) != v], _MAX_NAMES)
        self._tags.update(tags)

    def _send(self, kind: str, entities: Sequence[Any], limit: int) -> None:
        for start in range(0, len(entities), limit):
            part = entities[start : start + limit]
            self._call(f"{len(part)} {kind}", self._client.log_batch, self.run_id, **{kind: part})

    def _call(self, what: str, call: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        """Call MLflow. What it will never take is noted, so that it does not stand in the way of everything else."""
        try:
            call(*arguments, **options)
        except Exception as error:
            status = getattr(error, "get_http_status_code", None)
            if status is None or status() != 400:
                raise
            self.refused.append(f"{what}: {in_words(error)}")

    def _listing(self, folder: Path) -> dict[Path, int]:
        """Sizes of what was in a folder of artifacts when the connection was made."""
        if folder not in self._listings:
            top = folder == Path()
            there = top or folder in self._listing(folder.parent)
            found = self._artifacts.list_artifacts(None if top else folder.as_posix()) if there else []
            self._listings[folder] = {Path(item.path): int(item.file_size or 0) for item in found}
        return self._listings[folder]


class _Watched:
    """MLflow's client, or a place of artifacts, that tells of every call that has come back."""

    def __init__(self, client: Any, progress: Callable[[], None]) -> None:
        self._client = client
        self._progress = progress

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._client, name)

        def watched(*arguments: Any, **options: Any) -> Any:
            try:
                return call(*arguments, **options)
            finally:
                self._progress()

        return watched


def files_of(folder: Path, names: Sequence[str]) -> list[Path]:
    """Files of these names in a folder, and all files in folders of these names, but for half-written ones."""
    paths = [path for name in names for path in (folder / name, *sorted((folder / name).rglob("*")))]
    return [
        path
        for path in paths
        if path.is_file() and not any(part.startswith(TEMPORARY) for part in path.relative_to(folder).parts)
    ]


def mark_of(path: Path) -> Mark | None:
    """What tells whether a file, or the list of names in a folder, has changed; None if it is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def in_words(error: BaseException) -> str:
    """An error in one line, without secrets."""
    text = redact(str(error)).strip().partition("\n")[0]
    kind = type(error).__name__
    return text if isinstance(error, AwayError) else f"{kind}: {text[:200]}" if text else kind


def _run_with_id(client: Any, run_id: str | None) -> Any:
    """The run, or None if there is none: the record may tell of another server, or of a database that is gone."""
    from mlflow.exceptions import MlflowException

    if run_id is None:
        return None
    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def _artifacts_of(run: Any, uri: str) -> Any:
    """Where the run's artifacts are. The client remembers that for as long as the process lives, by the run's id alone:
    sounds of a run whose folder was moved would go to the old place.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from mlflow.utils.uri import add_databricks_profile_info_to_artifact_uri

    return get_artifact_repository(
        add_databricks_profile_info_to_artifact_uri(run.info.artifact_uri, uri), tracking_uri=uri
    )


def _make_run(client: Any, key: str, about: About) -> Any:
    """A run with this key; one that a killed process made is found."""
    experiment = client.get_experiment_by_name(about.experiment)
    if experiment is not None:
        experiment_id = experiment.experiment_id
    else:
        location = about.artifacts.as_uri() if about.artifacts else None
        experiment_id = client.create_experiment(about.experiment, artifact_location=location)
    known = client.search_runs([experiment_id], filter_string=f"tags.`{_KEY_TAG}` = '{key}'")
    if known:
        return known[0]
    tags = {**{name: redact(value) for name, value in about.tags.items()}, _KEY_TAG: key}
    return client.create_run(experiment_id, run_name=redact(about.name), tags=tags)
