"""Audio files in memory, and how they come to lie about their length: joined, patched, cut off, tagged."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import soundfile

ID3V1 = b"TAG" + b"a song".ljust(125, b"\0")
ID3V2 = b"ID3\x04\x00\x00\x00\x00\x01\x00" + bytes(range(128))
APE = (
    *(b"APETAGEX", struct.pack("<IIII", 2000, 52, 1, 0xA0000000), bytes(8)),
    *(struct.pack("<II", 5, 0), b"ARTIST\0abcde" + bytes(2), b"APETAGEX"),
    *(struct.pack("<IIII", 2000, 52, 1, 0x80000000), bytes(8)),
)
TAGS = {"ID3v1": ID3V1, "ID3v2": ID3V2, "APE": b"".join(APE), "zeros": bytes(3000)}


def noise(seconds: float, rate: int = 16000, channels: int = 1) -> np.ndarray:
    """A loud and a soft half, so that the bit rate varies, float32 ``[N, C]``."""
    rng = np.random.default_rng(round(seconds * rate) + channels)
    frames = (0.2 * rng.standard_normal((round(seconds * rate), channels))).astype(np.float32)
    frames[: len(frames) // 2] *= 0.01
    return frames.clip(-1, 1)


def encoded(frames: np.ndarray, kind: str, rate: int = 16000, subtype: str | None = None, **options: Any) -> bytes:
    """A file, as libsndfile writes it."""
    buffer = io.BytesIO()
    with soundfile.SoundFile(
        buffer, "w", rate, 1 if frames.ndim == 1 else frames.shape[1], subtype, format=kind, **options
    ) as file:
        for start in range(0, len(frames), 1 << 14):  # some of its encoders overflow their stack otherwise
            file.write(frames[start : start + (1 << 14)])
    return buffer.getvalue()


def mp3(seconds: float, rate: int = 44100, channels: int = 2, mode: str = "VARIABLE") -> bytes:
    """MPEG layer III, whose first frame tells how many others there are."""
    return encoded(noise(seconds, rate, channels), "MP3", rate, bitrate_mode=mode, compression_level=0.5)


def without_count(data: bytes) -> bytes:
    """An MP3 file without the frame that counts the others; its kinds here are no longer than 1,500 bytes."""
    at = data.index(b"\xff", 4)
    while data[at : at + 2] != data[:2] or at < 100:
        at = data.index(b"\xff", at + 1)
    return data[at:]


def pages(data: bytes) -> list[bytes]:
    """The pages of an Ogg file."""
    found, at = [], 0
    while at < len(data):
        count = data[at + 26]
        end = at + 27 + count + sum(data[at + 27 : at + 27 + count])
        found.append(data[at:end])
        at = end
    return found


def _remainder(byte: int) -> int:
    crc = byte << 24
    for _ in range(8):
        crc = (crc << 1 ^ 0x04C11DB7) & 0xFFFFFFFF if crc & 0x80000000 else crc << 1
    return crc


_CRC = [_remainder(byte) for byte in range(256)]


def page(old: bytes, *, position: int | None = None, serial: int | None = None) -> bytes:
    """A page with another position or stream, and the checksum that belongs to it."""
    content = bytearray(old)
    if position is not None:
        content[6:14] = position.to_bytes(8, "little", signed=True)
    if serial is not None:
        content[14:18] = serial.to_bytes(4, "little")
    content[22:26] = bytes(4)
    crc = 0
    for byte in content:
        crc = (crc << 8 & 0xFFFFFFFF) ^ _CRC[crc >> 24 ^ byte]
    content[22:26] = crc.to_bytes(4, "little")
    return bytes(content)


def position(of: bytes) -> int:
    """Where a page ends."""
    return int.from_bytes(of[6:14], "little", signed=True)


def first_page(serial: int, packet: bytes) -> bytes:
    """A page that begins a stream."""
    head = b"OggS\x00\x02" + bytes(8) + bytes(12) + bytes([1, len(packet)])
    return page(head + packet, serial=serial)


def flac_total(data: bytes, samples: int) -> bytes:
    """A FLAC file whose header says another number of samples; 0 says that it is not known."""
    at = data.index(b"fLaC") + 21
    return (
        data[:at] + bytes([data[at] & 0xF0 | samples >> 32]) + struct.pack(">I", samples & 0xFFFFFFFF) + data[at + 5 :]
    )


def chunk(name: bytes, content: bytes, order: str = "<") -> bytes:
    """A chunk of a RIFF file (of an AIFF file: order ``>``)."""
    return name + struct.pack(f"{order}I", len(content)) + content + bytes(len(content) % 2)


def wav(
    sound: bytes,
    *,
    behind: bytes = b"",
    data_size: int | None = None,
    riff_size: int | None = None,
    width: int = 2,
    order: str = "<",
) -> bytes:
    """A WAV file of one channel at 16 kHz, from the bytes of its samples; sizes are right unless given."""
    form = struct.pack(f"{order}HHIIHH", 1, 1, 16000, 16000 * width, width, 8 * width)
    size = len(sound) if data_size is None else data_size
    data = b"data" + struct.pack(f"{order}I", size) + sound + bytes(len(sound) % 2)
    body = b"WAVE" + chunk(b"fmt ", form, order) + data + behind
    head = b"RIFF" if order == "<" else b"RIFX"
    return head + struct.pack(f"{order}I", len(body) if riff_size is None else riff_size) + body


def pcm(frames: np.ndarray, dtype: str = "<i2") -> bytes:
    """Samples as bytes."""
    return (frames * 32767).astype(dtype).tobytes()
