"""One process at a time in a run folder, by the kernel's lock or by a heartbeat."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from bagpiper.errors import UserError
from bagpiper.training import run_lock
from bagpiper.training.run_lock import LOCK, Owner, check_free, hold

HOLDER = """
import os, sys, time
from pathlib import Path
from bagpiper.training.run_lock import hold
with hold(Path(sys.argv[1])):
    if len(sys.argv) > 2 and os.fork() == 0:
        time.sleep(600)  # an orphan that outlives the run
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Starts a process that holds the folder until its standard input ends."""
    started = []

    def start(*arguments):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path), *arguments],
            cwd=Path(__file__).resolve().parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with its orphan
        process.communicate()


@pytest.fixture
def no_flock(monkeypatch):
    """A file system without locks."""

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)


def leave_lock(folder, *, age=0.0, **record):
    """A lock file as a process elsewhere left it, last touched ``age`` seconds ago."""
    content = {"host": "elsewhere", "pid": os.getpid(), "since": "yesterday", **record}
    (folder / LOCK).write_text(json.dumps(content))
    touched(folder, age)


def touched(folder, age):
    now = time.time() - age
    os.utime(folder / LOCK, (now, now))


def made(folder):
    """Which file the lock is, and when it was touched."""
    status = (folder / LOCK).stat()
    return status.st_ino, status.st_mtime_ns


def refusal(folder) -> str:
    """The message of a refused start, after which the folder is as it was."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError) as looked:
        check_free(folder)
    with pytest.raises(UserError) as taken, hold(folder):
        pass
    assert str(looked.value) == str(taken.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    return str(taken.value)


def test_the_file_says_who_and_is_gone_in_the_end(tmp_path):
    with hold(tmp_path):
        record = json.loads((tmp_path / LOCK).read_text())
        assert (record["host"], record["pid"], record["flock"]) == (socket.gethostname(), os.getpid(), True)
        assert record["since"]
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RuntimeError), hold(tmp_path):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_second_process_is_refused_and_told_what_to_do(tmp_path, holder):
    """Both once trained, and every step was written twice."""
    process = holder()
    message = refusal(tmp_path)
    for part in (str(process.pid), socket.gethostname(), "since 20", "Wait", "stop it", "run_dir="):
        assert part in message, part
    process.communicate("")  # it ends
    check_free(tmp_path)
    with hold(tmp_path):
        pass


def test_a_process_that_stands_still_keeps_the_folder(tmp_path, holder):
    process = holder()
    process.send_signal(signal.SIGSTOP)
    touched(tmp_path, 1000)
    assert str(process.pid) in refusal(tmp_path)


@pytest.mark.parametrize("forks", [(), ("forks",)], ids=["alone", "with an orphan"])
def test_a_killed_process_locks_nobody_out(tmp_path, holder, forks):
    """Not even where a child that it forked lives on with a copy of the open file."""
    process = holder(*forks)
    process.kill()
    process.wait()
    assert (tmp_path / LOCK).exists()
    check_free(tmp_path)
    with hold(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()


def test_the_same_process_is_refused_as_well(tmp_path):
    with hold(tmp_path):
        assert str(os.getpid()) in refusal(tmp_path)


def test_a_program_that_the_run_starts_does_not_keep_the_folder(tmp_path):
    with hold(tmp_path):
        child = subprocess.Popen(["sleep", "600"], close_fds=False)
    try:
        with hold(tmp_path):
            pass
    finally:
        child.kill()
        child.wait()


def test_another_host_holds_the_folder_as_long_as_its_heart_beats(tmp_path):
    """Its pid says nothing here: the test gives it one that lives."""
    leave_lock(tmp_path, age=50)
    message = refusal(tmp_path)
    assert "elsewhere" in message and "last sign of life 50 s ago" in message and "60 s after" in message
    touched(tmp_path, 61)
    check_free(tmp_path)
    with hold(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["host"] == socket.gethostname()


def test_a_clock_that_was_put_back_locks_nobody_out(tmp_path):
    leave_lock(tmp_path, age=-86400)
    with hold(tmp_path):
        pass


def test_the_clock_of_the_folder_decides(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 0.0)
    leave_lock(tmp_path)
    now = run_lock._now(tmp_path)
    os.utime(tmp_path / LOCK, (now - 30, now - 30))
    assert "30 s ago" in refusal(tmp_path)


def test_a_dead_process_of_this_host_frees_the_folder_at_once(tmp_path):
    leave_lock(tmp_path, host=socket.gethostname())
    with hold(tmp_path):
        pass


@pytest.mark.parametrize(
    "content", ["", "{", "[1]", '{"host": "x"}', "\0" * 100, '{"host": 1, "pid": "y", "since": 2}']
)
def test_a_damaged_lock_file_is_no_lock_where_the_kernel_answers(tmp_path, content):
    (tmp_path / LOCK).write_text(content)
    with hold(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()


def test_a_damaged_lock_file_that_is_held_is_a_lock(tmp_path, holder):
    holder()
    (tmp_path / LOCK).write_text("")
    assert "damaged" in refusal(tmp_path)


class TestWithoutFlock:
    """Where the file system has no locks, the heartbeat alone decides."""

    @pytest.mark.parametrize("number", [errno.ENOTSUP, errno.ENOLCK, errno.EINVAL, errno.ENOSYS])
    def test_a_fresh_beat_refuses_and_a_stale_one_does_not(self, tmp_path, monkeypatch, number):
        def refuse(*_):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "flock", refuse)
        with hold(tmp_path):
            assert json.loads((tmp_path / LOCK).read_text())["flock"] is False
            assert "last sign of life" in refusal(tmp_path)
        leave_lock(tmp_path, host=socket.gethostname(), flock=False, age=61)
        with hold(tmp_path):
            pass

    def test_a_process_of_this_host_without_flock_is_not_dead_because_flock_works_by_now(self, tmp_path):
        leave_lock(tmp_path, host=socket.gethostname(), flock=False)
        assert socket.gethostname() in refusal(tmp_path)

    def test_a_damaged_file_counts_by_its_age(self, tmp_path, no_flock):
        (tmp_path / LOCK).write_text("")
        assert "damaged" in refusal(tmp_path)
        touched(tmp_path, 61)
        with hold(tmp_path):
            pass

    def test_the_heart_beats(self, tmp_path, no_flock, monkeypatch):
        monkeypatch.setattr(run_lock, "BEAT", 0.01)
        with hold(tmp_path):
            touched(tmp_path, 1000)
            deadline = time.monotonic() + 10
            while time.time() - (tmp_path / LOCK).stat().st_mtime > 100 and time.monotonic() < deadline:
                time.sleep(0.01)
            refusal(tmp_path)

    def test_who_stood_still_too_long_notices_and_leaves_the_lock_of_the_other(self, tmp_path, no_flock):
        with hold(tmp_path) as first:
            first.check()
            touched(tmp_path, 61)  # stopped for a minute
            with hold(tmp_path) as second:
                beat = made(tmp_path)
                with pytest.raises(UserError, match=r"stood still for more than 60 s.*Nothing more is written"):
                    first.check()
                first.release()
                assert made(tmp_path) == beat
                second.check()

    def test_who_stood_still_until_the_other_had_ended_does_not_go_on(self, tmp_path, no_flock):
        """The lock file is gone then, as if somebody had removed it; but the steps were trained by the other."""
        with hold(tmp_path) as first:
            touched(tmp_path, 61)
            with hold(tmp_path):
                pass
            first._seen -= 61  # by the clock of a process that was stopped
            with pytest.raises(UserError, match=r"ended by now.*Nothing more is written.*--resume"):
                first.check()
        assert list(tmp_path.iterdir()) == []

    def test_who_stood_still_and_was_not_replaced_goes_on(self, tmp_path, no_flock):
        with hold(tmp_path) as lock:
            touched(tmp_path, 1000)
            lock.check()


def test_a_lock_file_removed_by_hand_is_made_again(tmp_path):
    with hold(tmp_path) as lock:
        (tmp_path / LOCK).unlink()
        lock.check()
        assert str(os.getpid()) in refusal(tmp_path)


def test_who_takes_the_folder_after_a_removal_by_hand_keeps_it(tmp_path, holder):
    with hold(tmp_path) as lock:
        (tmp_path / LOCK).unlink()
        other = holder()
        with pytest.raises(UserError, match=f"removed.*process {other.pid}"):
            lock.check()
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == other.pid


def test_a_folder_that_is_gone_is_told_by_who_writes_to_it(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with hold(folder) as lock:
        (folder / LOCK).unlink()
        folder.rmdir()
        lock.check()


def test_a_folder_in_the_place_of_the_lock_is_told(tmp_path):
    (tmp_path / LOCK).mkdir()
    check_free(tmp_path)
    with pytest.raises(UserError, match="a folder stands where.*remove it"), hold(tmp_path):
        pass
    (tmp_path / LOCK).rmdir()
    with hold(tmp_path):
        pass


def test_no_lock_no_folder_no_permission_to_read(tmp_path):
    check_free(tmp_path / "nothing")
    check_free(tmp_path)


@pytest.mark.parametrize("flock", [True, False], ids=["flock", "beats"])
@pytest.mark.parametrize("left", [True, False], ids=["after a dead process", "in a free folder"])
def test_of_many_that_start_together_one_has_the_folder(tmp_path, flock, left, request):
    if not flock:
        request.getfixturevalue("no_flock")
    number, rounds = 8, 10
    barrier = threading.Barrier(number, action=lambda: leave_lock(tmp_path, age=61) if left else None)
    held: list[list[int]] = [[] for _ in range(rounds)]

    def start(me):
        for winners in held:
            barrier.wait()
            try:
                with hold(tmp_path) as lock:
                    winners.append(me)
                    ended.wait()
                    lock.check()
            except UserError:
                ended.wait()

    ended = threading.Barrier(number)
    threads = [threading.Thread(target=start, args=(me,)) for me in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(winners) for winners in held] == [1] * rounds
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("links", [True, False])
def test_a_lock_file_moved_by_mistake_goes_back_unless_there_is_another(tmp_path, monkeypatch, links):
    def no_links(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    if not links:
        monkeypatch.setattr(run_lock.os, "link", no_links)
    aside, path = tmp_path / "aside", tmp_path / LOCK
    aside.write_text("first")
    run_lock._put_back(aside, path)
    assert path.read_text() == "first"
    if links:
        aside.write_text("second")
        path.unlink()
        path.write_text("third")
        run_lock._put_back(aside, path)
        assert path.read_text() == "third"


def test_an_unwritable_folder_is_told_as_ever(tmp_path, monkeypatch):
    def denied(path, *_arguments, **_options):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(run_lock.os, "open", denied)
    with pytest.raises(UserError, match=r"cannot be written to \(Permission denied\).*run_dir="), hold(tmp_path):
        pass


def test_a_full_disk_leaves_no_lock(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(run_lock.os, "write", full)
        with pytest.raises(UserError, match="no space left"), hold(tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []
    with hold(tmp_path):
        pass


def test_a_lock_of_another_user_is_judged_without_writing_to_it(tmp_path, monkeypatch):
    original = os.open

    def not_ours(path, flags, *rest, **named):
        if str(path) == str(tmp_path / LOCK) and flags & os.O_RDWR and not flags & os.O_EXCL:
            raise PermissionError(errno.EACCES, "Permission denied")
        return original(path, flags, *rest, **named)

    monkeypatch.setattr(run_lock.os, "open", not_ours)
    leave_lock(tmp_path)
    assert "elsewhere" in refusal(tmp_path)
    touched(tmp_path, 61)
    with hold(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()


def test_an_owner_is_read_from_what_older_and_newer_releases_write(tmp_path):
    path = tmp_path / "lock"
    path.write_text('{"host": "a", "pid": 3, "since": "now", "mood": "good"}')
    handle = os.open(path, os.O_RDONLY)
    assert Owner.read(handle) == Owner("a", 3, "now", flock=True)
    os.close(handle)
