"""A run folder with a database, and a server that is made up."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_mlflow import FakeMlflow

from bagpiper.recipe.settings import TrackingSettings
from bagpiper.tracking import mlflow_store
from bagpiper.tracking.json_lines import JsonLines
from bagpiper.tracking.mlflow_store import MlflowStore
from bagpiper.tracking.records import Record

SHOWN = ("recipe.yaml", "parity.json", "listening")


class Folder:
    """A run folder as training fills it.

    Attributes:
        path: of the folder.
        told: what stores said.
        lost: set to an error when another process has taken the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.told: list[str] = []
        self.lost: Exception | None = None

    def write(self, *steps: int, split: str = "train", value: float = 1.0, **values: float) -> None:
        """Write records, as a process that has just begun or resumed would."""
        lines = JsonLines(self.path / "metrics.jsonl").begin()
        for step in steps:
            lines.write(Record(step, split, values or {"loss": value}))

    def listen(self, step: int) -> None:
        folder = self.path / "listening" / f"step-{step:06d}"
        folder.mkdir(parents=True)
        (folder / "caption0.wav").write_bytes(b"a bell")

    def store(self, uri: str | None = None, **changes: Any) -> MlflowStore:
        """A store, not yet started."""
        details = {"run_name": "tiny", "params": {"seed": "1"}, "records": "metrics.jsonl", "shown": SHOWN, **changes}
        store = MlflowStore(
            self.path, TrackingSettings(uri=uri), tell=self.told.append, still_ours=self._still_ours, **details
        )
        return store

    def begin(self, uri: str | None = None, **changes: Any) -> MlflowStore:
        """A store that has started."""
        store = self.store(uri, **changes)
        store.start()
        return store

    def _still_ours(self) -> None:
        if self.lost is not None:
            raise self.lost


@pytest.fixture
def folder(tmp_path: Path, mlflow_template: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """A run folder whose database is made; stores look at it often."""
    monkeypatch.setattr(mlflow_store, "_PAUSE", 0.02)
    path = tmp_path / "run"
    path.mkdir()
    shutil.copy(mlflow_template, path / "mlflow.db")
    (path / "recipe.yaml").write_text("version: 1\n")
    return Folder(path)


@pytest.fixture
def server() -> Iterator[FakeMlflow]:
    """A server that is away until it is started."""
    made = FakeMlflow()
    yield made
    made.free.set()
    made.stop()
