"""What other libraries say while we work: their log records, warnings and bars, kept out of our own lines.

A run keeps them in its folder; where there is no run, they are shown only if the work breaks off.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bagpiper.errors import Diverged, Notice, UserError, printable
from bagpiper.redact import redact

LOG = "run.log"
"""Their file in a run folder."""

_LIBRARIES = (
    "transformers",
    "huggingface_hub",
    "lightning",
    "lightning.pytorch",
    "lightning.fabric",
    "mlflow",
    "alembic",
)
"""Those that write to the terminal by handlers of their own."""

_OURS = ("bagpiper", "callbacks")


class Overheard(logging.Handler):
    """A handler of the root logger that keeps what is said, in memory until it is given a file."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self._kept: list[str] = []
        self._path: Path | None = None
        self._prefix = ""

    def keep_in(self, path: Path, prefix: str = "") -> None:
        """See the function of that name."""
        self._path, self._prefix = path, prefix
        self._write()

    def path(self) -> Path | None:
        """The file, if something is in it."""
        return self._path if self._path is not None and self._path.is_file() else None

    def take_kept(self) -> list[str]:
        """Lines that stand in no file."""
        kept, self._kept = self._kept, []
        return kept

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record; one of ours is for the user, and shown."""
        try:
            if record.name.split(".")[0] in _OURS:
                _show(record.getMessage())
            else:
                self._kept.append(redact(self.format(record)))
                self._write()
        except Exception:  # as every handler does: what logs goes on
            self.handleError(record)

    def _write(self) -> None:
        if self._path is None or not self._kept:
            return
        try:
            with self._path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.writelines(f"{self._prefix}{line}\n" for entry in self._kept for line in entry.splitlines())
        except OSError:
            return  # a full disk, or a folder that is gone: they stay in memory
        self._kept.clear()


@contextmanager
def overheard(*expected: type[BaseException]) -> Iterator[Overheard]:
    """Keep what other libraries say in the block; in a block within it, the outer one's handler goes on.

    Our own warnings (``Notice``, and those of our loggers) are shown as one line.

    Args:
        expected: exceptions that tell the user all there is to know, beside ``UserError`` and ``Diverged``: where
            another one breaks the block off, what was said is shown, or its place.
    """
    outer = _installed()
    if outer is not None:
        yield outer
        return
    told_in_words: tuple[type[BaseException], ...] = (UserError, Diverged, *expected)
    handler, root = Overheard(), logging.getLogger()
    root.addHandler(handler)
    try:
        with warnings.catch_warnings(), _libraries_through_root(), _without_their_bars():
            warnings.simplefilter("always", Notice)
            warnings.showwarning = _keep_warning
            yield handler
    except told_in_words:
        raise
    except Exception:
        _tell(handler)
        raise
    finally:
        root.removeHandler(handler)


def keep_in(path: Path, prefix: str = "") -> None:
    """Add what was said in the block around, and what is from here on, to a file, each line after ``prefix``."""
    handler = _installed()
    assert handler is not None, "not within overheard()"
    handler.keep_in(path, prefix)


def _installed() -> Overheard | None:
    return next((handler for handler in logging.getLogger().handlers if isinstance(handler, Overheard)), None)


def _keep_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any, **__: Any
) -> None:
    """In place of ``warnings.showwarning``."""
    if issubclass(category, Notice):
        _show(str(message))
    else:
        text = " ".join(str(message).split())
        logging.getLogger("py.warnings").warning("%s: %s (%s:%d)", category.__name__, text, filename, lineno)


def _show(message: str) -> None:
    print(f"warning: {printable(redact(message))}", file=sys.stderr)


def _tell(handler: Overheard) -> None:
    if handler.path() is not None:
        print(f"what other libraries said is in {handler.path()}", file=sys.stderr)
    for line in handler.take_kept():
        print(line, file=sys.stderr)


@contextmanager
def _libraries_through_root() -> Iterator[None]:
    """Their records reach the root logger's handlers and no stream of their own."""
    import lightning  # noqa: F401 (each sets up its logger when it is imported)
    import transformers.utils.logging  # noqa: F401

    before = os.environ.get("MLFLOW_CONFIGURE_LOGGING")
    os.environ["MLFLOW_CONFIGURE_LOGGING"] = "false"  # it is imported later, and only if it is used
    loggers = [logging.getLogger(name) for name in _LIBRARIES]
    were = [(logger, logger.handlers[:], logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers = [handler for handler in logger.handlers if type(handler) is not logging.StreamHandler]
        logger.propagate = True
    try:
        yield
    finally:
        for logger, handlers, propagate in were:
            logger.handlers, logger.propagate = handlers, propagate
        if before is None:
            del os.environ["MLFLOW_CONFIGURE_LOGGING"]
        else:
            os.environ["MLFLOW_CONFIGURE_LOGGING"] = before


@contextmanager
def _without_their_bars() -> Iterator[None]:
    """No bars while weights are read; those of downloads, which take long, stay."""
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging as theirs

    shown, downloads = theirs.is_progress_bar_enabled(), not are_progress_bars_disabled()
    if shown:
        theirs.disable_progress_bar()
        if downloads:
            enable_progress_bars()
    try:
        yield
    finally:
        if shown:
            theirs.enable_progress_bar()
