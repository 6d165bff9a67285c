"""Ogg: pages of logical streams, one stream after another (chained) or several at once (multiplexed).

libsndfile reads the first chain only, and of it one stream. Chains are legal wherever Ogg is (recorded radio, joined
files), so a file is cut where the next one begins and each is read on its own, without the pages of pictures and texts.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from bagpiper.data.containers.stream import Stream, Unread

_MAGIC = b"OggS"
_HEADER = 27
_BEGINS = 0x02
_SOUND = (b"\x01vorbis", b"OpusHead", b"\x7fFLAC", b"Speex   ")
_OPUS_RATE = 48000
"""Opus counts its positions at this rate, whatever the sound was recorded at."""

_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


@dataclass(frozen=True)
class _Page:
    """A page: where it is, its stream, the position that it ends at (in samples), and how its content begins."""

    begin: int
    end: int
    serial: int
    begins_stream: bool
    position: int
    content: bytes


@dataclass
class _Sound:
    """A stream with sound.

    Attributes:
        head: its first packet.
        pages: (begin, end) of its pages in the file.
        last, highest: position of its last page, and the highest one.
    """

    head: bytes
    pages: list[tuple[int, int]] = field(default_factory=list)
    last: int = 0
    highest: int = 0

    def add(self, page: _Page) -> None:
        """Take its next page."""
        self.pages.append((page.begin, page.end))
        if page.position >= 0:
            self.last = page.position
            self.highest = max(self.highest, page.position)


@dataclass
class _Chain:
    """Streams that run at the same time: those with sound by serial number, and whether a page of any is damaged."""

    sounds: dict[int, _Sound] = field(default_factory=dict)
    damaged: bool = False


def ogg_streams(data: bytes) -> list[Stream]:
    """The sounds in an Ogg file, one after another; chains without sound are passed over."""
    chains: list[_Chain] = []
    heads_are_over = True
    for page in _pages(data):
        if page is None:
            if chains:
                chains[-1].damaged = True
            continue
        if page.begins_stream:
            if heads_are_over:
                chains.append(_Chain())
            if page.content.startswith(_SOUND):
                chains[-1].sounds[page.serial] = _Sound(page.content)
        heads_are_over = not page.begins_stream
        if chains and page.serial in chains[-1].sounds:
            chains[-1].sounds[page.serial].add(page)
    return [_as_stream(chain, data) for chain in chains if chain.sounds]


def _as_stream(chain: _Chain, data: bytes) -> Stream:
    sound = next(iter(chain.sounds.values()))
    content = io.BytesIO(b"".join(data[begin:end] for begin, end in sound.pages))
    return Stream(content, sound.pages[-1][1], damaged=chain.damaged, unread=_unread(sound, len(chain.sounds)))


def _unread(sound: _Sound, how_many: int) -> Unread | None:
    """What libsndfile leaves out: sounds at the same time, or pages beyond the end that the last one tells."""
    if how_many > 1:
        return Unread(f"{how_many} sounds run at the same time, and one of them is read")
    if sound.highest == sound.last:
        return None
    rate = _OPUS_RATE if sound.head.startswith(b"OpusHead") else int.from_bytes(sound.head[12:16], "little")
    seconds = (sound.highest - sound.last) / max(rate, 1)
    return Unread("the last page says that the sound ends before pages that are there", seconds)


def _pages(data: bytes) -> Iterator[_Page | None]:
    """All pages, None for one that is damaged or cut off; what stands between them is passed over, as libogg does."""
    at = data.find(_MAGIC)
    while at >= 0:
        lengths = data[at + _HEADER : at + _HEADER + (data[at + 26] if len(data) > at + 26 else 0)]
        content = at + _HEADER + len(lengths)
        end = content + sum(lengths)
        if lengths and end <= len(data) and _is_whole(data[at:end]):
            yield _Page(
                at,
                end,
                int.from_bytes(data[at + 14 : at + 18], "little"),
                bool(data[at + 5] & _BEGINS),
                int.from_bytes(data[at + 6 : at + 14], "little", signed=True),
                data[content : min(end, content + 64)],
            )
        else:
            yield None
            end = at + len(_MAGIC)
        at = data.find(_MAGIC, end)


def _is_whole(page: bytes) -> bool:
    """Whether a page's checksum is right: CRC-32 as in zlib, but of mirrored bits and without inversions."""
    bits = (page[:22] + bytes(4) + page[26:]).translate(_MIRRORED)
    crc = zlib.crc32(bits, 0xFFFFFFFF) ^ 0xFFFFFFFF
    return crc.to_bytes(4, "big").translate(_MIRRORED) == page[22:26]
