"""Recipes: YAML -> ``settings.Recipe``, with every mistake at once; and back.

A recipe is one YAML file. ``name:`` in a component's mapping picks it from the registry, the rest of the mapping is its
Config. ``key=value`` overrides are laid over the file. Nothing here imports torch.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf

from bagpiper.errors import brief, shown
from bagpiper.recipe.rules import clashes
from bagpiper.recipe.settings import GenerationSettings, ModelSettings, Recipe
from bagpiper.recipe.source import Fault, Keys, Problem, RecipeError, Source, dotted, find, read, shipped
from bagpiper.recipe.start import with_start
from bagpiper.recipe.types import Reader, component_to_dict, to_dict
from bagpiper.redact import redact_tree

__all__ = [
    "Problem",
    "RecipeError",
    "check_recipe",
    "component_from_dict",
    "component_to_dict",
    "dump_recipe",
    "find",
    "generation_from_dict",
    "generation_to_dict",
    "load_recipe",
    "model_from_dict",
    "model_to_dict",
    "recipe_from_dict",
    "recipe_to_dict",
    "shipped",
]

_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_Settings = TypeVar("_Settings")


def load_recipe(name_or_path: str, overrides: Sequence[str] = (), *, ready: bool = True) -> Recipe:
    """Read a recipe.

    Args:
        name_or_path: a shipped recipe (``quickstart``, ``sft/smollm2-lora``), a YAML file or a run folder.
        overrides: ``key=value``, dotted; values are YAML (``data.sources=[a.jsonl,b.jsonl]``).
        ready: whether it must be ready to run: the files that it names exist and no ``???`` is left open.

    Returns:
        The recipe, ``name`` filled in.

    Raises:
        RecipeError: something is wrong; the message lists every mistake with its place.
    """
    source = read(name_or_path, overrides)
    recipe, problems = _understand(source, ready=ready)
    if problems:
        raise RecipeError(name_or_path, problems)
    return recipe


def check_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> list[Problem]:
    """Every mistake in a recipe, in the order of its lines; empty if there is none."""
    try:
        return _understand(read(name_or_path, overrides), ready=True)[1]
    except RecipeError as error:
        return error.problems


def dump_recipe(recipe: Recipe, *, masked: bool = False) -> str:
    """The recipe as YAML with every key written out; it loads again to an equal recipe, but for what is masked.

    Args:
        recipe: the recipe.
        masked: whether secrets are masked; records of a run hold none.
    """
    plain = recipe_to_dict(recipe)
    return OmegaConf.to_yaml(OmegaConf.create(redact_tree(plain) if masked else plain))


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe in plain containers."""
    return dict(to_dict(recipe))


def recipe_from_dict(plain: Mapping[str, Any]) -> Recipe:
    """A recipe from plain containers; files are not looked for.

    Raises:
        RecipeError: something is wrong.
    """
    source = Source(str(plain.get("name", "recipe")), Path("recipe"), "", tree=dict(plain))
    recipe, problems = _understand(source, ready=False)
    if problems:
        raise RecipeError(source.name, problems)
    return recipe


def component_from_dict(kind: str, plain: Mapping[str, Any]) -> Any:
    """A component's Config from what ``component_to_dict`` gave.

    Raises:
        RecipeError: unknown name or key, or a value that does not fit.
    """
    reader = Reader()
    return _finish(reader, reader.attempt(lambda: reader.component(kind, plain, (kind,))), kind)


def model_to_dict(model: ModelSettings) -> dict[str, Any]:
    """The ``model`` section in plain containers."""
    return dict(to_dict(model))


def model_from_dict(plain: Mapping[str, Any]) -> ModelSettings:
    """The ``model`` section from plain containers.

    Raises:
        RecipeError: something is wrong.
    """
    return _settings_from_dict(ModelSettings, plain, "model")


def generation_to_dict(generation: GenerationSettings) -> dict[str, Any]:
    """The ``generation`` section in plain containers."""
    return dict(to_dict(generation))


def generation_from_dict(plain: Mapping[str, Any]) -> GenerationSettings:
    """The ``generation`` section from plain containers.

    Raises:
        RecipeError: something is wrong.
    """
    return _settings_from_dict(GenerationSettings, plain, "generation")


def _settings_from_dict(cls: type[_Settings], plain: Mapping[str, Any], section: str) -> _Settings:
    reader = Reader()
    return _finish(reader, reader.attempt(lambda: reader.settings(cls, plain, (section,))), section)


def _finish(reader: Reader, made: Any, name: str) -> Any:
    if reader.faults:
        raise RecipeError(name, [Problem("", dotted(fault.keys), fault.message) for fault in reader.faults])
    return made


def _understand(source: Source, *, ready: bool) -> tuple[Recipe, list[Problem]]:
    """The typed recipe and everything wrong with it."""
    if source.unreadable:
        return Recipe(), [source.problem(fault) for fault in source.faults]
    plugin_faults = _import_plugins(source.tree.get("plugins"))
    tree, start_faults = with_start({"name": source.name, **source.tree}, ready=ready)
    reader = Reader(ready=ready)
    recipe = reader.attempt(lambda: reader.settings(Recipe, tree, ()))
    if "version" not in tree:
        reader.faults.append(Fault(("version",), "missing; write `version: 1`"))
    faults = _first_at_each_key([*source.faults, *plugin_faults, *start_faults, *reader.faults])
    if recipe is not None:
        wrong = [fault.keys for fault in faults if fault.override is None]
        for clash in clashes(recipe, ready=ready):
            if not any(_is_wrong(keys, wrong) for keys in clash.keys):
                faults.append(Fault(clash.keys[0], clash.message))
    faults.sort(key=lambda fault: _order(source, fault))
    return recipe or Recipe(), [source.problem(fault) for fault in faults]


def _import_plugins(plugins: Any) -> list[Fault]:
    """Import the modules that register further components; from the working folder too, after everything installed."""
    faults = []
    for index, module in enumerate(plugins if isinstance(plugins, list) else []):
        keys: Keys = ("plugins", index)
        if not isinstance(module, str) or not _MODULE.fullmatch(module):
            faults.append(Fault(keys, f"must be the name of a module such as my_parts, not {shown(module)}"))
            continue
        folder = str(Path.cwd())
        if folder not in sys.path:
            sys.path.append(folder)
        try:
            import_module(module)
        except Exception as error:  # the plugin's own code: whatever goes wrong in it is reported with the rest
            faults.append(Fault(keys, f"cannot be imported: {type(error).__name__}: {brief(error)}"))
    return faults


def _first_at_each_key(faults: Sequence[Fault]) -> list[Fault]:
    """One fault a key: what follows from the first is no news."""
    kept: dict[tuple[Keys, str | None], Fault] = {}
    for fault in faults:
        kept.setdefault((fault.keys, fault.override), fault)
    return list(kept.values())


def _is_wrong(keys: Keys, wrong: Sequence[Keys]) -> bool:
    """Whether a key, one around it or one below it is wrong by itself."""
    return any(keys[: len(bad)] == bad[: len(keys)] for bad in wrong)


def _order(source: Source, fault: Fault) -> tuple[bool, int]:
    """By line, then the overrides as they were given."""
    origin = source.origin(fault)
    if origin.override is None:
        return False, origin.line
    return True, source.overrides.index(origin.override)
