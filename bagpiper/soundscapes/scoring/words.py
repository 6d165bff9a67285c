"""Spoken sentences found in a waveform, by comparing it with recordings of all that may be said."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from bagpiper.soundscapes.corpus.facts import LOUDNESS_DB, SAMPLE_RATE
from bagpiper.soundscapes.corpus.voice import Recordings
from bagpiper.soundscapes.scoring.spectral import Array, coarse_bands, decibels, level_of, power_frames

# Frames of 10 ms that are averaged into one.
_STACK = 2
# Bands deeper than this under the loudest moment count as empty.
_RANGE_DB = 42.0
# The loudest 60 ms tell the level.
_PEAK_FRAMES = 3
# What lies under a sound may be this much louder at times than on average.
_UNDER_DB = 3.0
# Of 272 sentences the one that differs most from its recording lies at 0.12, through a codec of 25 frames/s x 4 x 256
# at 0.20 and x 3 x 256 at 0.22; of 575 other sounds the one most like a sentence lies at 0.40.
_MOST_DIFFERENCE = 0.36
_LEAD = int(0.05 * SAMPLE_RATE)


@dataclass(frozen=True)
class Spoken:
    """A sentence that was found.

    Attributes:
        words: One of `SENTENCES`.
        loudness: One of `LOUDNESSES`.
    """

    words: str
    loudness: str


@dataclass(frozen=True)
class _Template:
    """A recording in coarse bands.

    Attributes:
        words: What it says.
        bands: Levels in dB relative to its loudest moment [T, B].
        levels: The same of all bands together [T].
    """

    words: str
    bands: Array
    levels: Array


class Sentences:
    """All that a voice may say, ready to be compared with."""

    def __init__(self, recordings: Recordings) -> None:
        """Analyses the recordings (some 20 ms)."""
        self._templates = [_template(words, samples) for (words, _), samples in recordings.samples.items()]

    def recognise(self, power: Array, under: Array, quietest: float) -> Spoken | None:
        """Finds the sentence that a sound is.

        Recordings are cut where the sound would no longer be heard, both are raised to what lies under the sound, and
        dynamic time warping aligns them.

        Args:
            power: Spectra [T, 513] of the sound, with what lies under it taken off.
            under: The spectrum [513] that was taken off.
            quietest: Level in dBFS under which the sound was not looked at.

        Returns:
            The sentence, or None if no sentence is like it.
        """
        bands = _coarse(power)
        if len(bands) == 0:
            return None
        peak = _peak(bands)
        floor = np.maximum(decibels(coarse_bands(under)) + _UNDER_DB - peak, -_RANGE_DB)
        sound = np.maximum(decibels(bands) - peak, floor)
        said = [np.maximum(_heard(template, quietest - peak), floor) for template in self._templates]
        differences = _differences(sound - floor, [item - floor for item in said])
        best = int(np.argmin(differences))
        if differences[best] > _MOST_DIFFERENCE:
            return None
        loudness = min(LOUDNESS_DB, key=lambda name: abs(LOUDNESS_DB[name] - peak))
        return Spoken(self._templates[best].words, loudness)


@lru_cache(maxsize=4)
def sentences_of(recordings: Recordings) -> Sentences:
    """Returns what `recordings` say, analysed once."""
    return Sentences(recordings)


def _coarse(power: Array) -> Array:
    """Averages spectra [T, 513] in time and frequency: [T / 2, B]."""
    whole = power[: len(power) // _STACK * _STACK]
    return coarse_bands(whole.reshape(-1, _STACK, power.shape[1]).mean(axis=1))


def _peak(bands: Array) -> float:
    """Returns the level in dBFS of the loudest moment."""
    return level_of(float(np.mean(np.sort(bands.sum(axis=1))[-_PEAK_FRAMES:])))


def _template(words: str, samples: Array) -> _Template:
    """Analyses one recording."""
    bands = _coarse(power_frames(np.pad(samples, _LEAD)))
    peak = _peak(bands)
    return _Template(words, decibels(bands) - peak, decibels(bands.sum(axis=1)) - peak)


def _heard(template: _Template, quietest: float) -> Array:
    """Cuts off what is quieter than `quietest` dB, relative to the loudest moment, at both ends."""
    heard = np.flatnonzero(template.levels > np.clip(quietest, -_RANGE_DB, -1.0))
    return template.bands[heard[0] : heard[-1] + 1]


def _differences(sound: Array, others: list[Array]) -> Array:
    """Says how a sound differs from others.

    Args:
        sound: Height over the floor in dB [T, B].
        others: The same of the others [T_i, B].

    Returns:
        The share of all height that is not shared, 0 for the same sound, times the ratio of their lengths: a short
        sound may be like every frame of a longer one, if it is laid over it often enough.
    """
    height = float(np.mean(sound))
    shares = _warped_distances(sound, others) / [height + float(np.mean(other)) + 1e-9 for other in others]
    ratios = np.array([len(sound) / len(other) for other in others])
    return shares * np.maximum(ratios, 1.0 / ratios)


def _warped_distances(sound: Array, others: list[Array]) -> Array:
    """Aligns a sound with others by dynamic time warping.

    Args:
        sound: [T, B].
        others: [T_i, B] each.

    Returns:
        Mean absolute differences along the best alignments, one per other.
    """
    lengths = np.array([len(other) for other in others])
    # Frames after the last one of an alignment do not change it, so anything may stand there.
    padded = np.zeros((len(others), lengths.max(), sound.shape[1]))
    for row, other in zip(padded, others, strict=True):
        row[: len(other)] = other
    best = None
    for frame in sound:
        cost = np.abs(padded - frame).mean(axis=2)
        along = np.cumsum(cost, axis=1)
        if best is None:
            best = along
            continue
        below = best.copy()
        below[:, 1:] = np.minimum(best[:, 1:], best[:, :-1])
        # best[j] = cost[j] + min(below[j], best[j - 1]), for all j at once.
        best = along + np.minimum.accumulate(below - along + cost, axis=1)
    assert best is not None, "an empty sound was refused before"
    return 2.0 * best[np.arange(len(others)), lengths - 1] / (len(sound) + lengths)
