"""Recipes that start from a model folder: what the folder says is put under what the recipe says."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from bagpiper.errors import UserError, brief, shown
from bagpiper.files import at_home
from bagpiper.recipe.model_config import find_model, read_config
from bagpiper.recipe.registry import KINDS
from bagpiper.recipe.source import Fault

_WHERE_FROM = ("source", "config", "path", "tokenizer")
"""Keys of a part that say where its weights would come from; here they come from the folder."""
_FREE = (("head", "z_loss"), ("head", "chunk"))
"""Keys that weights do not depend on."""


def with_start(tree: Mapping[str, Any], *, ready: bool) -> tuple[dict[str, Any], list[Fault]]:
    """Fill a recipe's plain values from the folder that ``start_from`` names.

    Args:
        tree: of the recipe.
        ready: whether the folder must be there; otherwise a recipe that is complete does without it.

    Returns:
        The values, ``model`` and ``generation`` complete, and what contradicts the folder.
    """
    place = tree.get("start_from")
    if not isinstance(place, str):
        return dict(tree), []
    try:
        config = read_config(find_model(Path(at_home(place))))
    except UserError as error:
        given = tree.get("model")
        if not ready and isinstance(given, Mapping) and all(kind in given for kind in KINDS):
            return dict(tree), []
        return dict(tree), [Fault(("start_from",), f"{error} (a resumed run does without it: start_from=null)")]
    model, faults = _model(tree.get("model"), config["model"], place)
    generation = _laid_over(config["generation"], tree.get("generation"))
    return {**tree, "model": model, "generation": generation}, faults


def _model(given: Any, stored: Mapping[str, Any], place: str) -> tuple[Any, list[Fault]]:
    if given is None:
        return deepcopy(dict(stored)), []
    if not isinstance(given, Mapping):
        return given, []  # the reader complains
    model, faults = deepcopy(dict(stored)), []
    for key, value in given.items():
        if key in KINDS and isinstance(value, Mapping):
            part, own = _part(key, value, stored[key], place)
            model[key] = part
            faults += own
        elif key not in stored or key in KINDS:
            model[key] = value  # the reader complains
        elif value is not None and _differ(value, stored[key]):
            faults.append(_contradiction(("model", key), value, stored[key], place))
    return model, faults


def _part(
    kind: str, given: Mapping[str, Any], stored: Mapping[str, Any], place: str
) -> tuple[dict[str, Any], list[Fault]]:
    part = deepcopy(dict(stored))
    if given.get("name", stored["name"]) != stored["name"]:
        return part, [_contradiction(("model", kind, "name"), given["name"], stored["name"], place)]
    faults = []
    for key, value in given.items():
        if (kind, key) in _FREE or key not in stored:
            part[key] = value
        elif key not in _WHERE_FROM and _differ(value, stored[key]):
            faults.append(_contradiction(("model", kind, key), value, stored[key], place))
    return part, faults


def _contradiction(keys: tuple[str, ...], given: Any, stored: Any, place: str) -> Fault:
    return Fault(
        keys,
        f"is {shown(given)}, but {brief(place)} was made with {shown(stored)}; leave it out, or start from another "
        "folder",
    )


def _differ(one: Any, other: Any) -> bool:
    plain = [list(value) if isinstance(value, tuple) else value for value in (one, other)]
    return bool(plain[0] != plain[1])


def _laid_over(stored: Mapping[str, Any], given: Any) -> Any:
    """What is given, with what is stored where nothing is."""
    if given is None:
        return deepcopy(dict(stored))
    if not isinstance(given, Mapping):
        return given
    mixed = deepcopy(dict(stored))
    for key, value in given.items():
        is_section = isinstance(value, Mapping) and isinstance(stored.get(key), Mapping)
        mixed[key] = _laid_over(stored[key], value) if is_section else value
    return mixed
