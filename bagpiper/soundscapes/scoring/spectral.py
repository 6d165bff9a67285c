"""Measurements on waveforms: power spectrograms, levels, bands, bursts and the features of a sound."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

RATE = 16_000
HOP = 160
FRAMES_PER_SECOND = RATE / HOP
WINDOW = 1024
_HANN = np.hanning(WINDOW + 1)[:-1]
# Powers below -90 dBFS per bin say nothing about any sound of the corpus.
FLOOR = 1e-9

_NUM_BANDS = 88
# Bands deeper than this under the strongest band count as empty.
_BAND_RANGE_DB = 32.0


def to_working_rate(samples: NDArray, sample_rate: int) -> Array:
    """Returns a mono, finite float64 waveform [N] at 16 kHz; values that are not numbers become 0."""
    if sample_rate <= 0:
        raise ValueError(f"the sample rate is {sample_rate} Hz; pass the rate of the waveform, such as 16000")
    wave = np.asarray(samples, dtype=np.float64)
    if wave.ndim != 1:
        raise ValueError(f"samples have the shape {wave.shape}; pass one channel as [num_samples]")
    wave = np.clip(np.nan_to_num(wave, nan=0.0, posinf=0.0, neginf=0.0), -4.0, 4.0)
    if sample_rate == RATE or len(wave) == 0:
        return wave
    count = max(1, round(len(wave) * RATE / sample_rate))
    spectrum = np.fft.rfft(wave)
    kept = np.zeros(count // 2 + 1, dtype=complex)
    shared = min(len(kept), len(spectrum))
    kept[:shared] = spectrum[:shared]
    return np.fft.irfft(kept, count) * (count / len(wave))


def power_frames(wave: Array) -> Array:
    """Returns power spectra [T, 513], one per 10 ms, scaled so that a frame's sum is its mean square."""
    num_frames = len(wave) // HOP + 1
    padded = np.zeros((num_frames - 1) * HOP + WINDOW)
    size = min(len(wave), len(padded) - WINDOW // 2)
    padded[WINDOW // 2 : WINDOW // 2 + size] = wave[:size]
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    spectrum = np.fft.rfft(frames * _HANN)
    power = (spectrum.real**2 + spectrum.imag**2) * (2.0 / (WINDOW * np.sum(_HANN**2)))
    power[:, [0, -1]] *= 0.5
    return power


def decibels(power: Array) -> Array:
    """Returns levels in dB of powers, not below the floor."""
    return 10.0 * np.log10(np.maximum(power, FLOOR))


def level_of(power: float) -> float:
    """Returns the level in dB of one power, not below the floor."""
    return 10.0 * float(np.log10(max(power, FLOOR)))


def band_level(spectrum: Array, low: float, high: float) -> float:
    """Returns the level in dBFS of a spectrum [513] between two frequencies in Hz."""
    width = RATE / WINDOW
    return level_of(float(np.sum(spectrum[round(low / width) : round(high / width) + 1])))


def runs(mask: NDArray[np.bool_], bridge: int) -> list[tuple[int, int]]:
    """Returns the (start, stop) of each run of true frames, joined over gaps of fewer than `bridge` frames."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
    joined: list[tuple[int, int]] = []
    for start, stop in edges.reshape(-1, 2):
        if joined and start - joined[-1][1] < bridge:
            joined[-1] = (joined[-1][0], int(stop))
        else:
            joined.append((int(start), int(stop)))
    return joined


def count_bursts(levels: Array, depth: float = 7.0, reach: float = 9.0) -> int:
    """Counts the humps of a level curve.

    Args:
        levels: dB per frame [T].
        depth: A valley at least this deep (dB), on either side, parts two humps.
        reach: Humps lower than this under the highest one (dB) do not count.
    """
    if len(levels) == 0:
        return 0
    least = levels.max() - reach
    count, high, low = 0, -np.inf, -np.inf
    rising = True
    for level in levels.tolist():
        if rising:
            high = max(high, level)
            if level < high - depth:
                count += int(high >= least)
                rising, low = False, level
        else:
            low = min(low, level)
            if level > low + depth:
                rising, high = True, level
    return count + int(rising and high >= least)


def steady_level(levels: Array) -> float:
    """Returns the median level (dB) of the frames within 12 dB of the loudest; a codec moves it less than the peak."""
    return float(np.median(levels[levels > levels.max() - 12.0]))


def _mel_filters() -> Array:
    """Returns triangular bands [88, 513] that are 32 Hz wide at the bottom and widen slowly towards 7.8 kHz."""
    points = 450.0 * np.sinh(np.linspace(np.arcsinh(60.0 / 450.0), np.arcsinh(7800.0 / 450.0), _NUM_BANDS + 2))
    bins = np.arange(WINDOW // 2 + 1) * RATE / WINDOW
    rising = (bins[None] - points[:-2, None]) / (points[1:-1] - points[:-2])[:, None]
    falling = (points[2:, None] - bins[None]) / (points[2:] - points[1:-1])[:, None]
    return np.maximum(0.0, np.minimum(rising, falling))


_FILTERS = _mel_filters()
_COARSE = _FILTERS.reshape(-1, 4, WINDOW // 2 + 1).sum(axis=1)
_CENTRES = np.log2((_FILTERS @ (np.arange(WINDOW // 2 + 1) * RATE / WINDOW)) / _FILTERS.sum(axis=1))


def coarse_bands(power: Array) -> Array:
    """Returns the power of spectra [..., 513] in 22 bands [..., 22], about 130 Hz wide at the bottom."""
    return power @ _COARSE.T


def _slope(curve: Array) -> float:
    """Returns the rise per second of the straight line that fits a curve [T] best."""
    frames = np.arange(len(curve)) - 0.5 * (len(curve) - 1)
    return float(frames @ curve / (frames @ frames)) * FRAMES_PER_SECOND


def features(power: Array) -> Array:
    """Describes one sound by numbers of comparable spread.

    Args:
        power: Spectra [T, 513] of the frames of one sound, with whatever lies under it taken off.

    Returns:
        Features [97]: the shape of its spectrum in 88 bands (units of 6 dB), and how it moves in time and frequency.
    """
    bands = power @ _FILTERS.T
    total = np.sum(power, axis=1)
    levels = decibels(total)
    active = levels > levels.max() - 18.0
    mean = decibels(np.mean(bands[active], axis=0))
    shape = np.maximum(mean - mean.max(), -_BAND_RANGE_DB) / 6.0
    share = bands[active] / (np.sum(bands[active], axis=1, keepdims=True) + FLOOR)
    centre = share @ _CENTRES
    # A slope needs some length; of a shorter sound it is noise.
    slope = _slope(centre) if len(centre) >= 12 else 0.0
    held = levels[active]
    decay = _slope(held) if len(held) >= 12 else -60.0
    peaks = np.argmax(bands[active], axis=1)
    moving = [
        4.0 * np.tanh(slope / 2.0),
        6.0 * min(float(np.std(centre)), 1.0),
        3.0 * np.tanh(decay / 12.0),
        3.0 * min(float(np.std(_CENTRES[peaks])), 1.0),
        min(count_bursts(levels), 2) * 2.0,
        4.0 * float(np.mean(active)),
        2.0 * np.log2(max(int(active.sum()), 1)),
        8.0 * float(np.mean(np.max(share, axis=1))),
        min(float(np.mean(np.abs(np.diff(held)))) if len(held) > 1 else 0.0, 4.0) * 2.0,
    ]
    return np.concatenate([shape, moving])
