"""The lock of a run folder: one process at a time trains in it.

Two things say that a folder is taken. ``flock`` is the kernel's word: it ends with the process that has it, so a crash
locks nobody out. Where it does not work, or does not reach the other machine (some network file systems), the lock
file's time of change is a heartbeat: its owner touches it every ``BEAT`` seconds, and after ``STALE`` seconds without
it counts as dead. Process ids are shown, never asked for: on another machine or in another container they say nothing.

Whoever takes over from the dead puts a new file in the place of theirs, so one look at the file's inode tells a process
that stood still for long whether the folder is still its own.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from bagpiper.errors import UserError
from bagpiper.files import temporary_name
from bagpiper.training.run_folder import disk_errors

LOCK = "run.lock"
BEAT, STALE = 10.0, 60.0
_WAYS_OUT = "Wait until it ends, stop it, or choose another folder with run_dir=..."
_ATTEMPTS, _GLANCES, _WAIT = 20, 4, 0.05
"""How often a file that others take or leave, or only look at, is tried again, and after how many seconds."""
_SETTLED = 0.25
"""Seconds after which a new lock file that no kernel guards counts, if it is still there."""
_BORN = 0.5
"""Seconds for which an empty file is taken for one whose maker is about to lock it and to write its name."""

_handles: set[int] = set()
"""Open lock files of this process."""


def _close_in_child() -> None:
    """A forked child shares the kernel's lock and would keep it when the run is gone."""
    for handle in _handles:
        with suppress(OSError):
            os.close(handle)
    _handles.clear()


os.register_at_fork(after_in_child=_close_in_child)  # programs that are executed do not inherit the file at all


@dataclass(frozen=True)
class Owner:
    """Who holds a folder, as the lock file says.

    Attributes:
        host, pid: the process.
        since: when it took the folder.
        flock: whether the kernel keeps the lock for it.
    """

    host: str
    pid: int
    since: str
    flock: bool = True

    @classmethod
    def here(cls, *, flock: bool) -> Owner:
        """This process."""
        return cls(socket.gethostname(), os.getpid(), datetime.now().astimezone().isoformat(" ", "seconds"), flock)

    @classmethod
    def read(cls, handle: int) -> Owner | None:
        """Who wrote an open lock file; None for one that is empty or damaged."""
        try:
            record: Any = json.loads(os.pread(handle, 4096, 0))
            return cls(str(record["host"]), int(record["pid"]), str(record["since"]), bool(record.get("flock", True)))
        except (ValueError, TypeError, KeyError, AttributeError):
            return None

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


class RunLock:
    """A folder that this process holds; made by ``hold``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / LOCK
        self._pid = os.getpid()
        self._handle = -1
        self._seen = 0.0
        self._guard = threading.Lock()
        self._ended = threading.Event()

    def check(self) -> None:
        """See whether the folder is still this process's; called before it writes what others would write as well.

        A lock file that somebody removed is made again, if it was seen so lately that nobody can have taken the folder
        from the dead and left it again.

        Raises:
            UserError: another process has the folder, or may have had it.
        """
        with self._guard:
            if self._is_ours():
                return
            try:
                self._close()
                if time.monotonic() - self._seen > STALE:
                    raise UserError("perhaps by a process that has ended by now.")
                self._take()
            except FileNotFoundError:
                return  # the folder itself is gone: who writes to it will say so
            except UserError as error:
                raise UserError(
                    f"{self.folder}: this run stood still for more than {STALE:.0f} s, or its {LOCK} was removed, and "
                    f"meanwhile the folder was taken: {error} Nothing more is written here; what the folder holds goes "
                    f"on with `bagpiper train --resume {self.folder}`."
                ) from None

    def take(self) -> None:
        """Take the folder and begin to beat.

        Raises:
            UserError: it is taken.
        """
        with self._guard:
            self._take()
        threading.Thread(target=self._beat, name="run lock", daemon=True).start()

    def release(self) -> None:
        """Leave the folder to others."""
        self._ended.set()
        if self._pid != os.getpid():
            return  # a forked child on its way out
        with self._guard, suppress(OSError):
            if self._is_ours():
                self.path.unlink()
        self._close()

    def _take(self) -> None:
        for _ in range(_ATTEMPTS):
            if self._create():
                return
            _remove_dead(self.path)
            time.sleep(_WAIT if self.path.exists() else 0.0)
        raise UserError(f"{self.folder}: other processes are starting here at this moment. {_WAYS_OUT}")

    def _create(self) -> bool:
        """Make the lock file; False if there is one, or another process was faster."""
        try:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        self._handle = handle
        _handles.add(handle)
        try:
            locked = _flock(handle, fcntl.LOCK_EX)
            if locked is not False:
                os.write(handle, (json.dumps(asdict(Owner.here(flock=bool(locked)))) + "\n").encode())
                if locked is None:  # who looked at a dead file here before may be about to move this one aside
                    time.sleep(_SETTLED)
                if self._is_ours():
                    return True
                time.sleep(_WAIT)  # and puts it back at once
                if self._is_ours():
                    return True
        except OSError:  # the disk is full
            self.path.unlink(missing_ok=True)
            self._close()
            raise
        self._close()
        return False

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            with self._guard, suppress(OSError):
                if self._is_ours():
                    os.utime(self.path)

    def _is_ours(self) -> bool:
        ours = _is_at(self._handle, self.path)
        if ours:
            self._seen = time.monotonic()
        return ours

    def _close(self) -> None:
        if self._handle in _handles:
            _handles.discard(self._handle)
            os.close(self._handle)
        self._handle = -1


@contextmanager
def hold(folder: Path) -> Iterator[RunLock]:
    """Hold a run folder while the block runs.

    Args:
        folder: of the run; it exists.

    Raises:
        UserError: another process holds it, or it cannot be written to; nothing in it was changed.
    """
    lock = RunLock(folder)
    with disk_errors(folder):
        lock.take()
    try:
        yield lock
    finally:
        lock.release()


def check_free(folder: Path) -> None:
    """Look at the lock without taking it.

    Raises:
        UserError: the folder is taken.
    """
    path = folder / LOCK
    try:
        handle = os.open(path, os.O_RDONLY) if path.is_file() else None
    except OSError:
        handle = None
    if handle is None:
        return  # none, or none that can be read: whoever takes it will see
    try:
        _refuse_alive(handle, folder, _flock(handle, fcntl.LOCK_SH))
    finally:
        os.close(handle)


def _remove_dead(path: Path) -> None:
    """Remove a lock file whose owner is dead.

    Raises:
        UserError: it lives.
    """
    try:
        try:
            handle = os.open(path, os.O_RDWR)
        except PermissionError:  # of another user
            handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return
    except IsADirectoryError:
        raise UserError(f"{path}: a folder stands where the lock of the run belongs; remove it") from None
    try:
        _refuse_alive(handle, path.parent, _flock(handle, fcntl.LOCK_EX))
        if not _is_at(handle, path):
            return
        age = _now(path.parent) - os.fstat(handle).st_mtime
        if os.fstat(handle).st_size == 0 and abs(age) < _BORN:
            return
        # since this look another process may have removed the file, and put its own there: then that one goes back
        aside = temporary_name(path)
        os.rename(path, aside)
        if not _is_at(handle, aside):
            _put_back(aside, path)
        aside.unlink(missing_ok=True)
    except FileNotFoundError:
        return
    finally:
        os.close(handle)


def _put_back(aside: Path, path: Path) -> None:
    """Give a lock file its name again, unless there is one already."""
    try:
        os.link(aside, path)
    except FileExistsError:
        return
    except OSError:  # a file system without hard links
        os.rename(aside, path)


def _refuse_alive(handle: int, folder: Path, locked: bool | None) -> None:
    """Refuse a folder whose lock file belongs to a living process.

    Args:
        handle: the open lock file.
        folder: it lies in.
        locked: what ``_flock`` has said of it.

    Raises:
        UserError: names the owner and the ways out.
    """
    owner = Owner.read(handle)
    if locked is False:
        raise UserError(f"{folder}: another process trains here ({owner or 'its lock file is damaged'}). {_WAYS_OUT}")
    if locked and (owner is None or (owner.flock and owner.host == socket.gethostname())):
        return  # the kernel says that whoever wrote it is gone
    age = _now(folder) - os.fstat(handle).st_mtime
    # a time in the future comes from a clock that was put back, and must not lock the folder until then
    if abs(age) < STALE:
        raise UserError(
            f"{folder}: another process trains here ({owner or 'its lock file is damaged'}; last sign of life "
            f"{max(0.0, age):.0f} s ago). {_WAYS_OUT} If it has crashed, the folder is free {STALE:.0f} s after its "
            "last sign of life."
        )


def _flock(handle: int, kind: int) -> bool | None:
    """Lock an open file: whether that worked, None where the file system has no such locks."""
    # who only looks stands in the way of one who takes, but is gone at once
    for number in range(_GLANCES if kind == fcntl.LOCK_EX else 1):
        time.sleep(_WAIT if number else 0.0)
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            continue
        except OSError:  # ENOTSUP, ENOSYS, EINVAL or ENOLCK, as the file system likes
            return None
    return False


def _is_at(handle: int, path: Path) -> bool:
    """Whether an open file is the one that has this name. It is opened, so that NFS asks its server."""
    try:
        other = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        return os.path.sameopenfile(handle, other)
    except OSError:
        return False
    finally:
        os.close(other)


def _now(folder: Path) -> float:
    """The time by the clock that stamps the files of a folder, which on a network is not this machine's."""
    trial = temporary_name(folder / "now")
    try:
        trial.touch()
        now = trial.stat().st_mtime
        trial.unlink()
    except OSError:  # a folder that can only be read
        return time.time()
    return now
