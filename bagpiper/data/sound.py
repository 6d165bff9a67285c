"""Samples of a clip: which numbers they may be, which channel of them is used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bagpiper.errors import UserError, shown
from bagpiper.recipe.settings import Channel

SILENT = 1e-4
"""Peak below which a channel is silent, -80 dB of full scale: the dither of 16-bit files (1 or 2 steps) and the noise
of an unconnected input (3 steps) stay below, the softest recording of something does not."""

_MAX_CHANNELS = 8
"""Axes longer than this hold samples, not channels; 7.1 has 8."""

_LOUDEST_FLOAT = 32.0
"""Floats go from -1 to 1. Louder ones come out of mixing and filtering, but not 30 dB louder: those are integers."""

_INTEGERS = {("i", 1): 2.0**7, ("i", 2): 2.0**15, ("i", 4): 2.0**31}
"""Full scale of signed integers, by kind and bytes; unsigned ones of 1 byte have their zero at 128, as in WAV."""

_WANTED = "give floats from -1 to 1, int16, int32, int8 or uint8 samples"


@dataclass(frozen=True)
class Sound:
    """One channel of a clip.

    Attributes:
        wave: float32 ``[N]``.
        sample_rate: in Hz.
        channels: that there were.
        first_is_silent: whether the first channel is silent and another is not.
    """

    wave: NDArray[np.float32]
    sample_rate: int
    channels: int
    first_is_silent: bool


class ChannelMix:
    """Makes one channel of many, block by block."""

    def __init__(self, channel: Channel) -> None:
        """Args: channel: ``first``, ``mean`` of all, or ``loudest``: the largest mean square over the whole clip."""
        self._channel = channel
        self._blocks: list[NDArray[np.float32]] = []
        self._power: NDArray[np.float64] | float = 0.0
        self._first_peak = self._other_peak = 0.0

    def add(self, block: NDArray[np.float32]) -> None:
        """Take the next samples, float32 ``[n, C]``."""
        first = np.ascontiguousarray(block[:, 0])
        if block.shape[1] > 1 and len(block):
            self._first_peak = max(self._first_peak, _peak(first))
            if self._first_peak < SILENT:
                self._other_peak = max(self._other_peak, _peak(block[:, 1:]))
        if self._channel == "mean":
            self._blocks.append(block.mean(axis=1, dtype=np.float64).astype(np.float32))
        elif self._channel == "loudest":
            self._blocks.append(block)
            self._power = self._power + np.square(block, dtype=np.float64).sum(axis=0)
        else:
            self._blocks.append(first)

    @property
    def first_is_silent(self) -> bool:
        """Whether the first channel is silent so far and another is not."""
        return self._first_peak < SILENT <= self._other_peak

    def wave(self) -> NDArray[np.float32]:
        """The channel, float32 ``[N]``."""
        wave = np.concatenate(self._blocks)
        return np.ascontiguousarray(wave[:, int(np.argmax(self._power))]) if wave.ndim == 2 else wave


def first_not_finite(samples: NDArray[np.floating]) -> int:
    """Number of the first sample that is NaN or infinite in any channel, of ``[N]`` or ``[N, C]``."""
    return int(np.argmin(np.isfinite(samples).reshape(len(samples), -1).all(axis=1)))


def _peak(block: NDArray[np.float32]) -> float:
    return float(max(block.max(), -block.min()))


def sound_of(samples: Any, sample_rate: Any, channel: Channel = "first", name: str = "a clip in memory") -> Sound:
    """A sound in memory: a user's, or one that the model made, which may be louder than a user's.

    Args:
        samples: as for ``samples_of``, but floats of any size are taken as they are.
        sample_rate: see ``rate_of``.
        channel: which one is used.
        name: of the clip, for messages.

    Raises:
        UserError: it is no sound.
    """
    frames = _scaled(samples, name)
    frames = frames.reshape(len(frames), -1)
    mix = ChannelMix(channel)
    mix.add(frames)
    return Sound(mix.wave(), rate_of(sample_rate, name), frames.shape[1], mix.first_is_silent)


def rate_of(sample_rate: Any, name: str = "a clip in memory") -> int:
    """A sample rate in Hz: a positive whole number of any numeric type.

    Raises:
        UserError: it is none.
    """
    value = sample_rate.item() if hasattr(sample_rate, "item") and np.ndim(sample_rate) == 0 else sample_rate
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0 or value != value // 1:
        raise UserError(
            f"{name}: the sample rate must be a positive whole number, got {shown(value)}; give (samples, sample_rate)"
        )
    return int(value)


def samples_of(samples: Any, name: str = "a clip in memory") -> NDArray[np.float32]:
    """Samples as floats from -1 to 1, whatever they were.

    Args:
        samples: a numpy array, a torch tensor on any device, or a list; ``[N]``, ``[C, N]`` or ``[N, C]``. Integers of
            8 (unsigned or not), 16 and 32 bits are scaled, floats are taken as they are.
        name: of the clip, for messages.

    Returns:
        float32 ``[N]`` or, of several channels, ``[N, C]``.

    Raises:
        UserError: other numbers, integers kept as floats, NaN, infinity, no samples, or no telling channels from
            samples.
    """
    scaled = _scaled(samples, name)
    peak = float(np.abs(scaled).max())
    if peak > _LOUDEST_FLOAT or (peak > 1.0 and np.array_equal(scaled, np.rint(scaled))):
        raise UserError(
            f"{name}: floats up to {peak:g} look like integers kept as floats; divide them by their full scale "
            "(32768 for 16 bits), or give them as integers"
        )
    return scaled


def _scaled(samples: Any, name: str) -> NDArray[np.float32]:
    array = _frames_first(_as_array(samples, name), name)
    kind, width = array.dtype.kind, array.dtype.itemsize
    if kind == "f":
        if not np.isfinite(array).all():
            raise UserError(f"{name}: sample {first_not_finite(array)} is not a finite number (NaN or infinity)")
        return array.astype(np.float32)
    if (kind, width) == ("u", 1):
        return (array.astype(np.float32) - 128.0) / 128.0
    if (kind, width) not in _INTEGERS:
        raise UserError(f"{name}: samples of type {array.dtype} have no known scale; {_WANTED}")
    # in float64: an int32 has more digits than float32
    return (array / _INTEGERS[kind, width]).astype(np.float32)


def _as_array(samples: Any, name: str) -> NDArray[Any]:
    try:
        if hasattr(samples, "detach") and hasattr(samples, "cpu"):  # a torch tensor; nothing here needs torch itself
            samples = samples.detach().cpu()
            if samples.is_floating_point():
                samples = samples.double()  # numpy has no bfloat16
        array = np.asarray(samples)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(
            f"{name}: samples of type {type(samples).__name__} are no array ({error}); {_WANTED}"
        ) from error
    if array.size == 0:
        raise UserError(f"{name}: no samples (shape {list(array.shape)}); leave it out")
    return array


def _frames_first(array: NDArray[Any], name: str) -> NDArray[Any]:
    """``[N]`` or ``[N, C]``; the shorter axis holds the channels."""
    if array.ndim == 1:
        return array
    if array.ndim != 2:
        raise UserError(
            f"{name}: samples of shape {list(array.shape)}; give one clip at a time, as [N], [C, N] or [N, C]"
        )
    rows, columns = array.shape
    if rows == columns or min(rows, columns) > _MAX_CHANNELS:
        raise UserError(
            f"{name}: shape {list(array.shape)} does not tell channels (up to {_MAX_CHANNELS}) from samples; "
            "give one channel, as [N]"
        )
    frames = array if columns < rows else array.T
    return frames[:, 0] if frames.shape[1] == 1 else frames
