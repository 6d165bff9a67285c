"""Files made of chunks (WAV, AIFF, CAF, W64 and their kin), and what may stand behind the sound of any file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from bagpiper.data.containers.tags import tag_length

_W64_RIFF = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"
_W64_DATA = b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"
STREAMED = 0x7FFF0000
"""Sizes from here on are placeholders of programs that wrote a header before they knew the length."""

_NOT_ZERO = re.compile(rb"[^\0]")
_WITH_SOUND = (b"data", b"SSND", b"BODY", b"wavl")
_FILES = (b"RIFF", b"RIFX", b"RF64", b"FORM", b"caff", b"riff", b"fLaC", b"OggS", b".snd")
"""Beginnings of files that would pass for chunks."""

_KNOWN = (
    b"LIST",
    b"id3 ",
    b"ID3 ",
    b"bext",
    b"iXML",
    b"JUNK",
    b"junk",
    b"FLLR",
    b"cue ",
    b"smpl",
    b"PEAK",
    b"_PMX",
    b"ANNO",
)
"""Chunks of notes that are taken for what they are even where the file ends inside them: their sound is whole."""


@dataclass(frozen=True)
class _Family:
    """How chunks are written: bytes of the name and of the size, and whether the size counts both."""

    name: int
    size: int
    order: Literal["little", "big"]
    align: int
    counts_head: bool = False


_RIFF, _RIFX = _Family(4, 4, "little", 2), _Family(4, 4, "big", 2)
_CAF, _W64 = _Family(4, 8, "big", 1), _Family(16, 8, "little", 8, counts_head=True)


def _family(head: bytes) -> _Family | None:
    """How the chunks of the file that begins with ``head`` are written; None where it has none."""
    magics = {b"RIFF": _RIFF, b"RF64": _RIFF, b"RIFX": _RIFX, b"FORM": _RIFX, b"caff": _CAF}
    return _W64 if head.startswith(_W64_RIFF) else magics.get(head[:4])


def has_chunks(head: bytes) -> bool:
    """Whether a WAV, AIFF or 8SVX file begins so: one chunk that holds the others."""
    return head[:4] in (b"RIFF", b"RIFX", b"FORM")


def declared_end(head: bytes) -> int | None:
    """Where the file that begins with ``head`` ends by the size in it, without a pad byte; None where none is known."""
    if not has_chunks(head):
        return None
    size = int.from_bytes(head[4:8], "little" if head[:4] == b"RIFF" else "big")
    return 8 + size if 0 < size < STREAMED else None


def sound_of_wav(head: bytes) -> tuple[int, int] | None:
    """Where the sound of the WAV file that begins with ``head`` begins and ends by its chunks; None if unknown."""
    family = _family(head) if head.startswith((b"RIFF", b"RIFX")) else None
    return _find(family, b"data", head, 12) if family is not None else None


def is_mpeg_in_wav(head: bytes) -> bool:
    """Whether the WAV file that begins with ``head`` holds MPEG frames (an MP3 file in WAV's clothes)."""
    found = _find(_RIFF, b"fmt ", head, 12) if head.startswith(b"RIFF") else None
    return found is not None and head[found[0] : found[0] + 2] in (b"\x50\x00", b"\x55\x00")


def finished(data: bytes) -> bytes | None:
    """A WAV file whose writer was stopped, with the size of the sound that it left at 0; None for any other."""
    found = sound_of_wav(data)
    if found is None or found[0] < found[1] or explained(data, data[found[0] :]) == len(data) - found[0]:
        return None
    begin = found[0]
    order: Literal["little", "big"] = "little" if data.startswith(b"RIFF") else "big"
    size = min(len(data) - begin, STREAMED)
    return (
        data[:4] + (begin - 8 + size).to_bytes(4, order) + data[8 : begin - 4] + size.to_bytes(4, order) + data[begin:]
    )


def explained(head: bytes, rest: bytes) -> int:
    """Bytes at the beginning of ``rest`` that are no sound: chunks of the file's own family, tags, zeros.

    Args:
        head: the file's first bytes.
        rest: what stands behind its last sample.
    """
    family = _family(head)
    length = _explained(family, rest, 0)
    is_padded = family is not None and length == 0 and _explained(family, rest, 1) == len(rest)  # not by a zero
    return len(rest) if is_padded else length


def _explained(family: _Family | None, rest: bytes, at: int) -> int:
    while at < len(rest):
        found = _NOT_ZERO.search(rest, at)  # zeros fill up what is before the next note, or at the end
        begin = found.start() if found is not None else len(rest)
        step = tag_length(rest, begin) or (_chunk_length(family, rest, begin) if family else 0)
        if not step and begin < len(rest):
            break
        at = begin + step
    return at


def _chunk_length(family: _Family, data: bytes, at: int) -> int:
    """Bytes of the chunk without sound that begins at ``at``, its padding included; 0 where there is none."""
    name = data[at : at + family.name]
    head = family.name + family.size
    if len(data) < at + head or name[:4] in _FILES or not all(0x20 <= byte < 0x7F for byte in name[:4]):
        return 0
    size = int.from_bytes(data[at + family.name : at + head], family.order)
    length = size if family.counts_head else head + size
    has_sound = name[:4] in _WITH_SOUND or (name == b"LIST" and data[at + head : at + head + 4] == b"wavl")
    if has_sound or length < head:
        return 0
    left = len(data) - at
    if length > left:
        return left if name in _KNOWN else 0
    return min(length + -length % family.align, left)


def without_notes(data: bytes) -> bytes | None:
    """A W64 or SVX file without the chunks behind its sound, which libsndfile takes for more of it; None: no need."""
    is_w64 = data.startswith(_W64_RIFF)
    if is_w64:
        found = _find(_W64, _W64_DATA, data, 40)
    elif data[:4] == b"FORM" and data[8:12] in (b"8SVX", b"16SV"):
        found = _find(_RIFX, b"BODY", data, 12)
    else:
        return None
    if found is None or found[1] >= len(data) or found[1] + explained(data, data[found[1] :]) < len(data):
        return None
    end = found[1]
    return data[:16] + end.to_bytes(8, "little") + data[24:end] if is_w64 else data[:end]


def _find(family: _Family, wanted: bytes, data: bytes, at: int) -> tuple[int, int] | None:
    """Where the content of a chunk begins and ends, found from chunk to chunk; None where it is not found."""
    head = family.name + family.size
    while at + head <= len(data):
        size = int.from_bytes(data[at + family.name : at + head], family.order)
        length = size if family.counts_head else head + size
        if length < head:
            return None
        if data[at : at + family.name] == wanted:
            return at + head, at + length
        at += length + -length % family.align
    return None
