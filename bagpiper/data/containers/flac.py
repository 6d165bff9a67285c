"""FLAC: a header that says how many samples there are, or that it does not know, and frames that say where they stand.

libsndfile believes the header. The last frame tells the truth: where the header says less, or nothing (programs that
write to a pipe cannot go back), libsndfile gets a copy whose header is right.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass

from bagpiper.data.containers.stream import Stream, Unread

_MAGIC = b"fLaC"
_INFO, _INFO_LENGTH, _TOTAL = 8, 34, 21
"""Where STREAMINFO stands in a file, how long it is, and where the number of samples does (36 bits of 5 bytes)."""

_INFO_HEADS = (bytes([0x00, 0, 0, _INFO_LENGTH]), bytes([0x80, 0, 0, _INFO_LENGTH]))
"""What begins STREAMINFO, with other metadata behind it and without."""

_BLOCK_SIZES = {1: 192, **{code: 576 << code - 2 for code in range(2, 6)}, **{code: 1 << code for code in range(8, 16)}}


@dataclass(frozen=True)
class _File:
    """One FLAC file.

    Attributes:
        begin, end: where it is.
        last_frame: where its last frame begins; the end of the metadata without any.
        rate: in Hz.
        declared, there: samples, as the header says and as the last frame does.
    """

    begin: int
    end: int
    last_frame: int
    rate: int
    declared: int
    there: int

    @property
    def samples(self) -> int:
        return max(self.declared, self.there)


def flac_streams(data: bytes, begin: int = 0) -> list[Stream]:
    """The sound in a FLAC file; of files joined, the first, with the others as unread.

    Args:
        data: the file.
        begin: where its leading tags end.
    """
    files = list(_files(data, begin))
    if not files:
        return []
    first, others = files[0], files[1:]
    content = bytearray(data[first.begin : first.end])
    if first.there > first.declared:
        content[_TOTAL] = content[_TOTAL] & 0xF0 | first.there >> 32
        content[_TOTAL + 1 : _TOTAL + 5] = (first.there & 0xFFFFFFFF).to_bytes(4, "big")
    unread = None
    if others:
        seconds = sum(file.samples / file.rate for file in others if file.rate)
        unread = Unread(f"another file begins at byte {others[0].begin}", seconds)
    return [Stream(io.BytesIO(content), first.last_frame, unread=unread)]


def _files(data: bytes, begin: int) -> Iterator[_File]:
    while len(data) >= begin + _INFO + _INFO_LENGTH:
        info = data[begin + _INFO : begin + _INFO + _INFO_LENGTH]
        frames = _end_of_metadata(data, begin + 4)
        second = _next_file(data, frames)
        end = len(data) if second is None else second
        declared = int.from_bytes(data[begin + _TOTAL : begin + _TOTAL + 5], "big") & 0xFFFFFFFFF
        last_frame, there = _last_frame(data, frames, end, info)
        yield _File(begin, end, last_frame, int.from_bytes(info[10:13], "big") >> 4, declared, there)
        begin = end


def _end_of_metadata(data: bytes, at: int) -> int:
    """Where the frames begin: behind the last block of metadata."""
    while at + 4 <= len(data):
        is_last, length = data[at] & 0x80, int.from_bytes(data[at + 1 : at + 4], "big")
        at += 4 + length
        if is_last:
            break
    return at


def _next_file(data: bytes, start: int) -> int | None:
    """Where another file begins: its magic with the header of STREAMINFO behind it."""
    at = data.find(_MAGIC, start)
    while at >= 0 and data[at + 4 : at + 8] not in _INFO_HEADS:
        at = data.find(_MAGIC, at + 1)
    return at if at >= 0 else None


def _last_frame(data: bytes, begin: int, end: int, info: bytes) -> tuple[int, int]:
    """Where the last frame begins and at which sample it ends; (begin, 0) where none is found."""
    at = end
    while (at := data.rfind(b"\xff", begin, at)) >= 0:
        samples = _end_of_frame(data[at : at + 16], info)
        if samples is not None:
            return at, samples
    return begin, 0


def _end_of_frame(head: bytes, info: bytes) -> int | None:
    """Position behind the last sample of a frame, from its header; None where no frame of this stream begins."""
    if len(head) < 6 or head[1] & 0xFE != 0xF8 or head[3] & 1:
        return None
    size_code, rate_code, channel_code = head[2] >> 4, head[2] & 15, head[3] >> 4
    channels = (info[12] >> 1 & 7) + 1
    is_coded_stereo = channels == 2 and 8 <= channel_code <= 10
    if size_code == 0 or rate_code == 15 or (channel_code != channels - 1 and not is_coded_stereo):
        return None
    number, at = _coded_number(head, 4)
    if number is None:
        return None
    size = _BLOCK_SIZES.get(size_code)
    if size is None:
        width = size_code - 5  # codes 6 and 7: the size is written out in 1 or 2 bytes
        size = int.from_bytes(head[at : at + width], "big") + 1
        at += width
    at += {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    if at >= len(head) or _crc8(head[:at]) != head[at]:
        return None
    counts_samples = head[1] & 1
    return number + size if counts_samples else number * int.from_bytes(info[2:4], "big") + size


def _coded_number(head: bytes, at: int) -> tuple[int | None, int]:
    """A number coded as UTF-8 codes a character, in up to 7 bytes, and where it ends."""
    first = head[at]
    if first < 0x80:
        return first, at + 1
    length = 8 - (~first & 0xFF).bit_length() if first != 0xFF else 8
    if not 2 <= length <= 7 or at + length > len(head):
        return None, at
    number = first & (0x7F >> length)
    for byte in head[at + 1 : at + length]:
        if byte & 0xC0 != 0x80:
            return None, at
        number = number << 6 | byte & 0x3F
    return number, at + length


def _crc8(data: bytes) -> int:
    """The checksum of a frame's header: x^8 + x^2 + x + 1."""
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ 0x07) & 0xFF if crc & 0x80 else crc << 1
    return crc
