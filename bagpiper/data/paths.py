"""Which file a path means: one file has many names (``a.wav``, ``./a.wav``, links, copies), and paths cross links."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from bagpiper.errors import UserError, brief


def real_path(path: str | Path) -> str:
    """The absolute path of the file itself, links followed; what cannot exist keeps its name."""
    try:
        return os.path.realpath(path)
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return os.path.abspath(path)


def same_file(one: str | Path, other: str | Path) -> bool:
    """Whether two paths lead to one file that exists; on a disk that knows no case, in any spelling."""
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):
        return False


def path_from(folder: Path, path: str) -> str:
    """A path by which a file in ``folder`` can name another file, tried.

    Relative as the two are spelled; where a link on the way makes that lead elsewhere, relative between the real
    folders; else absolute.

    Args:
        folder: need not exist yet.
        path: from the working folder.

    Raises:
        UserError: none of them leads to the file.
    """
    for name, start in ((os.path.abspath(path), os.path.abspath(folder)), (real_path(path), real_path(folder))):
        with suppress(ValueError):  # another drive, on Windows
            relative = os.path.relpath(name, start)
            if same_file(real_path(os.path.join(folder, relative)), path):
                return _as_read(relative)
    if not same_file(real_path(path), path):
        raise UserError(f"{brief(path)}: cannot be reached from {brief(folder)}; check the links on the way")
    return real_path(path)


def _as_read(relative: str) -> str:
    """A relative path as manifests are read: ``~`` would be somebody's home, and ``data:...`` no file."""
    return os.path.join(os.curdir, relative) if relative.startswith("~") or ":" in relative else relative


def contents(paths: Iterable[str]) -> dict[str, str]:
    """What files hold: a name for every path, the same one for files of the same bytes, whatever they are called.

    A file is read only where another one has the same length: of recordings in a packed format hardly any.

    Raises:
        UserError: a file vanished, or cannot be read.
    """
    try:
        real = {path: os.path.realpath(path) for path in paths}
        length = {file: os.path.getsize(file) for file in dict.fromkeys(real.values())}
        files_of = Counter(length.values())
        held = {file: _digest(file) if files_of[size] > 1 else file for file, size in length.items()}
    except OSError as error:
        fault = f"{brief(error.filename)}: cannot be read ({error.strerror})"
        raise UserError(f"{fault}; check its permissions, or take its line out") from error
    return {path: held[file] for path, file in real.items()}


def _digest(file: str) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
