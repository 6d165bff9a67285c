"""Audio files: the one place where clips are read.

Only the first channel is used, as in the official code (spec section 3.1). Lengths after resampling follow one exact
formula, so that token grids can be planned from file headers.
"""

from __future__ import annotations

import hashlib
import io
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from bagpiper.data.sinc import sinc_resample
from bagpiper.errors import UserError
from bagpiper.recipe.settings import Resampler

_BLOCK = 1 << 20
"""Frames decoded at a time; a clip of 30 s at 32 kHz is one block."""

_MAX_KNOWN_FRAMES = 1 << 40
"""libsndfile reports a huge number of frames where a header (a streamed FLAC's, say) does not tell."""

_STREAMED = 0x7FFF0000
"""Sizes from here on are placeholders of programs that wrote a header before they knew the length."""

_DECLARED_SIZE = re.compile(r"^\s*(?:data|SSND|Data Size|riff)\s*:\s*(\d+) \(should be (\d+)\)", re.MULTILINE)
"""How libsndfile logs that a WAV, AIFF, AU or W64 header promises more bytes than the file has; it then goes on
with what is there, so the number of frames alone does not show the loss."""

_AGAIN = "copy or export it again, or take its line out"

_MPEG_TOLERANCE = 0.95
"""An MPEG header's length may be an estimate; a file that decodes to less than this share of it is truncated."""


class BadAudio(UserError):  # noqa: N818
    """An audio file that cannot be used; the message names file, fault and way out.

    Attributes:
        reason: the fault in one or two words, for counting.
    """

    def __init__(self, path: str, reason: str, fault: str, way_out: str) -> None:
        super().__init__(f"{path}: {fault}; {way_out}")
        self.reason = reason


@dataclass(frozen=True)
class ClipInfo:
    """What is known about an audio file that was decoded once from end to end.

    Attributes:
        path: the file.
        num_samples: samples of one channel, at the file's own rate.
        sample_rate: of the file, in Hz.
        sha256: hash of the file's bytes; names the clip in caches.
        channels: channels of the file; the first one is used.
    """

    path: str
    num_samples: int
    sample_rate: int
    sha256: str
    channels: int = 1

    @property
    def seconds(self) -> float:
        """Duration."""
        return self.num_samples / self.sample_rate

    def samples_at(self, sample_rate: int) -> int:
        """Samples that ``read_clip`` gives at ``sample_rate``: exact, from the header alone."""
        return resampled_length(self.num_samples, self.sample_rate, sample_rate)


def resampled_length(num_samples: int, rate_in: int, rate_out: int) -> int:
    """Samples after resampling: ceil(num_samples * rate_out / rate_in) in whole numbers, as torchaudio defines it."""
    return -(-num_samples * rate_out // rate_in)


def inspect_clip(path: str | Path, max_seconds: float | None = None) -> ClipInfo:
    """Decode a file once to learn its length and hash and that it can be used.

    Args:
        path: the file.
        max_seconds: longest clip allowed; a longer one is refused from its header.

    Raises:
        BadAudio: missing, empty, truncated, not audio, NaN or infinite samples, too long, unreadable.
    """
    blocks, rate, channels = _decode(str(path), max_seconds)
    with _open_bytes(str(path)) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return ClipInfo(str(path), sum(map(len, blocks)), rate, digest, channels)


def read_clip(
    path: str | Path, sample_rate: int, max_seconds: float | None = None, resampler: Resampler = "soxr"
) -> NDArray[np.float32]:
    """Samples of a file's first channel.

    Args:
        path: the file; any format that libsndfile knows by content, whatever its name ends in.
        sample_rate: wanted rate in Hz.
        max_seconds: longest clip allowed.
        resampler: see ``resample``.

    Returns:
        float32 ``[resampled_length(N, rate of the file, sample_rate)]``.

    Raises:
        BadAudio: as ``inspect_clip``.
    """
    blocks, rate, _ = _decode(str(path), max_seconds)
    return resample(np.concatenate(blocks), rate, sample_rate, resampler)


def resample(
    wave: NDArray[np.float32], rate_in: int, rate_out: int, resampler: Resampler = "soxr"
) -> NDArray[np.float32]:
    """Bring a wave to another rate.

    Args:
        wave: float32 ``[N]``.
        rate_in, rate_out: in Hz.
        resampler: ``soxr`` (HQ), or ``official``, the windowed sinc of the official code (spec section 3.1).

    Returns:
        float32 ``[resampled_length(N, rate_in, rate_out)]``; soxr's own length, one less at times, is filled up with
        zeros.
    """
    if rate_in == rate_out:
        return wave
    if resampler == "official":
        return sinc_resample(wave, rate_in, rate_out)
    result = np.zeros(resampled_length(len(wave), rate_in, rate_out), dtype=np.float32)
    resampled = soxr.resample(wave, rate_in, rate_out)[: len(result)]
    result[: len(resampled)] = resampled
    return result


def _decode(path: str, max_seconds: float | None) -> tuple[list[NDArray[np.float32]], int, int]:
    """First channel in blocks, sample rate, number of channels."""
    with _open_bytes(path) as file:
        if not file.read(1):
            raise BadAudio(path, "empty", "the file is empty (0 bytes)", _AGAIN)
    try:
        sound = soundfile.SoundFile(path)
    except (soundfile.LibsndfileError, TypeError) as error:
        # TypeError: soundfile takes a name ending in .raw for headerless samples and asks for their rate
        reason, fault = _open_fault(error)
        raise BadAudio(
            path, reason, fault, "replace it with a WAV, FLAC, OGG or MP3 file, or take its line out"
        ) from error
    with sound:
        declared = sound.frames if sound.frames < _MAX_KNOWN_FRAMES else None
        _check_length(path, declared or 0, sound.samplerate, max_seconds)
        _check_declared_size(path, sound.extra_info)
        blocks = _read_blocks(path, sound, max_seconds)
        decoded = sum(map(len, blocks))
        needed = declared or 0
        if sound.format == "MP3":
            needed = int(needed * _MPEG_TOLERANCE)
        if decoded < needed:
            raise _truncated(path, f"its header promises {declared} samples, {decoded} can be decoded")
        if decoded == 0:
            raise BadAudio(path, "empty", "the file holds no samples", _AGAIN)
        return blocks, sound.samplerate, sound.channels


def _open_bytes(path: str) -> io.BufferedReader:
    try:
        return open(path, "rb")
    except FileNotFoundError as error:
        raise BadAudio(
            path, "missing", "no such file", "correct the path (relative paths start at the manifest's folder)"
        ) from error
    except IsADirectoryError as error:
        raise BadAudio(path, "not audio", "this is a folder", "name an audio file") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise BadAudio(path, "unreadable", f"cannot be read ({error})", "check its permissions and the disk") from error


def _open_fault(error: Exception) -> tuple[str, str]:
    text = str(error).rpartition(": ")[2].rstrip(".") or "unknown format"
    if "malformed" in text:
        return "truncated", f"truncated or damaged ({text})"
    return "not audio", f"this is not an audio file that libsndfile can read ({text})"


def _check_length(path: str, frames: int, rate: int, max_seconds: float | None) -> None:
    if max_seconds is not None and frames > max_seconds * rate:
        raise BadAudio(
            path,
            "too long",
            f"{frames / rate:.1f} s long, but clips may have {max_seconds:g} s",
            "cut it into pieces or raise data.max_seconds",
        )


def _check_declared_size(path: str, log: str) -> None:
    for match in _DECLARED_SIZE.finditer(log):
        declared, present = int(match[1]), int(match[2])
        if present < declared < _STREAMED:
            raise _truncated(path, f"its header promises {declared} bytes of audio, {present} are there")


def _truncated(path: str, detail: str) -> BadAudio:
    return BadAudio(path, "truncated", f"truncated or damaged: {detail}", _AGAIN)


def _read_blocks(path: str, sound: soundfile.SoundFile, max_seconds: float | None) -> list[NDArray[np.float32]]:
    blocks: list[NDArray[np.float32]] = []
    total = 0
    while True:
        try:
            block = sound.read(_BLOCK, dtype="float32", always_2d=True)[:, 0]
        except soundfile.LibsndfileError as error:
            raise _truncated(
                path, f"decoding stops after about {total} samples ({error.error_string.strip('. ')})"
            ) from error
        if not len(block):
            return blocks
        if not np.isfinite(block).all():
            first = total + int(np.argmin(np.isfinite(block)))
            raise BadAudio(
                path,
                "NaN",
                f"sample {first} is not a finite number (NaN or infinity)",
                "export it again from its source, or take its line out",
            )
        total += len(block)
        _check_length(path, total, sound.samplerate, max_seconds)
        blocks.append(np.ascontiguousarray(block))
