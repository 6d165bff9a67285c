"""A linear classifier of sounds, fitted on freshly made ones when it is first needed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from bagpiper.soundscapes.corpus.facts import (
    DIRECTIONS,
    KINDS,
    LENGTHS,
    LOUDNESS_DB,
    PITCHES,
    QUALITIES,
    SPOKEN_KINDS,
    Event,
    Scene,
)
from bagpiper.soundscapes.corpus.render import render_scene
from bagpiper.soundscapes.scoring.spectral import Array, decibels, features, power_frames, steady_level

_SEED = 20_240
_PER_PITCH = 4
_PER_KIND = 16


@dataclass(frozen=True)
class Reference:
    """What sounds of each class measure.

    Attributes:
        classes: Kind, pitch, quality and direction of each class [C].
        means: Mean whitened features per class [C, D].
        whitening: Makes the spread within classes equal in all directions [D, D].
        level_offsets: Per kind, by how much (dB) its steady level differs from the level of its loudness class.
    """

    classes: tuple[Event, ...]
    means: Array
    whitening: Array
    level_offsets: dict[str, float]

    def classify(self, measured: Array) -> Event:
        """Returns the class whose mean is nearest to the features [D]."""
        distances = np.sum((self.means - measured @ self.whitening) ** 2, axis=1)
        return self.classes[int(np.argmin(distances))]


@lru_cache(maxsize=1)
def reference() -> Reference:
    """Makes some sounds of every class from a fixed seed and fits the classifier; one to two seconds, once."""
    classes = _classes()
    rng = np.random.default_rng(_SEED)
    means, centred = [], []
    offsets: dict[str, list[float]] = {event.kind: [] for event in classes}
    for event in classes:
        count = _PER_PITCH if event.pitch is not None else _PER_KIND
        examples = [_example(event, index, rng) for index in range(count)]
        points = np.stack([features(power) for power in examples])
        offsets[event.kind] += [steady_level(decibels(power.sum(axis=1))) for power in examples]
        means.append(points.mean(axis=0))
        centred.append((points - means[-1]) / np.sqrt(count / len(classes)))
    spread = np.concatenate(centred)
    covariance = spread.T @ spread / len(classes) * 1.2
    # A codec moves features in ways that clean sounds do not show; this much spread is allowed in every direction.
    values, vectors = np.linalg.eigh(covariance + 0.4 * np.eye(covariance.shape[0]))
    whitening = vectors / np.sqrt(values)
    level_offsets = {kind: float(np.mean(levels)) - LOUDNESS_DB["loud"] for kind, levels in offsets.items()}
    return Reference(tuple(classes), np.stack(means) @ whitening, whitening, level_offsets)


def _classes() -> list[Event]:
    """Lists everything that the classifier tells apart."""
    classes = []
    for kind, info in KINDS.items():
        if kind in SPOKEN_KINDS:
            continue
        for pitch in PITCHES if info.pitched else (None,):
            for quality in QUALITIES if info.quality else (None,):
                for direction in DIRECTIONS if info.direction else (None,):
                    classes.append(Event(kind, "loud", pitch, quality=quality, direction=direction))
    return classes


def _example(event: Event, index: int, rng: np.random.Generator) -> Array:
    """Makes one sound of a class and returns its spectra [T, 513]."""
    info = KINDS[event.kind]
    length = LENGTHS[index % 2] if info.sized else None
    count = info.counts[index % len(info.counts)] if info.counts else None
    scene = Scene((replace(event, length=length, count=count),), "single", "silence")
    power = power_frames(render_scene(scene, rng).astype(np.float64))
    levels = decibels(power.sum(axis=1))
    frames = np.flatnonzero(levels > levels.max() - 30.0)
    return power[frames[0] : frames[-1] + 1]
