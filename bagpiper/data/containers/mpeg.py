"""MPEG audio (MP3): a chain of frames, each with a header, and no word of how many there are.

libsndfile believes the frame count of a Xing or Info frame at the beginning, and guesses from the first frame's bit
rate where there is none: of files with a variable bit rate it then reads a third, or refuses them as cut off; of two
files joined it reads the first. Here the frames are walked from end to end, a file is cut where another one begins, and
where the count is missing or wrong libsndfile gets a copy that begins with a true one.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

from bagpiper.data.containers.stream import Stream, Unread
from bagpiper.data.containers.tags import tag_length

_KBPS = {
    # (MPEG 1, layer): by index; MPEG 2 and 2.5 are alike
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = (44100, 48000, 32000)
_SYNC = re.compile(rb"\xff[\xe0-\xff]|ID3|APETAGEX|LYRICSBEGIN")
_IN_A_ROW = 3
"""Headers that must follow one another before bytes are taken for frames: a single one turns up in any kilobyte or
two of noise."""

_ID3_STUB = b"ID3\x04\x00\x00\x00\x00\x00\x0a" + bytes(10)
"""An empty tag. Without one libsndfile asks the working folder for a Mac's resource fork before it looks for frames."""


@dataclass(frozen=True)
class _Header:
    """The 4 bytes that begin a frame: its length in bytes, samples, and what stays the same within a stream."""

    length: int
    samples: int
    kbps: int
    kind: tuple[bool, int, int, int]
    side_info: int


@dataclass
class _Run:
    """Frames of one kind in a row.

    Attributes:
        header: of the first frame.
        marker: the frame that tells how many there are, if one begins the run.
        count: what it says; None without one.
        pieces: (begin, end) of the frames in the file, more than one where junk stands between frames.
    """

    header: _Header
    marker: bytes = b""
    count: int | None = None
    frames: int = 0
    constant: bool = True
    pieces: list[tuple[int, int]] = field(default_factory=list)

    def add(self, at: int, header: _Header) -> None:
        """Take one more frame."""
        self.frames += 1
        self.constant = self.constant and header.kbps == self.header.kbps
        if self.pieces and self.pieces[-1][1] == at:
            self.pieces[-1] = (self.pieces[-1][0], at + header.length)
        else:
            self.pieces.append((at, at + header.length))

    @property
    def junk(self) -> int:
        """Bytes between the frames: what was put in, or frames that are damaged."""
        return self.pieces[-1][1] - self.pieces[0][0] - sum(end - begin for begin, end in self.pieces)


def mpeg_streams(data: bytes, begin: int = 0) -> list[Stream]:
    """The sounds in an MPEG file, one after another; none where it neither begins with frames nor is most of it frames.

    Args:
        data: the file.
        begin: where its leading tags end.
    """
    runs = [run for run in _runs(data, begin) if run.frames]
    covered = sum(end - at for run in runs for at, end in run.pieces)
    is_mpeg = _chain(data, begin) or covered > (len(data) - begin) // 2
    return [_as_stream(run, data) for run in runs] if is_mpeg else []


def mpeg_behind(data: bytes, begin: int) -> tuple[int, float] | None:
    """Where MPEG frames begin behind a sound of another kind, and their seconds; None where no such frames follow."""
    runs = [run for run in _runs(data, begin) if run.frames >= _IN_A_ROW]
    if not runs:
        return None
    return runs[0].pieces[0][0], sum(run.frames * run.header.samples / run.header.kind[2] for run in runs)


def looks_like_mpeg(head: bytes) -> bool:
    """Whether a file may begin with an MPEG frame."""
    return _header(head[:4]) is not None


def _as_stream(run: _Run, data: bytes) -> Stream:
    header = run.header
    frames = b"".join(data[begin:end] for begin, end in run.pieces)
    is_counted = run.count is not None and run.count >= run.frames
    guess_is_right = run.constant and run.count is None
    if is_counted:
        marker = run.marker
    elif header.kind[1] == 3 and not guess_is_right:
        marker = _info_frame(frames[:4], run.frames)
    else:
        marker = b""  # layers I and II have no such frame
    content, end = io.BytesIO(_ID3_STUB + marker + frames), run.pieces[-1][1]
    # some encoders count the frame that tells the count; mpg123 leaves out its own delay
    slack = header.samples
    if is_counted:
        return Stream(content, end, slack=slack)
    lost = run.junk // header.length
    seconds = lost * header.samples / header.kind[2]
    what = f"{run.junk} bytes between its frames are damaged, or do not belong there"
    unread = Unread(what, seconds) if lost > 1 else None
    return Stream(content, end, samples=run.frames * header.samples, slack=slack, unread=unread)


def _runs(data: bytes, begin: int) -> Iterator[_Run]:
    run: _Run | None = None
    for at, header, is_first in _frames(data, begin):
        marker = data[at : at + header.length]
        is_marker, count = _read_marker(marker, header)
        if run is None or is_first or is_marker or header.kind != run.header.kind:
            if run is not None:
                yield run
            run = _Run(header)
            if is_marker:
                run.marker, run.count = marker, count
                continue
            # the marker is of the frames' kind, but not of their bit rate
        if not run.frames:
            run.header = header
        run.add(at, header)
    if run is not None:
        yield run


def _frames(data: bytes, begin: int) -> Iterator[tuple[int, _Header, bool]]:
    """Whole frames: where each begins, its header, and whether an ID3v2 tag stands before it."""
    at, after_tag, known = begin, False, None
    while at < len(data) - 3:
        header = _header(data[at : at + 4])
        if header is not None and (header.kind == known or _chain(data, at)):
            if at + header.length > len(data):
                return
            yield at, header, after_tag
            at, after_tag, known = at + header.length, False, header.kind
            continue
        tag = tag_length(data, at)
        after_tag = after_tag or (tag > 0 and data[at : at + 3] == b"ID3")
        at, known = (at + tag, known) if tag else (_next_sync(data, at + 1), None)


def _chain(data: bytes, at: int) -> bool:
    """Whether several frames of one kind follow one another from here, or as many as there are up to the end."""
    kind = None
    for _ in range(_IN_A_ROW):
        header = _header(data[at : at + 4])
        if header is None or kind not in (None, header.kind):
            return kind is not None and (at >= len(data) or tag_length(data, at) > 0)
        kind = header.kind
        at += header.length
    return True


def _next_sync(data: bytes, at: int) -> int:
    """Where a frame or a tag may begin next."""
    found = _SYNC.search(data, at)
    return found.start() if found is not None else len(data)


@lru_cache(maxsize=256)
def _header(word: bytes) -> _Header | None:
    """Read a frame's header; None where it is none, or of free format, whose frames do not tell their length."""
    if len(word) < 4 or word[0] != 0xFF or word[1] & 0xE0 != 0xE0:
        return None
    version, layer = word[1] >> 3 & 3, 4 - (word[1] >> 1 & 3)
    bit_rate, rate = word[2] >> 4, word[2] >> 2 & 3
    if version == 1 or layer == 4 or bit_rate in (0, 15) or rate == 3:
        return None
    is_mpeg1, padding = version == 3, word[2] >> 1 & 1
    kbps = _KBPS[is_mpeg1, layer][bit_rate]
    sample_rate = _RATES[rate] >> {3: 0, 2: 1, 0: 2}[version]
    samples = 384 if layer == 1 else 1152 if layer == 2 or is_mpeg1 else 576
    slot = 4 if layer == 1 else 1
    length = (samples // 8 * kbps * 1000 // sample_rate // slot + padding) * slot
    channels = 1 if word[3] >> 6 == 3 else 2
    side_info = (17 if channels == 1 else 32) if is_mpeg1 else (9 if channels == 1 else 17)
    return _Header(length, samples, kbps, (is_mpeg1, layer, sample_rate, channels), side_info)


def _read_marker(frame: bytes, header: _Header) -> tuple[bool, int | None]:
    """Whether a frame tells about the others instead of sounding, and how many it says there are."""
    if header.kind[1] != 3:
        return False, None
    at = 4 + header.side_info
    if frame[at : at + 4] in (b"Xing", b"Info"):
        has_count = int.from_bytes(frame[at + 4 : at + 8], "big") & 1
        return True, int.from_bytes(frame[at + 8 : at + 12], "big") if has_count else None
    return frame[36:40] == b"VBRI", None


def _info_frame(word: bytes, count: int) -> bytes:
    """A frame without sound, of the kind of the header ``word``, that says how many follow.

    libsndfile (mpg123) leaves out the 529 samples of the decoder's own delay behind it, and nothing else.
    """
    plain = bytes([word[0], word[1] | 1, 0x90 | word[2] & 0x0C, word[3] & 0xF0])  # no CRC, 80 or 128 kb/s, no padding
    header = _header(plain)
    assert header is not None, f"{word!r} begins no frame"
    body = plain + bytes(header.side_info) + b"Info" + (1).to_bytes(4, "big") + count.to_bytes(4, "big")
    return body.ljust(header.length, b"\0")
