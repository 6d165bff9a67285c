"""Reading a recipe's text: plain values, and where each of them was written."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bagpiper.errors import UserError

RECIPES = Path(__file__).parents[1] / "recipes"
RUN_RECIPE = "recipe.yaml"
INTERPOLATION = "${"

Keys = tuple[str | int, ...]


@dataclass(frozen=True)
class Fault:
    """A mistake.

    Attributes:
        keys: where: ``("optimizer", "lr")``.
        message: what is wrong and what is allowed.
        override: set when the text of this override itself is at fault; ``keys`` is empty then.
    """

    keys: Keys
    message: str
    override: str | None = None


@dataclass(frozen=True)
class Problem:
    """A mistake as the user sees it.

    Attributes:
        where: ``file:line``, or ``override 'key=value'``.
        key: dotted key, empty for the recipe as a whole.
        message: what is wrong and what is allowed.
    """

    where: str
    key: str
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.key, self.message) if part)


class RecipeError(UserError):
    """A recipe that cannot be used; the message holds all mistakes at once.

    Attributes:
        problems: the mistakes.
    """

    def __init__(self, name: str, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        count = "1 mistake" if len(self.problems) == 1 else f"{len(self.problems)} mistakes"
        super().__init__("\n  ".join([f"recipe {name} has {count}:", *map(str, self.problems)]))


@dataclass(frozen=True)
class Origin:
    """Where a value was written: a line of the file, or an override."""

    line: int = 0
    override: str | None = None


@dataclass
class Source:
    """A recipe's plain values.

    Attributes:
        name: of the recipe: ``sft/smollm2-lora``, or the file's stem.
        path: the file.
        text: what it holds.
        overrides: ``key=value`` texts.
        tree: the values, after overrides.
        origins: where each key was written.
        faults: mistakes found while reading.
    """

    name: str
    path: Path
    text: str
    overrides: Sequence[str] = ()
    tree: dict[str, Any] = field(default_factory=dict)
    origins: dict[Keys, Origin] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    @property
    def unreadable(self) -> bool:
        """Whether the text is not a mapping at all."""
        return bool(self.faults) and not self.tree

    def problem(self, fault: Fault) -> Problem:
        """The fault with its place."""
        origin = self.origin(fault)
        if origin.override is not None:
            where = f"override '{origin.override}'"
        else:
            where = f"{self.path}:{origin.line}" if origin.line else str(self.path)
        return Problem(where, dotted(fault.keys), fault.message)

    def origin(self, fault: Fault) -> Origin:
        """Where the key of a fault, or else the nearest key around it, was written."""
        if fault.override is not None:
            return Origin(override=fault.override)
        keys = fault.keys
        while keys and keys not in self.origins:
            keys = keys[:-1]
        return self.origins.get(keys, Origin())


def dotted(keys: Keys) -> str:
    """``a.b[2].c``."""
    text = ""
    for key in keys:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else key
    return text


def suggest(word: str, allowed: Iterable[str]) -> str:
    """``did you mean 'x'? `` if something is near, then the allowed words."""
    allowed = list(allowed)
    near = difflib.get_close_matches(word, allowed, n=1) or [choice for choice in allowed if word and word in choice]
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"{hint}allowed: {', '.join(allowed)}"


def shipped() -> list[str]:
    """Names of the shipped recipes."""
    files = [*RECIPES.glob("*.yaml"), *RECIPES.glob("*/*.yaml")]
    return sorted(file.relative_to(RECIPES).with_suffix("").as_posix() for file in files)


def find(name_or_path: str) -> tuple[str, Path]:
    """Name and file of a recipe: a shipped one, a file, or a run folder.

    Raises:
        RecipeError: there is none.
    """
    if name_or_path in shipped():
        return name_or_path, RECIPES / f"{name_or_path}.yaml"
    path = Path(name_or_path).expanduser()
    if path.is_dir() and (path / RUN_RECIPE).is_file():
        path /= RUN_RECIPE
    if path.is_file():
        return path.stem, path
    what = "no such file" if path.suffix in (".yaml", ".yml") else "neither a shipped recipe, nor a file or run folder"
    hint = suggest(name_or_path, shipped())
    raise RecipeError(f"'{name_or_path}'", [Problem("", "", f"{what}; {hint}")])


def read(name_or_path: str, overrides: Sequence[str] = ()) -> Source:
    """Read a recipe and lay overrides over it.

    Raises:
        RecipeError: there is no such recipe.
    """
    name, path = find(name_or_path)
    source = Source(name, path, "", overrides)
    try:
        source.text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(name, [Problem(str(path), "", f"cannot be read as UTF-8 text: {error}")]) from error
    _parse(source)
    if source.unreadable:
        return source
    for override in overrides:
        _override(source, override)
    return source


def _parse(source: Source) -> None:
    """Fill in tree and origins; OmegaConf reads the values, so that 3e-4 is a number (plain YAML makes it text)."""
    try:
        node = yaml.compose(source.text, Loader=yaml.SafeLoader)
        if not isinstance(node, yaml.MappingNode):
            source.faults.append(Fault((), "must be a mapping of keys, starting with `version: 1`"))
            return
        _walk(node, (), source)
        # An interpolation is a fault already; defused here so that the rest of the recipe can still be checked.
        source.tree = _plain(OmegaConf.create(source.text.replace(INTERPOLATION, "$ {")))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        source.origins[()] = Origin(line)
        source.faults.append(Fault((), f"not YAML: {error.problem}"))
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        source.faults.append(Fault((), f"not YAML: {error}"))


def _plain(config: Any) -> Any:
    return OmegaConf.to_container(config)


def _walk(node: yaml.Node, keys: Keys, source: Source) -> None:
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            child = (*keys, str(key_node.value))
            source.origins[child] = Origin(key_node.start_mark.line + 1)
            _walk(value_node, child, source)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            source.origins[(*keys, index)] = Origin(item.start_mark.line + 1)
            _walk(item, (*keys, index), source)
    elif INTERPOLATION in node.value:
        source.faults.append(_interpolation(keys))


def _interpolation(keys: Keys) -> Fault:
    return Fault(
        keys,
        "'${...}' is not resolved in recipes (environment variables may hold secrets, and a recipe is saved with its "
        "run); write the value itself, or give it on the command line as key=value",
    )


def _override(source: Source, override: str) -> None:
    """Set one ``key=value``."""
    name, equals, text = override.partition("=")
    parts = name.strip().replace("[", ".").replace("]", "").split(".")
    keys: Keys = tuple(int(part) if part.isdigit() else part for part in parts)
    if not equals or "" in keys:
        source.faults.append(Fault((), "an override is written key=value, e.g. trainer.max_steps=10", override))
        return
    if INTERPOLATION in text:
        _mark(source, keys, override)
        source.faults.append(_interpolation(keys))
        return
    try:
        value = _plain(OmegaConf.from_dotlist([f"value={text}"]))["value"]
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        problem = getattr(error, "problem", None) or error
        source.faults.append(Fault((), f"the value is not YAML: {problem}", override))
        return
    if not _put(source, keys, value, override):
        source.faults.append(Fault((), f"there is no {dotted(keys)} to set in the recipe's list", override))


def _put(source: Source, keys: Keys, value: Any, override: str) -> bool:
    """Set a value, making mappings on the way (also in the place of null); False if a list has no such item."""
    here: Any = source.tree
    for depth, key in enumerate(keys):
        if isinstance(here, list) and not (isinstance(key, int) and key < len(here)):
            return False
        if depth == len(keys) - 1:
            here[key] = value
            _mark(source, keys, override)
        elif isinstance(here, dict) and not isinstance(here.get(key), dict | list):
            here[key] = {}
            _mark(source, keys[: depth + 1], override)
        elif not isinstance(here[key], dict | list):
            return False
        here = here[key]
    return True


def _mark(source: Source, keys: Keys, override: str) -> None:
    """Forget what the file said at and below a key that an override replaces."""
    source.origins = {known: origin for known, origin in source.origins.items() if known[: len(keys)] != keys}
    source.faults = [fault for fault in source.faults if fault.keys[: len(keys)] != keys]
    source.origins[keys] = Origin(override=override)
