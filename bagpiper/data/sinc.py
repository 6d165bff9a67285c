"""The official resampler: a sinc filter under a Hann window (torchaudio's ``functional.resample`` by its defaults).

With ``o`` and ``n`` the two rates divided by their greatest common divisor and ``c = 0.99 * min(o, n)`` the cutoff,
output sample ``j`` is the sum over input samples ``i`` of::

    x[i] * c / o * sinc(t) * cos(pi * t / 12) ** 2,   t = c * (i / o - j / n), for |t| < 6

What lies beyond the ends is zero (https://ccrma.stanford.edu/~jos/resample/).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

ZERO_CROSSINGS = 6
"""Half the filter's length, in zero crossings of the sinc (torchaudio's ``lowpass_filter_width``)."""

ROLLOFF = 0.99
"""Cutoff as a share of the lower rate's half."""

_BLOCK = 1 << 16
"""Output samples computed at a time: their windows take 9 MB for 44.1 kHz to 16 kHz."""


def sinc_resample(wave: NDArray[np.float32], rate_in: int, rate_out: int) -> NDArray[np.float32]:
    """Resample by the formula above.

    Args:
        wave: float32 ``[N]``.
        rate_in, rate_out: in Hz.

    Returns:
        float32 ``[ceil(N * rate_out / rate_in)]``.
    """
    divisor = math.gcd(rate_in, rate_out)
    old, new = rate_in // divisor, rate_out // divisor
    kernels, starts = _kernels(old, new)
    taps = kernels.shape[1]
    length = -(-len(wave) * new // old)
    padded = np.pad(wave, (taps, taps))
    windows = np.lib.stride_tricks.sliding_window_view(padded, taps)
    result = np.empty(length, dtype=np.float32)
    for begin in range(0, length, _BLOCK):
        end = min(begin + _BLOCK, length)
        period, phase = np.divmod(np.arange(begin, end), new)
        seen = windows[taps + period * old + starts[phase]]
        np.einsum("jk,jk->j", seen, kernels[phase], out=result[begin:end])
    return result


@lru_cache(maxsize=16)
def _kernels(old: int, new: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """For each of the ``new`` phases: the filter's taps ``[new, taps]`` and the input sample that the first weighs."""
    cutoff = ROLLOFF * min(old, new)
    reach = ZERO_CROSSINGS * old / cutoff  # in input samples
    phases = np.arange(new)
    starts = np.floor(phases * old / new - reach).astype(np.int64)
    taps = math.ceil(2 * reach) + 1
    inputs = starts[:, None] + np.arange(taps)
    # whole numbers first: rounding of times would move the filter
    times = (inputs * new - phases[:, None] * old) * (cutoff / (old * new))
    window = np.cos(np.pi * times / (2 * ZERO_CROSSINGS)) ** 2 * (np.abs(times) < ZERO_CROSSINGS)
    return (np.sinc(times) * window * (cutoff / old)).astype(np.float32), starts
