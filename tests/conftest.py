"""What all tests share: one thread, no network, and the folders of recorded and real data."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest

# Before torch is imported: with two threads and a busy machine a small step takes 20 times longer.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--rough``: see ``rough.py``."""
    parser.addoption("--rough", action="store_true", help="matrix products round otherwise for every number of rows")


def pytest_configure(config: pytest.Config) -> None:
    """Round roughly from here on, fixtures of all scopes included; processes that tests start do not."""
    if config.getoption("--rough"):
        from rough import Rough

        config.add_cleanup(partial(Rough().__enter__().__exit__, None, None, None))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests that need a GPU where there is none."""
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not on_gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of recorded outputs of the official code."""
    return _folder("BAGPIPER_GOLDEN", SHARED / "golden", "recorded outputs of the official code")


@pytest.fixture(scope="session")
def real_audio() -> Path:
    """Folder of real recordings, one manifest per sub-folder."""
    return _folder("BAGPIPER_DATA", SHARED / "data", "real recordings")


def _folder(variable: str, default: Path, what: str) -> Path:
    folder = Path(os.environ.get(variable, default))
    if not folder.is_dir():
        pytest.skip(f"no {what}: neither ${variable} nor {default} is a folder")
    return folder


@pytest.fixture(scope="session")
def mlflow_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database to copy: making one takes seconds."""
    from runs import make_template

    return make_template(tmp_path_factory.mktemp("mlflow") / "template.db")


@pytest.fixture(scope="session")
def shared_parts(tmp_path_factory: pytest.TempPathFactory):
    """Corpus, cache and codec of all tiny runs (``runs.Shared``)."""
    from runs import make_shared

    return make_shared(tmp_path_factory.mktemp("shared"))


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, shared_parts, mlflow_template: Path) -> Path:
    """The folder of a finished tiny run: checkpoints, listening, MLflow, parity, ``model/``; not to be changed."""
    from runs import tiny_recipe, use_template

    from bagpiper.recipe.settings import TrackingSettings
    from bagpiper.run import run

    folder = tmp_path_factory.mktemp("tiny") / "run"
    use_template(folder, mlflow_template)
    recipe = tiny_recipe(folder, shared_parts, validate_every=3, checkpoint_every=3)
    recipe.tracking = TrackingSettings()
    recipe.listening.every = 3
    recipe.parity.at_end = True
    return run(recipe).folder
