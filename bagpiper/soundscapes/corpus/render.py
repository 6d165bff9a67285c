"""From a scene to a waveform: levels, timing and the background."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bagpiper.soundscapes.corpus.facts import BACKGROUND_DB, GRID_SECONDS, LOUDNESS_DB, SAMPLE_RATE, Event, Scene
from bagpiper.soundscapes.corpus.sounds import Samples, make_sound
from bagpiper.soundscapes.corpus.voice import Recordings

_GRID = int(GRID_SECONDS * SAMPLE_RATE)
# Background alone at both ends and between the sounds of a sequence, so that it can be heard, and so that a pause
# between sounds is longer than any gap between countable things (at most 0.16 s). None of these is drawn at random: a
# model that is minutes old finds what happens when by position; where all were one step longer at times, it
# stayed in a pause for as long as not.
_MARGIN = 4 * _GRID
_PAUSE = 10 * _GRID
# How long a bed is alone before the first and after the last sound over it.
_BED_ALONE = 9 * _GRID
_SHORTEST_CLIP = 0.8
_LEVEL_WINDOW = int(0.05 * SAMPLE_RATE)


def render_scene(scene: Scene, rng: np.random.Generator, recordings: Recordings | None = None) -> NDArray[np.float32]:
    """Renders a scene.

    Args:
        scene: What to render.
        rng: Source of every small variation; the same state gives the same samples.
        recordings: What a voice says; needed if the scene has one.

    Returns:
        Samples float32 [N] at 16 kHz, within -1..1.
    """
    if scene.arrangement == "overlap":
        top = _in_a_row(scene.events[1:], rng, recordings)
        bed = make_sound(scene.events[0], rng, (len(top) + 2 * _BED_ALONE) / SAMPLE_RATE)
        sound = _at_loudness(bed, scene.events[0].loudness)
        sound[_BED_ALONE : _BED_ALONE + len(top)] += top
    else:
        sound = _in_a_row(scene.events, rng, recordings)
    total = max(len(sound) + 2 * _MARGIN, int(_SHORTEST_CLIP * SAMPLE_RATE))
    clip = _background(scene.background, total, rng)
    clip[_MARGIN : _MARGIN + len(sound)] += sound
    return np.clip(clip, -0.999, 0.999).astype(np.float32)


def _in_a_row(events: tuple[Event, ...], rng: np.random.Generator, recordings: Recordings | None) -> Samples:
    """Renders events one after the other with pauses between them."""
    parts: list[Samples] = []
    for event in events:
        if parts:
            parts.append(np.zeros(_PAUSE))
        sound = _at_loudness(make_sound(event, rng, recordings=recordings), event.loudness)
        parts += [sound, np.zeros(-len(sound) % _GRID)]
    return np.concatenate(parts)


def _at_loudness(samples: Samples, loudness: str) -> Samples:
    """Scales a sound so that its loudest 50 ms have the level of a loudness class."""
    sums = np.concatenate([[0.0], np.cumsum(samples**2)])
    window = min(_LEVEL_WINDOW, len(samples))
    power = np.max(sums[window:] - sums[:-window]) / window
    return samples * (10.0 ** (LOUDNESS_DB[loudness] / 20.0) / np.sqrt(power + 1e-12))


def _background(name: str, count: int, rng: np.random.Generator) -> Samples:
    """Renders a background [count]."""
    level = BACKGROUND_DB[name]
    if level is None:
        return np.zeros(count)
    if name == "hiss":
        return rng.standard_normal(count) * 10.0 ** (level / 20.0)
    times = np.arange(count) / SAMPLE_RATE
    hum = np.sin(2.0 * np.pi * 120.0 * times + rng.uniform(0.0, 6.28))
    hum += 0.3 * np.sin(2.0 * np.pi * 240.0 * times + rng.uniform(0.0, 6.28))
    return hum * 10.0 ** (level / 20.0) * np.sqrt(2.0 / 1.09)
