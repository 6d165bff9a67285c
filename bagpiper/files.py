"""Writing files and folders so that a reader, or a crash at any instant, never meets half of one.

Everything is written under a temporary name in the same folder (``.tmp-...``) and renamed. What must survive a power
cut is forced to the disk before the rename; what can be made again (a cache) is not, which is much faster.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from bagpiper.errors import UserError, brief

TEMPORARY = ".tmp-"


def at_home(path: str) -> str:
    """A path with a leading ``~`` written out; where that means nobody's home it stays as it is."""
    try:
        return os.path.expanduser(path)
    except ValueError:  # ~ before a NUL, or before half a surrogate pair
        return path


def temporary_name(target: Path) -> Path:
    """A name beside ``target`` that no other process or thread uses, recognised by ``remove_leftovers``."""
    return target.with_name(f"{TEMPORARY}{target.name}-{os.getpid()}-{threading.get_ident()}")


@contextmanager
def replacing_file(target: Path, *, durable: bool = True) -> Iterator[Path]:
    """A file under a temporary name that becomes ``target`` when the block ends well and is removed otherwise.

    Args:
        target: where to; its folder is made.
        durable: force it to the disk before the rename.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(target)
    try:
        yield temporary
        if durable:
            sync(temporary)
        os.replace(temporary, target)
        if durable:
            sync(target.parent)
    finally:
        with suppress(OSError):  # a full or vanished disk has said so already
            temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """A new folder under a temporary name, which becomes ``target`` when the block ends well and is removed otherwise.

    Everything in it is synced before the rename. An old ``target`` is moved aside first and removed last.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(target)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        put_in_place(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def put_in_place(finished: Path, target: Path) -> None:
    """Sync a finished folder and give it its name, which another folder may have had."""
    sync_tree(finished)
    remove_tree(target, replacement=finished)
    sync(target.parent)


def remove_tree(folder: Path, replacement: Path | None = None) -> None:
    """Remove a folder so that no half of it is ever seen under its name.

    Args:
        folder: what goes; it need not exist.
        replacement: a folder that takes its name between moving the old one aside and removing it.
    """
    aside = temporary_name(folder.with_name(f"old-{folder.name}"))
    shutil.rmtree(aside, ignore_errors=True)
    if folder.exists():
        os.rename(folder, aside)
    if replacement is not None:
        os.rename(replacement, folder)
    shutil.rmtree(aside, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left in a folder under temporary names."""
    for path in folder.glob(f"{TEMPORARY}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a small file whole or not at all, and durably."""
    with replacing_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_for_user(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, without waiting for the disk.

    Raises:
        UserError: the folder cannot be written or the disk is full; what was at ``path`` before is untouched.
    """
    write_together({path: data})


def write_together(files: Mapping[Path, bytes]) -> None:
    """Write files that belong together: a crash at any instant leaves all old ones, all new ones, or the first alone.

    Old beside new is never seen: once all are written under temporary names, the old files but the first are removed,
    then the new ones take their names in order.

    Args:
        files: what they hold.

    Raises:
        UserError: a folder cannot be written or the disk is full; what was there before is untouched.
    """
    first, *others = files
    try:
        with ExitStack() as stack:
            for path in reversed(list(files)):  # the stack is undone from its end
                stack.enter_context(replacing_file(path, durable=False)).write_bytes(files[path])
            for path in others:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"{brief(first)}: cannot be written ({error.strerror or error}); free space or choose another folder. "
            "Files already written are kept."
        ) from error


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """A hard link, or a copy on a file system without them."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def sync_tree(folder: Path) -> None:
    """Force the files and folders under ``folder`` to the disk."""
    for root, _, names in os.walk(folder):
        for name in names:
            sync(Path(root) / name)
        sync(Path(root))


def sync(path: Path) -> None:
    """Force a file's bytes, or a folder's list of names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
