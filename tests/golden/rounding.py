"""The official resampling filter twice: as its formula says, and with the rounding of the official code.

The official code calls torchaudio's ``functional.resample`` on float32 samples, which computes the filter itself in
float32: the time of a tap is a share of the whole period of both rates, rounded, and then times up to 440 zero
crossings. So a filter whose period is long (11,025 Hz to 16 kHz: 441 samples in, 640 out) is moved by up to 3e-5 of a
zero crossing, one whose period is short (24 to 16 kHz: 3 in, 2 out) by nothing. ``bagpiper/data/sinc.py`` counts times
in whole numbers first.
"""

from __future__ import annotations

import math

import numpy as np
import torch

ZERO_CROSSINGS, ROLLOFF = 6, 0.99


def exact_resample(wave, rate_in, rate_out):
    """The formula in float64, tap by tap: what ``bagpiper/data/sinc.py`` has to compute. float64 ``[N']``."""
    old, new, cutoff = _ratio(rate_in, rate_out)
    reach = ZERO_CROSSINGS * old / cutoff  # in input samples
    outputs = np.arange(-(-len(wave) * new // old))[:, None]
    inputs = np.floor(outputs * old / new - reach).astype(np.int64) + np.arange(math.ceil(2 * reach) + 1)
    times = (inputs * new - outputs * old) * (cutoff / (old * new))
    window = np.cos(np.pi * times / (2 * ZERO_CROSSINGS)) ** 2 * (np.abs(times) < ZERO_CROSSINGS)
    inside = (inputs >= 0) & (inputs < len(wave))
    samples = np.where(inside, wave[inputs.clip(0, len(wave) - 1)].astype(np.float64), 0)
    return (samples * np.sinc(times) * window).sum(1) * (cutoff / old)


def rounded_resample(wave, rate_in, rate_out):
    """The same with every step in float32, times before all: what the official code computes. float32 ``[N']``."""
    old, new, cutoff = _ratio(rate_in, rate_out)
    reach = math.ceil(ZERO_CROSSINGS * old / cutoff)
    inputs = torch.arange(-reach, reach + old, dtype=torch.float32) / old
    outputs = torch.arange(new, dtype=torch.float32) / new
    times = ((inputs - outputs[:, None]) * cutoff).clamp(-ZERO_CROSSINGS, ZERO_CROSSINGS)
    window = torch.cos(times * math.pi / ZERO_CROSSINGS / 2) ** 2
    angles = times * math.pi
    kernels = torch.where(angles == 0, torch.ones(()), angles.sin() / angles) * (window * (cutoff / old))
    padded = torch.nn.functional.pad(torch.from_numpy(wave), (reach, reach + old))
    periods = padded.unfold(0, kernels.shape[1], old) @ kernels.T
    return periods.flatten()[: -(-len(wave) * new // old)].numpy()


def _ratio(rate_in, rate_out):
    """Both rates without their common divisor, and the cutoff in the same unit."""
    divisor = math.gcd(rate_in, rate_out)
    old, new = rate_in // divisor, rate_out // divisor
    return old, new, ROLLOFF * min(old, new)
