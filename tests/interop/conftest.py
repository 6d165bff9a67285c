"""Official checkpoints, and model folders made of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from interop.official_model import OfficialFiles

from bagpiper.interop.espnet import PartFolders, import_espnet


@pytest.fixture(scope="session")
def official_once(tmp_path_factory) -> OfficialFiles:
    return OfficialFiles(tmp_path_factory.mktemp("official"))


@pytest.fixture
def official(official_once: OfficialFiles, tmp_path: Path) -> OfficialFiles:
    """Files of a test's own, which it may spoil."""
    copy = OfficialFiles.__new__(OfficialFiles)
    copy.__dict__.update(official_once.__dict__)
    copy.checkpoint = Path(shutil.copy(official_once.checkpoint, tmp_path / "base.pt"))
    copy.config = Path(shutil.copy(official_once.config, tmp_path / "train.yaml"))
    return copy


@pytest.fixture(scope="session")
def imported(official_once: OfficialFiles, tmp_path_factory) -> Path:
    """A model folder made of an official checkpoint; not to be changed."""
    out = tmp_path_factory.mktemp("imported") / "model"
    import_espnet(official_once.checkpoint, official_once.config, out, folders=PartFolders(**official_once.folders))
    return out
