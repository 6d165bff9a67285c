"""Plain values -> typed settings, collecting every mistake; and typed settings -> plain values."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable, Mapping
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from bagpiper.errors import brief, shown
from bagpiper.recipe import registry
from bagpiper.recipe.settings import ModelSettings, Recipe, SourceSettings
from bagpiper.recipe.source import Fault, Keys, dotted, suggest

OPEN_VALUE = "???"
"""OmegaConf's mark of a value that the command line must give."""

_SHORT_FORM = {SourceSettings: "path"}
"""Settings that may be written as a bare string, and the key that it stands for."""


_LARGEST = 2**64 - 1
"""Of whole numbers: the largest seed. Products of two of them still are finite floats."""


class _BadValueError(Exception):
    """A value that is no use; why is recorded already."""


class Reader:
    """Makes settings of plain values.

    Attributes:
        ready: whether ``???`` is a mistake; otherwise the key gets its default.
        faults: the mistakes met so far.
    """

    def __init__(self, *, ready: bool = True) -> None:
        self.ready = ready
        self.faults: list[Fault] = []

    def attempt(self, read: Callable[[], Any]) -> Any:
        """What ``read`` gives, or None when its value is no use (``faults`` says why)."""
        try:
            return read()
        except _BadValueError:
            return None

    def settings(self, cls: type, value: Any, keys: Keys) -> Any:
        """An instance of a dataclass; keys with a mistake get their default, or None where there is none."""
        if isinstance(value, str) and cls in _SHORT_FORM:
            value = {_SHORT_FORM[cls]: value}
        if not isinstance(value, Mapping):
            raise self._fail(keys, f"must be a mapping of {', '.join(_types(cls))}, not {_shown(value)}")
        types = _types(cls)
        for key in value:
            if key not in types:
                self.faults.append(Fault((*keys, key), _unknown_key(cls, key)))
        specs = dataclasses.fields(cls)
        known = {spec.name: self._field(cls, spec, types[spec.name], value, keys) for spec in specs}
        try:
            return cls(**known)
        except ValueError as error:  # the config's own __post_init__
            if any(fault.keys[: len(keys)] == keys for fault in self.faults):
                raise _BadValueError from error  # a default in place of a wrong value may be all that it complains of
            named = [key for key in re.findall(r"\w+", str(error)) if key in value]
            raise self._fail((*keys, *named[:1]), brief(error, 400)) from error

    def component(self, kind: str, value: Any, keys: Keys) -> Any:
        """The Config of a component from a mapping with ``name``; None stays None."""
        if value is None:
            return None
        example = f"{{name: {registry.names(kind)[0]}}}"
        if not isinstance(value, Mapping):
            raise self._fail(keys, f"must be a mapping with a name, such as {example}, not {_shown(value)}")
        name = value.get("name")
        if not isinstance(name, str):
            raise self._fail(keys, f"needs a name, such as {example}; {suggest(_plain(name), registry.names(kind))}")
        if name not in registry.names(kind):
            raise self._fail((*keys, "name"), f"unknown {kind} {shown(name)}; {suggest(name, registry.names(kind))}")
        try:
            cls = registry.config_class(kind, name)
        except (ImportError, AttributeError) as error:
            message = f"{kind} '{name}' is registered, but not importable: {brief(error)}"
            raise self._fail((*keys, "name"), message) from error
        return self.settings(cls, {key: item for key, item in value.items() if key != "name"}, keys)

    def _field(self, cls: type, spec: dataclasses.Field[Any], kind: Any, value: Mapping[str, Any], keys: Keys) -> Any:
        below = (*keys, spec.name)
        if spec.name in value:
            try:
                if cls is ModelSettings and spec.name in registry.KINDS:
                    return self.component(spec.name, value[spec.name], below)
                return self.value(kind, value[spec.name], below)
            except _BadValueError:
                pass
        elif _has_no_default(spec):
            self.faults.append(Fault(below, "missing; this key has no default"))
        return _default(spec)

    def value(self, kind: Any, value: Any, keys: Keys) -> Any:
        """A value of a type as dataclasses annotate it."""
        if isinstance(value, str) and value == OPEN_VALUE:
            if not self.ready:
                raise _BadValueError
            raise self._fail(keys, f"needs a value: write it here, or give {dotted(keys)}=... on the command line")
        origin, arguments = get_origin(kind), get_args(kind)
        if kind is Any:
            return value
        if origin in (Union, UnionType):
            return self._union(arguments, value, keys)
        if origin is Literal:
            if any(value == choice and type(value) is type(choice) for choice in arguments):
                return value
            raise self._fail(keys, f"{_shown(value)} is not a choice; {suggest(_plain(value), map(str, arguments))}")
        if value is None:
            raise self._fail(keys, "may not be null; leave the key out to get its default")
        if origin is list:
            return self._items(lambda _: arguments[0], value, keys)
        if origin is tuple:
            return self._tuple(arguments, value, keys)
        if origin is dict:
            return self._dict(arguments, value, keys)
        if dataclasses.is_dataclass(kind):
            return self.settings(kind, value, keys)  # type: ignore[arg-type]
        return self._scalar(kind, value, keys)

    def _union(self, choices: tuple[Any, ...], value: Any, keys: Keys) -> Any:
        if value is None and NoneType in choices:
            return None
        choices = tuple(choice for choice in choices if choice is not NoneType)
        for choice in choices[:-1]:
            attempt = Reader(ready=self.ready)
            try:
                made = attempt.value(choice, value, keys)
            except _BadValueError:
                continue
            if not attempt.faults:
                return made
        return self.value(choices[-1], value, keys)

    def _items(self, kind_of: Callable[[int], Any], value: Any, keys: Keys) -> list[Any]:
        if not isinstance(value, list | tuple):
            example = "" if isinstance(value, Mapping) else f"such as [{brief(_plain(value), 80)}], "
            raise self._fail(keys, f"must be a list, {example}not {_shown(value)}")
        items, failed = [], False
        for index, item in enumerate(value):
            try:
                items.append(self.value(kind_of(index), item, (*keys, index)))
            except _BadValueError:
                failed = True
        if failed:
            raise _BadValueError
        return items

    def _tuple(self, arguments: tuple[Any, ...], value: Any, keys: Keys) -> tuple[Any, ...]:
        if arguments[-1] is Ellipsis:
            return tuple(self._items(lambda _: arguments[0], value, keys))
        if isinstance(value, list | tuple) and len(value) != len(arguments):
            raise self._fail(keys, f"must have {len(arguments)} items, not {len(value)}")
        return tuple(self._items(lambda index: arguments[index], value, keys))

    def _dict(self, arguments: tuple[Any, ...], value: Any, keys: Keys) -> dict[Any, Any]:
        if not isinstance(value, Mapping):
            raise self._fail(keys, f"must be a mapping, not {_shown(value)}")
        made, failed = {}, False
        for key, item in value.items():
            try:
                made[self.value(arguments[0], key, (*keys, key))] = self.value(arguments[1], item, (*keys, key))
            except _BadValueError:
                failed = True
        if failed:
            raise _BadValueError
        return made

    def _scalar(self, kind: type, value: Any, keys: Keys) -> Any:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if kind is float and is_number and abs(value) <= sys.float_info.max:
            return float(value)
        if kind is int and is_number and abs(value) <= _LARGEST and value == int(value):
            return int(value)  # 1e4 is read as 10000.0
        if kind in (str, bool) and type(value) is kind:
            return value
        words = {str: "text", bool: "true or false", int: "a whole number", float: "a finite number"}
        hint = f"; at most {_LARGEST}" if kind is int and is_number and abs(value) > _LARGEST else ""
        if kind is str:
            hint = "; put it in quotes"
        elif isinstance(value, str) and value.strip():
            hint = "; write it without quotes" if _is_number(value) else ""
        raise self._fail(keys, f"must be {words.get(kind, kind.__name__)}, not {_shown(value)}{hint}")

    def _fail(self, keys: Keys, message: str) -> _BadValueError:
        self.faults.append(Fault(keys, message))
        return _BadValueError()


def to_dict(settings: Any) -> Any:
    """Plain containers of settings: dictionaries, lists, numbers, text; components carry their ``name``."""
    if isinstance(settings, ModelSettings):
        plain = {}
        for spec in dataclasses.fields(settings):
            item = getattr(settings, spec.name)
            is_part = spec.name in registry.KINDS and item is not None
            plain[spec.name] = component_to_dict(spec.name, item) if is_part else to_dict(item)
        return plain
    if dataclasses.is_dataclass(settings):
        return {spec.name: to_dict(getattr(settings, spec.name)) for spec in dataclasses.fields(settings)}
    if isinstance(settings, Mapping):
        return {key: to_dict(item) for key, item in settings.items()}
    if isinstance(settings, list | tuple):
        return [to_dict(item) for item in settings]
    return settings


def component_to_dict(kind: str, config: Any) -> dict[str, Any]:
    """Plain form of a component's Config: its registered ``name`` and its fields."""
    return {"name": registry.name_of(kind, config), **to_dict(config)}


@cache
def _types(cls: type) -> dict[str, Any]:
    """Key -> type, in the order of the dataclass."""
    hints = get_type_hints(cls)
    return {spec.name: hints[spec.name] for spec in dataclasses.fields(cls)}


def _unknown_key(cls: type, key: Any) -> str:
    # A component's keys are its own affair; within the recipe's sections a key may be in the wrong one.
    elsewhere = _homes(str(key)) if cls is Recipe or cls in _types(Recipe).values() else []
    hint = f"there is '{elsewhere[0]}'; " if elsewhere else ""
    return f"unknown key; {hint}{suggest(str(key), _types(cls))}"


def _homes(key: str) -> list[str]:
    """Dotted keys of a recipe whose last part is ``key``."""
    sections = {name: kind for name, kind in _types(Recipe).items() if dataclasses.is_dataclass(kind)}
    return [f"{name}.{key}" for name, kind in sections.items() if key in _types(kind)]  # type: ignore[arg-type]


def _has_no_default(spec: dataclasses.Field[Any]) -> bool:
    return spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING


def _default(spec: dataclasses.Field[Any]) -> Any:
    if spec.default_factory is not dataclasses.MISSING:
        return spec.default_factory()
    return None if spec.default is dataclasses.MISSING else spec.default


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    return _plain(value) if value is None or isinstance(value, bool) else shown(value)
