"""The cache of codes."""

from __future__ import annotations

import ast
import errno
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bagpiper.data.codes import CodeCache, fill_codes
from bagpiper.data.examples import distinct_clips
from bagpiper.errors import UserError

SHA = "ab" * 32


@pytest.mark.parametrize("size", [2, 1024, 70000])
def test_codes_come_back_as_they_were(size: int, tmp_path: Path) -> None:
    cache = CodeCache(tmp_path, "codec")
    codes = np.random.default_rng(0).integers(0, size, (50, 4))
    codes[0, 0] = size - 1
    assert not cache.has(SHA)
    cache.put(SHA, codes)
    assert cache.has(SHA)
    back = cache.get(SHA)
    assert back.dtype == np.int64
    np.testing.assert_array_equal(back, codes)
    assert not CodeCache(tmp_path, "another codec").has(SHA)
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("damage", ["cut", "flipped bit", "emptied", "header bit", "other file"])
def test_damaged_entry_is_noted_and_counts_as_missing(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = CodeCache(tmp_path, "codec")
    cache.put(SHA, np.arange(400).reshape(100, 4))
    (path,) = tmp_path.rglob("*.codes")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    header = bytearray(path.read_bytes())
    header[12] ^= 1
    path.write_bytes(
        {"header bit": header, "cut": data[:200], "flipped bit": data, "emptied": b"", "other file": b"hello"}[damage]
    )
    with caplog.at_level(logging.WARNING):
        assert not cache.has(SHA)
    assert str(path) in caplog.text and "computed again" in caplog.text
    with pytest.raises(UserError, match="damaged entry"):
        cache.get(SHA)
    cache.put(SHA, np.zeros((100, 4), dtype=np.int64))
    assert cache.has(SHA)


def test_missing_codes_name_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--resume"):
        CodeCache(tmp_path, "codec").get(SHA)


def test_full_disk_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = CodeCache(tmp_path, "codec")
    cache.put(SHA, np.ones((3, 2), dtype=np.int64))

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="No space left on device.*free space"):
        cache.put(SHA, np.zeros((3, 2), dtype=np.int64))
    monkeypatch.undo()
    np.testing.assert_array_equal(cache.get(SHA), np.ones((3, 2)))


def test_filling_encodes_only_what_lacks(folder: Any, rows: Any) -> None:
    folder.clip("a.wav", np.zeros(16000, dtype=np.float32))
    folder.clip("b.wav", np.full(48000, 0.1, dtype=np.float32), rate=48000)
    folder.clip("short.wav", np.full(10, 0.1, dtype=np.float32))
    names = ("a.wav", "b.wav", "short.wav")
    examples = folder.read(folder.manifest([rows["spoken"](name, name) for name in names]))
    clips = distinct_clips(examples, spoken=True)
    calls: list[list[int]] = []

    def encode(waves: list[np.ndarray]) -> list[np.ndarray]:
        calls.append([len(wave) for wave in waves])
        return folder.encode(waves)

    cache, done = CodeCache(folder.path / "cache", "codec"), []
    assert fill_codes(cache, clips, folder.codec, encode, progress=done.append) == 2
    assert calls == [[16000, 16000]], "both at the codec's rate; the clip without a frame is not encoded"
    assert done[-1] == 3
    assert fill_codes(cache, clips, folder.codec, encode) == 0
    assert len(calls) == 1


def test_batches_are_bounded_and_clips_encoded_as_if_alone(folder: Any, rows: Any) -> None:
    for number in range(5):
        folder.clip(f"{number}.wav", np.full(16000 + number, 0.1, dtype=np.float32))
    examples = folder.read(folder.manifest([rows["spoken"](str(n), f"{n}.wav") for n in range(5)]))
    sizes = []

    def encode(waves: list[np.ndarray]) -> list[np.ndarray]:
        sizes.append(len(waves))
        return folder.encode(waves)

    fill_codes(
        CodeCache(folder.path, "c"), distinct_clips(examples, spoken=True), folder.codec, encode, batch_seconds=2
    )
    assert sizes == [2, 2, 1]


def test_reading_uses_no_syntax_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy's files do, and two threads that build syntax trees at once fail at random in Python 3.11."""
    cache = CodeCache(tmp_path, "codec")
    cache.put(SHA, np.zeros((3, 2), dtype=np.int64))
    monkeypatch.setattr(ast, "parse", lambda *_, **__: pytest.fail("a syntax tree was built"))
    assert cache.get(SHA).shape == (3, 2)
