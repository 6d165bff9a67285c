"""Whether a new run may have a folder, and what becomes of an earlier attempt that trained nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bagpiper import files
from bagpiper.errors import UserError
from bagpiper.recipe.settings import Recipe
from bagpiper.training.checkpoints import list_checkpoints
from bagpiper.training.prepare import CODEC, TOKENIZER
from bagpiper.training.resume import HARMLESS, TOLD, Change, differences, with_defaults
from bagpiper.training.run_folder import FINGERPRINT, METRICS, ORIGIN, RECIPE, as_dict, read_recipe

_PREPARED = (TOKENIZER, CODEC, FINGERPRINT, ORIGIN, "mlflow_run.json", METRICS, "checkpoints")
"""What a run makes from its recipe before the first step. Caches stay: their entries follow from contents alone."""
_ELSEWHERE = "Choose another folder with run_dir=..."


@dataclass(frozen=True)
class Attempt:
    """An earlier attempt at a run, of another recipe, that trained nothing.

    Attributes:
        folder: the run folder.
        changed: how this recipe differs.
        prepared: what it left and this recipe must not take over.
    """

    folder: Path
    changed: list[Change]
    prepared: list[Path]

    def __str__(self) -> str:
        names = ", ".join(path.name for path in self.prepared)
        made = f"; removed, to be made anew: {names}" if names else ""
        return f"{self.folder}: nothing was trained here yet, so it begins again with {_listed(self.changed)}{made}"

    def remove(self) -> None:
        """Remove what it prepared."""
        for path in self.prepared:
            if path.is_dir():
                files.remove_tree(path)
            else:
                path.unlink(missing_ok=True)


def check_new(folder: Path, recipe: Recipe) -> Attempt | None:
    """Check that a new run may have this folder.

    A run of this recipe that never reached a checkpoint may start again. So may any recipe where nothing was trained.

    Returns:
        What is there of an attempt with another recipe, to be removed before anything else is done.

    Raises:
        UserError: the folder belongs to another run.
    """
    complete = bool(list_checkpoints(folder)) or (folder / "model").exists()
    has_trained = complete or trained(folder)
    if not (folder / RECIPE).is_file():
        if has_trained:
            what = "a model or checkpoints" if complete else "the records of a training"
            raise UserError(f"{folder} holds {what}, but no {RECIPE} that says whose. {_ELSEWHERE}")
        return None
    try:
        old: Mapping[str, Any] = with_defaults(read_recipe(folder))
    except UserError as error:
        if has_trained:
            raise UserError(f"{error}, and steps were trained there. {_ELSEWHERE}") from None
        old = {}
    new = as_dict(recipe)
    changed = differences(old, new, _allowed(recipe, starts_over=has_trained and not complete))
    if complete and not changed:
        raise UserError(
            f"{folder} holds a run of this recipe already. Continue it with `bagpiper train --resume {folder}`, "
            "or choose another folder with run_dir=..."
        )
    if has_trained and changed:
        ended = "" if complete else ", whose first steps are recorded though no checkpoint was reached"
        raise UserError(
            f"{folder} holds the run of another recipe{ended} (it differs in {_listed(changed)}). "
            f"{_ELSEWHERE}, or remove this one."
        )
    return Attempt(folder, changed, _prepared(folder, recipe, old, new)) if changed else None


def _allowed(recipe: Recipe, *, starts_over: bool) -> tuple[str, ...]:
    """Keys that may differ between two attempts.

    Args:
        recipe: of the later one.
        starts_over: whether it writes the records of steps once more, so that these must be the same steps.
    """
    if starts_over:
        return (*HARMLESS, "trainer.max_steps") if recipe.optimizer.decay_end_step is not None else HARMLESS
    return (*HARMLESS, *TOLD, "trainer.max_steps")


def trained(folder: Path) -> bool:
    """Whether anything in a folder tells of a step that was taken."""
    if (folder / "listening").exists() or any((folder / "checkpoints").glob("step-*")):
        return True
    records = folder / METRICS
    lines = records.read_bytes().splitlines() if records.is_file() else []
    return any(_is_of_a_step(line) for line in lines)


def _is_of_a_step(line: bytes) -> bool:
    """Whether a record is of a later step than 0, where the data are counted; a damaged one may be."""
    try:
        return bool(json.loads(line)["step"] > 0)
    except (ValueError, TypeError, KeyError):
        return True


def _prepared(folder: Path, recipe: Recipe, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Path]:
    paths = [folder / name for name in _PREPARED]
    corpus = folder / "corpus"
    if (corpus / "corpus.json").is_file() and old.get("data", {}).get("soundscapes") != new["data"]["soundscapes"]:
        paths.append(corpus)
    given = Path(getattr(recipe.model.codec, "path", None) or "")  # the recipe's own, though it lies here
    return [path for path in paths if path.exists() and not (given.exists() and path.samefile(given))]


def _listed(changed: Sequence[Change], limit: int = 5) -> str:
    shown = ", ".join(map(str, changed[:limit]))
    return shown + (f" and {len(changed) - limit} more keys" if len(changed) > limit else "")
