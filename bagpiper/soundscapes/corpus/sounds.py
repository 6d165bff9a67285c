"""The sounds themselves: each kind is a function from an event to samples.

Their scale is arbitrary; `render.py` sets the level. Gaps between countable things are at least 0.12 s and each thing
lasts at least 0.1 s, so that they outlive a codec of 25 frames per second.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from bagpiper.soundscapes.corpus.facts import KINDS, LENGTH_SECONDS, PITCHES, SAMPLE_RATE, Event
from bagpiper.soundscapes.corpus.voice import TAKES, Recordings

Samples = NDArray[np.float64]

_DETUNE_CENTS = 7.0
_SIREN_PERIOD = 0.40
# A sound that is short or long dies away by so much, evenly, from start to end: each moment then tells how much is
# left of it. Where a sound goes on unchanged, a model must count frames to know when to end it, and learns that last.
_FALL_DB = 6.0
_ORGAN = {1: 1.0, 2: 0.7, 4: 0.5, 8: 0.25}
_BEEP = {1: 1.0, 3: 0.4, 5: 0.2}
# Partials of a bar that is struck: (frequency ratio, amplitude, decay per second).
_BELL = ((1.0, 1.0, 3.5), (2.76, 0.6, 5.0), (5.40, 0.4, 8.0))
# Open voicings: the third lies an octave up, where major and minor are at least 37 Hz apart.
_CHORD = {"major": (0, 7, 16), "minor": (0, 7, 15)}


def make_sound(
    event: Event, rng: np.random.Generator, seconds: float | None = None, recordings: Recordings | None = None
) -> Samples:
    """Synthesises one event.

    Args:
        event: What to make; its loudness is not applied here.
        rng: Source of phases, small detuning, timing and noise.
        seconds: Overrides the length (for a bed).
        recordings: What a voice says; only a voice needs them.

    Returns:
        Samples [N] of arbitrary level.
    """
    if KINDS[event.kind].spoken:
        assert recordings is not None, "a scene with a voice is rendered with recordings"
        assert event.words is not None
        return recordings.samples[event.words, int(rng.integers(TAKES))]
    if seconds is not None or event.length is None:
        return _MAKERS[event.kind](event, rng, seconds or 0.0)
    sound = _MAKERS[event.kind](event, rng, LENGTH_SECONDS[event.length])
    return sound * 10.0 ** (-_FALL_DB / 20.0 * np.arange(len(sound)) / len(sound))


def _times(seconds: float) -> Samples:
    """Returns the time of each sample [N] in seconds."""
    return np.arange(round(seconds * SAMPLE_RATE), dtype=np.float64) / SAMPLE_RATE


def _fade(samples: Samples, attack: float, release: float) -> Samples:
    """Applies a raised-cosine attack and release (seconds) in place and returns the samples."""
    for seconds, reverse in ((attack, False), (release, True)):
        count = min(int(seconds * SAMPLE_RATE), len(samples))
        ramp = 0.5 - 0.5 * np.cos(np.pi * (np.arange(count) + 0.5) / max(count, 1))
        if reverse:
            samples[len(samples) - count :] *= ramp[::-1]
        else:
            samples[:count] *= ramp
    return samples


def _frequency(event: Event, rng: np.random.Generator) -> float:
    """Returns the event's pitch in Hz, a few cents off."""
    assert event.pitch is not None
    return PITCHES[event.pitch] * 2.0 ** (rng.uniform(-_DETUNE_CENTS, _DETUNE_CENTS) / 1200.0)


def _partials(times: Samples, partials: list[tuple[float, float, float]], rng: np.random.Generator) -> Samples:
    """Sums decaying sines given as (Hz, amplitude, decay per second); those above 7.6 kHz are left out."""
    total = np.zeros_like(times)
    for hertz, amplitude, decay in partials:
        if hertz < 7600.0:
            wave = np.sin(2.0 * np.pi * hertz * times + rng.uniform(0.0, 2.0 * np.pi))
            total += amplitude * (wave * np.exp(-decay * times) if decay else wave)
    return total


def _glide(hertz: Samples, rng: np.random.Generator) -> Samples:
    """Returns a sine whose frequency follows `hertz` [N]."""
    return np.sin(2.0 * np.pi * np.cumsum(hertz) / SAMPLE_RATE + rng.uniform(0.0, 2.0 * np.pi))


def _noise(count: int, shape: Callable[[Samples], Samples], rng: np.random.Generator) -> Samples:
    """Returns `count` samples of noise whose amplitude spectrum is `shape(Hz)`."""
    # A power of two at least as long: other lengths can cost ten times more to transform.
    size = 1 << max(count - 1, 1).bit_length()
    hertz = np.arange(size // 2 + 1, dtype=np.float64) * (SAMPLE_RATE / size)
    spectrum = rng.standard_normal(len(hertz)) + 1j * rng.standard_normal(len(hertz))
    return np.fft.irfft(spectrum * shape(hertz), size)[:count]


def _bump(hertz: Samples, centre: float, octaves: float) -> Samples:
    """Returns a bell-shaped band around `centre` Hz, `octaves` wide on either side."""
    return np.exp(-0.5 * (np.log2(np.maximum(hertz, 1.0) / centre) / octaves) ** 2)


def _repeat(count: int, period: float, make: Callable[[], Samples], rng: np.random.Generator) -> Samples:
    """Lays `count` things out, one every `period` seconds give or take 4 ms."""
    items = [make() for _ in range(count)]
    starts = [int((i * period + (rng.uniform(-0.004, 0.004) if i else 0.0)) * SAMPLE_RATE) for i in range(count)]
    total = np.zeros(max(start + len(item) for start, item in zip(starts, items, strict=True)))
    for start, item in zip(starts, items, strict=True):
        total[start : start + len(item)] += item * rng.uniform(0.92, 1.0)
    return total


def _tone(event: Event, rng: np.random.Generator, seconds: float) -> Samples:
    """One sine."""
    return _fade(_partials(_times(seconds), [(_frequency(event, rng), 1.0, 0.0)], rng), 0.02, 0.04)


def _organ(event: Event, rng: np.random.Generator, seconds: float) -> Samples:
    """A note and its octaves."""
    hertz = _frequency(event, rng)
    return _fade(_partials(_times(seconds), [(n * hertz, a, 0.0) for n, a in _ORGAN.items()], rng), 0.03, 0.05)


def _brass(event: Event, rng: np.random.Generator, seconds: float) -> Samples:
    """All harmonics, the high ones strong: a buzz."""
    hertz = _frequency(event, rng)
    count = int(7000.0 / hertz)
    return _fade(_partials(_times(seconds), [(n * hertz, n**-0.4, 0.0) for n in range(1, count + 1)], rng), 0.05, 0.05)


def _pluck(event: Event, rng: np.random.Generator, seconds: float) -> Samples:
    """Harmonics that die away, the high ones sooner."""
    hertz = _frequency(event, rng)
    partials = [(n * hertz, n**-1.3, 3.5 + 1.2 * n) for n in range(1, 6)]
    return _fade(_partials(_times(0.64), partials, rng), 0.003, 0.06)


def _bell(event: Event, rng: np.random.Generator, seconds: float) -> Samples:
    """Inharmonic partials that ring on."""
    hertz = _frequency(event, rng)
    return _fade(_partials(_times(0.76), [(r * hertz, a, d) for r, a, d in _BELL], rng), 0.003, 0.08)


def _beeps(event: Event, rng: np.random.Generator, seconds: float) -> Samples:
    """Short notes with odd harmonics."""
    hertz = _frequency(event, rng)
    partials = [(n * hertz, a, 0.0) for n, a in _BEEP.items()]
    return _repeat(event.count or 1, 0.32, lambda: _fade(_partials(_times(0.17), partials, rng), 0.01, 0.015), rng)


def _chord(event: Event, rng: np.random.Generator, seconds: float) -> Samples:
    """Root, fifth and tenth."""
    hertz = _frequency(event, rng)
    assert event.quality is not None
    partials = [(hertz * 2.0 ** (semitones / 12.0), 1.0, 0.0) for semitones in _CHORD[event.quality]]
    return _fade(_partials(_times(seconds), partials, rng), 0.03, 0.05)


def _siren(event: Event, rng: np.random.Generator, seconds: float) -> Samples:
    """A wail between about 550 and 1200 Hz, two and a half times a second."""
    times = _times(seconds)
    hertz = 812.0 * 2.0 ** (0.56 * -np.cos(2.0 * np.pi * times / _SIREN_PERIOD)) * rng.uniform(0.99, 1.01)
    return _fade(_glide(hertz, rng) + 0.4 * _glide(2.0 * hertz, rng), 0.02, 0.04)


def _sweep(event: Event, rng: np.random.Generator, seconds: float) -> Samples:
    """One glide between about 350 and 2500 Hz."""
    low, high = 350.0 * rng.uniform(0.99, 1.01), 2500.0 * rng.uniform(0.99, 1.01)
    position = _times(seconds) / seconds
    hertz = low * (high / low) ** (position if event.direction == "rising" else 1.0 - position)
    return _fade(_glide(hertz, rng), 0.02, 0.04)


def _rain(event: Event, rng: np.random.Generator, seconds: float) -> Samples:
    """Bright noise, grainy with drops."""
    count = round(seconds * SAMPLE_RATE)
    grain = np.repeat(rng.gamma(2.0, 0.5, count // 64 + 1), 64)[:count]
    noise = _noise(count, lambda f: ((f > 1200.0) & (f < 7600.0)) / (1.0 + (f / 6000.0) ** 2), rng)
    return _fade(noise * (0.7 + 0.3 * grain), 0.04, 0.05)


def _wind(event: Event, rng: np.random.Generator, seconds: float) -> Samples:
    """Low noise that swells slowly, by about 3 dB."""
    times = _times(seconds)
    centre = 480.0 * rng.uniform(0.93, 1.07)
    noise = _noise(len(times), lambda f: _bump(f, centre, 0.45), rng)
    swell = 1.0 + 0.17 * np.sin(2.0 * np.pi * rng.uniform(0.8, 1.3) * times + rng.uniform(0.0, 2.0 * np.pi))
    return _fade(noise * swell, 0.05, 0.06)


def _rumble(event: Event, rng: np.random.Generator, seconds: float) -> Samples:
    """An engine: a train of low harmonics with some noise."""
    times = _times(seconds)
    hertz = rng.uniform(38.0, 44.0)
    harmonics = _partials(
        times, [(n * hertz, float(_bump(np.array(n * hertz), 95.0, 0.6)), 0.0) for n in range(1, 7)], rng
    )
    noise = _noise(len(times), lambda f: _bump(f, 95.0, 0.5), rng)
    noise *= np.std(harmonics) / (np.std(noise) + 1e-9)
    return _fade(harmonics + 0.7 * noise, 0.04, 0.05)


def _knock(rng: np.random.Generator) -> Samples:
    """One thud on wood."""
    scale = rng.uniform(0.98, 1.02)
    thud = _partials(_times(0.13), [(310.0 * scale, 1.0, 30.0), (760.0 * scale, 0.7, 36.0)], rng)
    thud += 0.25 * np.exp(-60.0 * _times(0.13)) * rng.standard_normal(len(thud))
    return _fade(thud, 0.002, 0.03)


def _clap(rng: np.random.Generator) -> Samples:
    """One burst of mid-band noise."""
    burst = _noise(int(0.12 * SAMPLE_RATE), lambda f: _bump(f, 1700.0, 0.55), rng)
    return _fade(burst * np.exp(-24.0 * _times(0.12)), 0.002, 0.03)


def _call(rng: np.random.Generator) -> Samples:
    """One bird call: up and down again, high."""
    position = np.linspace(0.0, 1.0, int(0.18 * SAMPLE_RATE))
    hertz = 2900.0 * rng.uniform(0.99, 1.01) + 1500.0 * np.sin(np.pi * position)
    return _fade(_glide(hertz, rng), 0.03, 0.04)


def _knocks(event: Event, rng: np.random.Generator, seconds: float) -> Samples:
    """Countable knocks."""
    return _repeat(event.count or 1, 0.28, lambda: _knock(rng), rng)


def _claps(event: Event, rng: np.random.Generator, seconds: float) -> Samples:
    """Countable claps."""
    return _repeat(event.count or 1, 0.28, lambda: _clap(rng), rng)


def _birds(event: Event, rng: np.random.Generator, seconds: float) -> Samples:
    """Countable calls."""
    return _repeat(event.count or 1, 0.32, lambda: _call(rng), rng)


_MAKERS: dict[str, Callable[[Event, np.random.Generator, float], Samples]] = {
    "tone": _tone,
    "organ": _organ,
    "brass": _brass,
    "pluck": _pluck,
    "bell": _bell,
    "beeps": _beeps,
    "chord": _chord,
    "siren": _siren,
    "sweep": _sweep,
    "rain": _rain,
    "wind": _wind,
    "rumble": _rumble,
    "knocks": _knocks,
    "claps": _claps,
    "birds": _birds,
}
