"""Tags that any program may put before or behind the sound of a file."""

from __future__ import annotations

_ID3V1, _ID3V1_EXTENDED = 128, 227
_APE_HEADER = 32
_LONGEST_LYRICS = 1 << 20


def tag_length(data: bytes, at: int) -> int:
    """Bytes of the tag that begins at ``at``, or 0: ID3v2, ID3v1 (at the end only), APE, Lyrics3.

    A tag that is cut off reaches to the end of ``data``.
    """
    magic = data[at : at + 4]
    if magic[:3] == b"ID3":
        return min(_id3v2_length(data[at : at + 10]), len(data) - at)
    if magic == b"TAG+" and len(data) - at == _ID3V1_EXTENDED + _ID3V1:
        return _ID3V1_EXTENDED
    if magic[:3] == b"TAG" and len(data) - at == _ID3V1:
        return _ID3V1
    if magic == b"APET" and data[at : at + 8] == b"APETAGEX":
        body = int.from_bytes(data[at + 12 : at + 16], "little")  # without the header, with the footer
        return min(_APE_HEADER + body, len(data) - at)
    if magic == b"LYRI" and data[at : at + 11] == b"LYRICSBEGIN":
        end = max(data.find(ending, at, at + _LONGEST_LYRICS) for ending in (b"LYRICS200", b"LYRICSEND"))
        return end + 9 - at if end >= 0 else 0
    return 0


def _id3v2_length(header: bytes) -> int:
    """Header, body and footer; the size is written in 4 bytes of 7 bits."""
    if len(header) < 10 or header[3] == 0xFF or max(header[6:10]) > 0x7F:
        return 0
    size = 0
    for byte in header[6:10]:
        size = size << 7 | byte
    has_footer = header[5] & 0x10
    return 10 + size + (10 if has_footer else 0)
