"""Which model a user means by a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from bagpiper.errors import UserError
from bagpiper.recipe.model_config import find_model


def model_in(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").touch()
    return folder


def test_the_folder_itself_then_the_final_model_then_the_newest_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no model yet"):
        find_model(tmp_path)
    model_in(tmp_path / "checkpoints" / "step-000009" / "model")
    newest = model_in(tmp_path / "checkpoints" / "step-1000000" / "model")
    (tmp_path / "checkpoints" / "step-2000000" / "model").mkdir(parents=True)
    assert find_model(tmp_path) == newest
    final = model_in(tmp_path / "model")
    assert find_model(tmp_path) == final
    assert find_model(final) == final


def test_folders_that_a_user_has_named_are_no_checkpoints(tmp_path: Path) -> None:
    """`step-best` gave a traceback."""
    model_in(tmp_path / "checkpoints" / "step-best" / "model")
    model_in(tmp_path / "checkpoints" / "step-3 (copy)" / "model")
    kept = model_in(tmp_path / "checkpoints" / "step-000003" / "model")
    assert find_model(tmp_path) == kept


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing does not exist; give a run folder"):
        find_model(tmp_path / "nothing")
