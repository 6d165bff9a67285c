"""A stand-in for a lossy codec: log-mel spectra and back, with the phases guessed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_WINDOW, _HOP, _RATE = 1024, 160, 16_000
_HANN = np.hanning(_WINDOW + 1)[:-1]


def mel_filters(num_bands: int) -> NDArray[np.float64]:
    """Returns HTK mel filters [num_bands, 513] from 0 to 8 kHz."""
    points = 700.0 * (10.0 ** (np.linspace(0.0, 2595.0 * np.log10(1.0 + 8000.0 / 700.0), num_bands + 2) / 2595.0) - 1.0)
    bins = np.arange(_WINDOW // 2 + 1) * _RATE / _WINDOW
    rising = (bins[None] - points[:-2, None]) / (points[1:-1] - points[:-2])[:, None]
    falling = (points[2:, None] - bins[None]) / (points[2:] - points[1:-1])[:, None]
    return np.maximum(0.0, np.minimum(rising, falling))


def round_trip(
    samples: NDArray, num_bands: int = 80, iterations: int = 32, hold: int = 1, noise_db: float = 0.0, seed: int = 0
) -> NDArray[np.float32]:
    """Sends a clip [N] at 16 kHz through log-mel spectra (10 ms apart) and Griffin-Lim.

    Args:
        samples: The clip.
        num_bands: Mel bands.
        iterations: Rounds of Griffin-Lim.
        hold: Frames that are averaged and repeated (4 is 25 frames per second at its worst).
        noise_db: Standard deviation of an error on every log-mel value.
        seed: Seed of the first phases and of the error.
    """
    rng = np.random.default_rng(seed)
    filters = mel_filters(num_bands)
    log_mel = np.log(np.maximum(np.abs(_stft(samples)) @ filters.T, 1e-5))
    if hold > 1:
        kept = log_mel[: len(log_mel) // hold * hold].reshape(-1, hold, num_bands).mean(axis=1)
        log_mel = np.concatenate([np.repeat(kept, hold, axis=0), log_mel[len(kept) * hold :]])
    log_mel += rng.standard_normal(log_mel.shape) * noise_db / 8.686
    magnitude = np.maximum(np.exp(log_mel) @ np.linalg.pinv(filters).T, 0.0)
    angles = np.exp(2j * np.pi * rng.random(magnitude.shape))
    previous = np.zeros_like(angles)
    for _ in range(iterations):
        rebuilt = _stft(_istft(magnitude * angles, len(samples)))
        step = rebuilt - 0.4975 * previous
        angles = step / (np.abs(step) + 1e-12)
        previous = rebuilt
    return _istft(magnitude * angles, len(samples)).astype(np.float32)


def _stft(samples: NDArray) -> NDArray:
    """Returns spectra [T, 513]."""
    padded = np.pad(samples.astype(np.float64), _WINDOW // 2)
    return np.fft.rfft(np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::_HOP] * _HANN)


def _istft(spectra: NDArray, count: int) -> NDArray[np.float64]:
    """Overlaps and adds spectra [T, 513] to `count` samples."""
    frames = np.fft.irfft(spectra, _WINDOW) * _HANN
    total = np.zeros(max((len(frames) - 1) * _HOP + _WINDOW, count + _WINDOW))
    weight = np.full_like(total, 1e-8)
    for index, frame in enumerate(frames):
        total[index * _HOP : index * _HOP + _WINDOW] += frame
        weight[index * _HOP : index * _HOP + _WINDOW] += _HANN**2
    return (total / weight)[_WINDOW // 2 : _WINDOW // 2 + count]
