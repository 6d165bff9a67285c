"""Secrets are masked in whatever is written or shown; the one place that knows what a secret looks like.

The address of a tracking server may hold a password, which is needed in memory and nowhere else: the records of a run
are copied, published and read by people who may not use the account.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

MASK = "***"

_SURE = (
    r"[\w.-]*(?:secret|passw(?:or)?d|passphrase|credentials?)"
    r"|[\w.-]*(?:api|access|account|private|secret)[._-]?key"
    r"|(?:[\w.-]*[._-])?(?:api|access|auth|bearer|hf|hub|refresh|session)[._-]?token"
)
"""Names that stand for secrets wherever they are met."""

_NAME = (
    rf"{_SURE}|[\w.-]*(?:token|pwd|signature)|(?:[\w.-]*[._-])?(?:pass|auth|sig)"
    r"|[\w.-]*(?<!text)[._-]key|[\w.-]*accesskeyid|odbc_connect"
)
"""Names whose values are masked in ``name=value``; ``odbc_connect`` holds a whole connection string.

``key=value``, which our own messages say, is none, nor is ``text_key``, the name of a column.
"""

_SURE_NAME = re.compile(_SURE, re.IGNORECASE)
_ANY_NAME = re.compile(_NAME, re.IGNORECASE)
_LOGIN = re.compile(r"(://+|\bhttps?:/+)[^\s\"<>/?#]*@", re.IGNORECASE)
_REST = re.compile(r"(://+|\bhttps?:/+)((?:(?!://)[^\s\"<>])*)", re.IGNORECASE)
_MASKED = re.compile(r"^\*\*\*$|://+\*\*\*[@/]|[?&;][\w.-]+=\*\*\*")
_QUERY = re.compile(rf"([?&;](?:{_NAME})=)[^\s&\"<>]*", re.IGNORECASE)
_PAIR = re.compile(rf"((?<![\w.?&;-])(?:{_NAME})(?:=|[\"']\s*:\s*))(?:\"[^\"]*\"|'[^']*'|[^\s\"<>])+", re.IGNORECASE)


def redact(text: str) -> str:
    """A text without secrets: logins in URLs, and the values of tell-tale names, are ``***``."""
    return _PAIR.sub(rf"\1{MASK}", _redact_urls(text))


def redact_tree(value: Any) -> Any:
    """Nested containers, such as a recipe, without secrets: those in URLs, and texts under keys that stand for one.

    In other texts ``name=value`` stays: a recipe must load again to what it was, captions and all.
    """
    if isinstance(value, str):
        return _redact_urls(value)
    if isinstance(value, Mapping):
        return {key: MASK if _is_secret(key, item) else redact_tree(item) for key, item in value.items()}
    return [redact_tree(item) for item in value] if isinstance(value, list | tuple) else value


def masked_keys(tree: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys of a tree whose secrets were masked when it was written."""
    found = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found += masked_keys(value, f"{prefix}{key}.")
        elif any(_MASKED.search(str(item)) for item in (value if isinstance(value, list | tuple) else [value])):
            found.append(f"{prefix}{key}")
    return found


def redact_arguments(arguments: Sequence[str]) -> list[str]:
    """A command line without secrets."""
    return [_redact_argument(argument) for argument in arguments]


def _redact_argument(argument: str) -> str:
    name, equals, _ = argument.partition("=")
    return f"{name}={MASK}" if equals and _ANY_NAME.fullmatch(name) else redact(argument)


def _is_secret(key: Any, value: Any) -> bool:
    return isinstance(value, str) and bool(value) and _SURE_NAME.fullmatch(str(key)) is not None


def _redact_urls(text: str) -> str:
    text = _LOGIN.sub(rf"\1{MASK}@", text)
    text = _QUERY.sub(rf"\1{MASK}", text)
    return _REST.sub(lambda found: found[1] + _without_login(found[2]), text)


def _without_login(rest: str) -> str:
    """What follows ``scheme://``, without what may be a password where none belongs.

    A password should be quoted, but is often pasted as it is: SQLAlchemy takes one with ``/`` and ``?`` in it. So all
    is masked up to an ``@`` that a colon comes before. What is behind it may not be the host, and is not left to look
    like one: ``***/`` and not ``***@`` stands before it.
    """
    login = f"{MASK}@" if rest.startswith(f"{MASK}@") else ""
    before, at, after = rest.removeprefix(login).rpartition("@")
    return f"{MASK}/{after}" if at and (login or ":" in before) else rest
