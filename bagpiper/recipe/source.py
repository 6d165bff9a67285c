"""Reading a recipe's text: plain values, and where each of them was written."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from yaml.reader import ReaderError

from bagpiper.errors import UserError, brief, shown
from bagpiper.files import at_home

RECIPES = Path(__file__).parents[1] / "recipes"
RUN_RECIPE = "recipe.yaml"
INTERPOLATION = "${"

_MOST_BYTES = 1 << 18
"""Of a recipe's file: PyYAML reads 300 kB a second, so what was given by mistake would take minutes."""
_MOST_VALUES = 10_000
"""Of a recipe, those behind aliases counted each time; as OmegaConf has it."""
_DEEPEST = 20
"""Keys and lists inside one another; OmegaConf fails near 90, or sooner where it is called from deep down."""
_MOST_DIGITS = 100
"""Of a whole number. Python reads 4,300 and no more."""
_MOST_SHOWN = 20
"""Mistakes that a message lists."""

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
        listed = [str(problem) for problem in self.problems[:_MOST_SHOWN]]
        if len(self.problems) > _MOST_SHOWN:
            listed.append(f"and {len(self.problems) - _MOST_SHOWN} more")
        super().__init__("\n  ".join([f"recipe {brief(name)} has {count}:", *listed]))


class _BadTextError(Exception):
    """YAML that cannot be read.

    Attributes:
        line: where, 0 if that is not known.
        keys: of the value, if it is known.
    """

    def __init__(self, message: str, line: int = 0, keys: Keys = ()) -> None:
        super().__init__(message)
        self.line, self.keys = line, keys


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
            where = f"override {shown(origin.override)}"
        else:
            where = f"{brief(self.path)}:{origin.line}" if origin.line else brief(self.path)
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
        name = brief(key, 80)
        text += f"[{name}]" if isinstance(key, int) else f".{name}" if text else name
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
    path = Path(at_home(name_or_path))
    if os.path.isfile(path / RUN_RECIPE):
        path /= RUN_RECIPE
    if os.path.isfile(path):
        return path.stem, path
    what = "no such file" if path.suffix in (".yaml", ".yml") else "neither a shipped recipe, nor a file or run folder"
    hint = suggest(name_or_path, shipped())
    raise RecipeError(shown(name_or_path), [Problem("", "", f"{what}; {hint}")])


def read(name_or_path: str, overrides: Sequence[str] = ()) -> Source:
    """Read a recipe and lay overrides over it.

    Raises:
        RecipeError: there is no such recipe.
    """
    name, path = find(name_or_path)
    source = Source(name, path, "", overrides)
    try:
        if os.path.getsize(path) > _MOST_BYTES:
            fault = f"holds more than {_MOST_BYTES >> 10} kB; is it a recipe?"
            raise RecipeError(name, [Problem(brief(path), "", fault)])
        source.text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        fault = f"cannot be read as UTF-8 text: {brief(error)}"
        raise RecipeError(name, [Problem(brief(path), "", fault)]) from error
    _parse(source)
    if source.unreadable:
        return source
    for override in overrides:
        _override(source, override)
    return source


def _parse(source: Source) -> None:
    """Fill in tree and origins; OmegaConf reads the values, so that 3e-4 is a number (plain YAML makes it text)."""
    try:
        node = _attempt(lambda: yaml.compose(source.text, Loader=yaml.SafeLoader))
        if not isinstance(node, yaml.MappingNode):
            source.faults.append(Fault((), "must be a mapping of keys, starting with `version: 1`"))
            return
        _walk(node, (), source)
        # An interpolation is a fault already; defused here so that the rest of the recipe can still be checked.
        text = source.text.replace(INTERPOLATION, "$ {")
        source.tree = _attempt(lambda: _plain(OmegaConf.create(text)))
    except _BadTextError as error:
        source.origins[error.keys] = Origin(error.line)
        source.faults.append(Fault(error.keys, str(error)))


def _attempt(read: Callable[[], Any]) -> Any:
    """What ``read`` makes of YAML.

    Raises:
        _BadTextError: it fails, in whatever way.
    """
    try:
        return read()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise _BadTextError(f"not YAML: {brief(error.problem, 200)}", line) from error
    except ReaderError as error:
        raise _BadTextError(f"not YAML: the character #x{error.character:04x} is not allowed in it") from error
    except RecursionError as error:
        raise _BadTextError(f"nested more than {_DEEPEST} deep") from error
    except Exception as error:  # what stands behind a tag (`!!bool maybe`) raises what it likes; so does OmegaConf
        raise _BadTextError(f"not YAML: {type(error).__name__}: {brief(error, 200)}") from error


def _plain(config: Any) -> Any:
    return OmegaConf.to_container(config)


def _walk(node: yaml.Node, keys: Keys, source: Source) -> None:
    """Note where every value stands, and refuse what would flood or sink those who read it next."""
    line = node.start_mark.line + 1
    if len(keys) > _DEEPEST:
        raise _BadTextError(f"nested more than {_DEEPEST} deep", line)
    if len(source.origins) > _MOST_VALUES:
        raise _BadTextError(f"made of more than {_MOST_VALUES:,} values, aliases (*name) written out", line)
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise _BadTextError("not YAML for a recipe: a key must be a word", line)
            _check_scalar(key_node, keys)
            child = (*keys, str(key_node.value))
            if child in source.origins:
                raise _BadTextError(f"not YAML: found duplicate key {brief(key_node.value, 80)}", line)
            source.origins[child] = Origin(line)
            _walk(value_node, child, source)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            source.origins[(*keys, index)] = Origin(item.start_mark.line + 1)
            _walk(item, (*keys, index), source)
    else:
        _check_scalar(node, keys)
        if INTERPOLATION in node.value:
            source.faults.append(_interpolation(keys))


def _check_scalar(node: yaml.Node, keys: Keys) -> None:
    line = node.start_mark.line + 1
    if node.tag == "tag:yaml.org,2002:int" and len(node.value) > _MOST_DIGITS:
        raise _BadTextError(
            f"a whole number of {len(node.value):,} digits; at most {_MOST_DIGITS} are read", line, keys
        )
    if not _is_unicode(node.value):
        raise _BadTextError(f"{shown(node.value)} holds half a surrogate pair, which is no character", line, keys)


def _is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8; escapes can hold more than that."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


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
    keys: Keys = tuple(int(part) if _is_index(part) else part for part in parts)
    if not equals or "" in keys or len(keys) > _DEEPEST:
        source.faults.append(Fault((), "an override is written key=value, e.g. trainer.max_steps=10", override))
        return
    if INTERPOLATION in text:
        _mark(source, keys, override)
        source.faults.append(_interpolation(keys))
        return
    try:
        node = _attempt(lambda: yaml.compose(text, Loader=yaml.SafeLoader))
        if node is not None:
            _walk(node, (), Source("", source.path, text))  # for what it refuses
        value = _attempt(lambda: _plain(OmegaConf.from_dotlist([f"value={text}"]))["value"])
    except _BadTextError as error:
        source.faults.append(Fault((), f"the value is {error}", override))
        return
    if not _put(source, keys, value, override):
        source.faults.append(Fault((), f"there is no {dotted(keys)} to set in the recipe's list", override))


def _is_index(part: str) -> bool:
    return part.isascii() and part.isdecimal() and len(part) < 10


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
