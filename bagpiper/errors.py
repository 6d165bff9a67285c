"""Errors that are the user's to mend, and how their messages quote what the user gave."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """A mistake in what the user gave: the message says what, where and how to mend it.

    The command line prints the message alone and exits with 2; other exceptions keep their traceback and exit with 1.
    """


class Diverged(Exception):  # noqa: N818
    """Numbers of a training step that are not finite; the step was not taken.

    The command line prints the message alone and exits with 1: nothing that the user gave is known to be wrong.
    """


class Notice(UserWarning):
    """Something that the user should know and may leave as it is; verbs show it as one line."""


@contextmanager
def refusals_are_users() -> Iterator[None]:
    """What is refused in the block follows from what the user gave, whichever part refuses it.

    Raises:
        UserError: instead of a ValueError or OSError, with the same words.
    """
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        place = f"{brief(error.filename)}: " if error.filename else ""
        raise UserError(f"{place}{error.strerror or brief(error)}") from error
    except ValueError as error:
        raise UserError(str(error)) from error


def shown(value: object, limit: int = 80) -> str:
    """What stood in a user's file or call, as a message quotes it: one printable line, never a flood.

    Args:
        value: anything; text comes in quotes, control characters and halves of surrogate pairs as escapes.
        limit: characters of its ``repr`` that are kept; what is longer loses its middle and says how long it was.
    """
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # whole numbers beyond 4,300 digits; lists in lists in lists
        return f"a value of type {type(value).__name__}, too long to be shown"
    if not text.isprintable():  # of an array, say: its repr has several lines
        text = repr(text)
    if len(text) <= limit:
        return text
    tail = limit // 4
    return f"{text[: limit - tail]}...{text[-tail:]} ({len(text):,} characters)"


def brief(text: object, limit: int = 300) -> str:
    """A file's name, or what another library says, inside a message: as it is if that is short and printable.

    Args:
        text: is turned into text.
        limit: characters from which on it is quoted and cut as by ``shown``.
    """
    words = str(text)
    return words if len(words) <= limit and words.isprintable() else shown(words, limit)


def reason(error: BaseException) -> str:
    """What another library says of a fault, in one line of bounded length."""
    text = brief(" ".join(str(error).split()))
    telling = isinstance(error, ValueError | RuntimeError | OSError) and text
    return text if telling else f"{type(error).__name__}: {text}" if text else type(error).__name__


def printable(message: str) -> str:
    """A message for a terminal: its line breaks stay, other control characters (of a file's name, say) are escaped."""
    return "".join(part if part == "\n" or part.isprintable() else repr(part)[1:-1] for part in message)
