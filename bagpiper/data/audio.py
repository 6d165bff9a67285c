"""Audio files: the one place where clips are read.

One channel is used, the first unless another is asked for, as in the official code (spec section 3.1). A file is read
whole or refused: where headers lie about the length, ``containers`` knows better. Lengths after resampling follow one
exact formula, so that token grids can be planned from what was inspected.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from bagpiper.data.containers.chunks import STREAMED
from bagpiper.data.containers.finder import find_streams, left_behind
from bagpiper.data.containers.stream import Source, Stream
from bagpiper.data.sinc import sinc_resample
from bagpiper.data.sound import ChannelMix, Sound, first_not_finite
from bagpiper.errors import UserError, brief
from bagpiper.recipe.settings import Channel, Resampler

_BLOCK = 1 << 20
"""Frames decoded at a time; a clip of 30 s at 32 kHz is one block."""

_MAX_KNOWN_FRAMES = 1 << 40
"""libsndfile reports a huge number of frames where it does not know."""

_DECLARED_SIZE = re.compile(
    r"^\s*(?:(?:data|SSND|BODY|Data Size|riff)\s*:|Data length)\s*(\d+) \(?should be (\d+)\)?", re.MULTILINE
)
"""How libsndfile logs that a WAV, AIFF, 8SVX, AU, W64 or WVE header promises more bytes than the file has; it then goes
on with what is there, so the number of frames alone does not show the loss."""

_RF64_SIZE = re.compile(r"^Length : (\d+)\n(?:.*\n)*?  Data size : (\d+)$", re.MULTILINE)
_SEEMS_TRUNCATED = re.compile(r"File seems to be truncated\. \d+ <-->|^Seems to be a truncated file", re.MULTILINE)
"""The same of RF64, where the sound may not be longer than the file, and of MAT4 and VOC."""

_AGAIN = "copy or export it again, or take its line out"


class BadAudio(UserError):  # noqa: N818
    """An audio file that cannot be used; the message names file, fault and way out.

    Attributes:
        reason: the fault in one or two words, for counting.
    """

    def __init__(self, path: str, reason: str, fault: str, way_out: str) -> None:
        super().__init__(f"{brief(path)}: {fault}; {way_out}")
        self.reason = reason


@dataclass(frozen=True)
class ClipInfo:
    """What is known about an audio file that was decoded once from end to end.

    Attributes:
        path: the file.
        num_samples: samples of one channel, at the file's own rate.
        sample_rate: of the file, in Hz.
        sha256: hash of the file's bytes; names the clip in caches.
        channels: channels of the file.
        first_is_silent: whether the first channel is silent and another is not.
    """

    path: str
    num_samples: int
    sample_rate: int
    sha256: str
    channels: int = 1
    first_is_silent: bool = False

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
        BadAudio: missing, empty, truncated, not audio, NaN or infinite samples, too long, unreadable, or with sound in
            it that libsndfile does not read.
    """
    sound = decode_clip(path, max_seconds)
    with _open_bytes(str(path)) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return ClipInfo(str(path), len(sound.wave), sound.sample_rate, digest, sound.channels, sound.first_is_silent)


def read_clip(
    path: str | Path,
    sample_rate: int,
    max_seconds: float | None = None,
    resampler: Resampler = "soxr",
    channel: Channel = "first",
) -> NDArray[np.float32]:
    """Samples of one channel of a file.

    Args:
        path: as ``decode_clip``.
        sample_rate: wanted rate in Hz.
        max_seconds: longest clip allowed.
        resampler: see ``resample``.
        channel: see ``ChannelMix``.

    Returns:
        float32 ``[resampled_length(N, rate of the file, sample_rate)]``.

    Raises:
        BadAudio: as ``inspect_clip``.
    """
    sound = decode_clip(path, max_seconds, channel)
    return resample(sound.wave, sound.sample_rate, sample_rate, resampler)


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


def decode_clip(path: str | Path, max_seconds: float | None = None, channel: Channel = "first") -> Sound:
    """Decode a file from end to end.

    Args:
        path: the file; any format that libsndfile knows by content, whatever its name ends in. Ogg and MPEG files may
            be several joined ones, which are read one after another.
        max_seconds: longest clip allowed.
        channel: see ``ChannelMix``.

    Returns:
        One channel, at the file's own rate.

    Raises:
        BadAudio: as ``inspect_clip``.
    """
    path = str(path)
    mix = ChannelMix(channel)
    with _open_bytes(path) as file, ExitStack() as stack:
        try:
            if not file.read(1):
                raise BadAudio(path, "empty", "the file is empty (0 bytes)", _AGAIN)
            found = find_streams(file)
        except OSError as error:
            raise _unreadable(path, error) from error
        streams = [(stream, stack.enter_context(_open_sound(path, stream))) for stream in found]
        rate, channels = _one_kind(path, [sound for _, sound in streams])
        _check_length(path, sum(_declared(sound) or 0 for _, sound in streams), rate, max_seconds)
        total = 0
        for stream, sound in streams:
            total = _decode_stream(path, stream, sound, mix, total, max_seconds)
        if total == 0:
            raise BadAudio(path, "empty", "the file holds no samples", _AGAIN)
    return Sound(mix.wave(), rate, channels, mix.first_is_silent)


class _Forward(soundfile.SoundFile):
    """Read from the beginning to the end, without soundfile's seek behind each block.

    Where a page of Ogg Vorbis is missing, that seek makes libsndfile fill the gap with what it has decoded already, and
    the sum of samples is right.
    """

    def seekable(self) -> bool:
        return False


def _open_sound(path: str, stream: Stream) -> soundfile.SoundFile:
    stream.file.seek(0)
    source = Source(stream.file)
    try:
        return soundfile.SoundFile(source) if stream.end is None else _Forward(source)
    except soundfile.LibsndfileError as error:
        by_content = error
    try:
        if stream.end is None:
            return soundfile.SoundFile(path)  # by what stands beside it: the header of an SD2 file is a file of its own
    except (soundfile.LibsndfileError, TypeError):
        pass  # TypeError: soundfile takes a name ending in .raw for headerless samples and asks for their rate
    reason, fault = _open_fault(by_content)
    way_out = "replace it with a WAV, FLAC, OGG or MP3 file, or take its line out"
    raise BadAudio(path, reason, fault, way_out) from by_content


def _one_kind(path: str, sounds: Sequence[soundfile.SoundFile]) -> tuple[int, int]:
    """Rate and channels of all the sounds in a file."""
    kinds = list(dict.fromkeys((sound.samplerate, sound.channels) for sound in sounds))
    if len(kinds) > 1:
        listed = ", ".join(f"{rate} Hz with {channels} channel{'s'[: channels - 1]}" for rate, channels in kinds)
        seconds = [(_declared(sound) or 0) / sound.samplerate for sound in sounds]
        raise _read_in_part(path, seconds[0], sum(seconds[1:]), f"sounds of different kinds are joined ({listed})")
    return kinds[0]


def _declared(sound: soundfile.SoundFile) -> int | None:
    return sound.frames if sound.frames < _MAX_KNOWN_FRAMES else None


def _decode_stream(
    path: str, stream: Stream, sound: soundfile.SoundFile, mix: ChannelMix, total: int, max_seconds: float | None
) -> int:
    """Decode one of a file's sounds; ``total`` counts the samples so far, and the sum is returned."""
    begin = stream.file.tell()
    _check_declared_size(path, sound.extra_info)
    declared = _declared(sound)
    before, total = total, _read_blocks(path, sound, mix, total, max_seconds)
    decoded, rate = total - before, sound.samplerate
    if decoded < (declared or 0) - stream.slack and decoded < (stream.samples or declared or 0) - stream.slack:
        raise _truncated(path, f"its header promises {stream.samples or declared} samples, {decoded} can be decoded")
    if stream.damaged:
        raise _truncated(path, f"one of its pages is damaged or cut off, {total / rate:.1f} s can be decoded")
    if stream.samples is not None and decoded < stream.samples - stream.slack:
        more = (stream.samples - decoded) / rate
        raise _read_in_part(path, total / rate, more, "libsndfile takes it to be shorter than its frames are")
    unread = stream.unread
    if stream.end is None:
        unread = left_behind(stream.file, begin, decoded / rate)
    if unread is not None:
        raise _read_in_part(path, total / rate, unread.seconds, unread.what)
    return total


def _read_in_part(path: str, read: float, more: float | None, what: str) -> BadAudio:
    digits = 1 if more is None or more >= 0.1 else 3
    there = "more sound than can be read" if more is None else f"{read + more:.{digits}f} s of sound"
    return BadAudio(
        path,
        "read in part",
        f"the file holds {there}, of which {read:.{digits}f} s can be read: {what}",
        "convert it to FLAC or WAV with a program that reads all of it (`ffmpeg -i in out.flac`, say), "
        "or take its line out",
    )


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
        raise _unreadable(path, error) from error


def _unreadable(path: str, error: Exception) -> BadAudio:
    fault = getattr(error, "strerror", None) or brief(error)  # an OSError's own text repeats the path
    return BadAudio(path, "unreadable", f"cannot be read ({fault})", "check its permissions and the disk")


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
    sizes = [(int(match[1]), int(match[2])) for match in _DECLARED_SIZE.finditer(log)]
    sizes += [(int(match[2]), int(match[1])) for match in _RF64_SIZE.finditer(log)]
    for declared, present in sizes:
        if present < declared < STREAMED:
            raise _truncated(path, f"its header promises {declared} bytes of audio, {present} are there")
    if _SEEMS_TRUNCATED.search(log):
        raise _truncated(path, "its header promises more bytes of audio than are there")


def _truncated(path: str, detail: str) -> BadAudio:
    return BadAudio(path, "truncated", f"truncated or damaged: {detail}", _AGAIN)


def _read_blocks(path: str, sound: soundfile.SoundFile, mix: ChannelMix, total: int, max_seconds: float | None) -> int:
    """Decode into ``mix``; returns ``total`` and the samples that came."""
    left = sound.frames  # asked for more, libsndfile reads on and throws it away: it would not stand where sound ends
    while True:
        try:
            block = sound.read(min(_BLOCK, left), dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise _truncated(
                path, f"decoding stops after about {total} samples ({error.error_string.strip('. ')})"
            ) from error
        if not len(block):
            return total
        if not np.isfinite(block).all():
            raise BadAudio(
                path,
                "NaN",
                f"sample {total + first_not_finite(block)} is not a finite number (NaN or infinity)",
                "export it again from its source, or take its line out",
            )
        total, left = total + len(block), left - len(block)
        _check_length(path, total, sound.samplerate, max_seconds)
        mix.add(block)
