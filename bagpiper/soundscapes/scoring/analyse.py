"""Facts measured in a waveform, blind: nothing but the samples is looked at."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bagpiper.soundscapes.corpus.facts import KINDS, LENGTH_SECONDS, LOUDNESS_DB
from bagpiper.soundscapes.corpus.voice import Recordings
from bagpiper.soundscapes.scoring.reference import reference
from bagpiper.soundscapes.scoring.spectral import (
    FRAMES_PER_SECOND,
    Array,
    band_level,
    count_bursts,
    decibels,
    features,
    level_of,
    power_frames,
    runs,
    steady_level,
    to_working_rate,
)
from bagpiper.soundscapes.scoring.words import Sentences, sentences_of

# The softest sound lies at -37 dBFS and the loudest background at -54 dBFS.
_HEARD_DB = -47.0
# Gaps between countable things last up to 0.2 s, pauses between sounds at least 0.41 s.
_BRIDGE = int(0.31 * FRAMES_PER_SECOND)
_SHORTEST_SOUND = int(0.06 * FRAMES_PER_SECOND)
# A bed is alone for at least 0.34 s at either end; a window smears sounds by 0.03 s.
_EDGE = slice(int(0.06 * FRAMES_PER_SECOND), int(0.28 * FRAMES_PER_SECOND))
_SHORTEST_OVERLAP = int(0.75 * FRAMES_PER_SECOND)
# A sound over a bed is 11 dB louder than the bed; noise in a bed fluctuates by some 4 dB.
_OVERLAP_STEP_DB = 6.5
# What is left of a bed of wind, once its mean is taken off twice, reaches 1 dB over its mean now and then.
_OVER_BED_DB = 2.0
_SPLIT_SECONDS = 0.5 * (LENGTH_SECONDS["short"] + LENGTH_SECONDS["long"])


def analyse_audio(samples: NDArray, sample_rate: int, recordings: Recordings | None = None) -> dict[str, Any]:
    """Measures the facts of a soundscape.

    Args:
        samples: Waveform [N] of any length; values that are not finite count as silence.
        sample_rate: Samples per second.
        recordings: What a voice may say; without them no voice is looked for.

    Returns:
        The form of `scene_to_json`; silence or a very short clip has no events.
    """
    sentences = sentences_of(recordings) if recordings is not None else None
    power = power_frames(to_working_rate(samples, sample_rate))
    levels = decibels(power.sum(axis=1))
    behind = _background_spectrum(power, levels)
    power = np.maximum(power - 2.0 * behind, 0.0)
    heard = decibels(power.sum(axis=1))
    events: list[dict[str, Any]] = []
    overlap = False
    last_start: int | None = None
    for start, stop in runs(heard > _HEARD_DB, _BRIDGE):
        if stop - start < _SHORTEST_SOUND:
            continue
        bed = _bed_spectrum(power[start:stop], heard[start:stop])
        if bed is not None:
            overlap = True
            last_start = None
            events.extend(_measure_overlap(power[start:stop], bed, sentences))
            continue
        event = _measure_sound(power[start:stop], 2.0 * behind, _HEARD_DB, sentences)
        if last_start is not None and events[-1]["kind"] == event["kind"]:
            # No scene has a kind twice: these are repetitions, laid wider apart than they should be.
            events[-1] = _measure_sound(power[last_start:stop], 2.0 * behind, _HEARD_DB, sentences)
        else:
            events.append(event)
            last_start = start
    found: dict[str, Any] = {"num_events": len(events), "background": _background(behind), "events": events}
    if events:
        found["arrangement"] = "overlap" if overlap else ("single" if len(events) == 1 else "sequence")
    return found


def _background_spectrum(power: Array, levels: Array) -> Array:
    """Returns the mean spectrum [513] of the quietest 6 % of frames (0.06 s at least)."""
    count = min(len(levels), max(6, int(0.06 * len(levels))))
    return np.mean(power[np.argsort(levels)[:count]], axis=0)


def _background(spectrum: Array) -> str:
    """Names the background by where its power lies."""
    hum, hiss = band_level(spectrum, 90.0, 150.0), band_level(spectrum, 2000.0, 7500.0)
    if max(hum + 3.0, hiss) < -66.0:
        return "silence"
    return "hum" if hum > hiss else "hiss"


def _bed_spectrum(power: Array, levels: Array) -> Array | None:
    """Finds a bed: a region that starts and ends alike, is much louder between, and never pauses.

    Args:
        power: Spectra [T, 513] of a region.
        levels: Their levels [T] in dBFS.

    Returns:
        The spectrum [513] of the bed, or None if the region is one sound.
    """
    if len(levels) < _SHORTEST_OVERLAP:
        return None
    first, last = levels[_EDGE], levels[::-1][_EDGE]
    edge = max(np.median(first), np.median(last))
    inner = levels[_EDGE.start : -_EDGE.start]
    alike = abs(np.median(first) - np.median(last)) < 7.0
    pauses = np.percentile(inner, 6) < edge - 9.0
    if edge < _HEARD_DB or not alike or pauses or inner.max() < edge + _OVERLAP_STEP_DB:
        return None
    return 0.5 * (power[_EDGE].mean(axis=0) + power[::-1][_EDGE].mean(axis=0))


def _measure_overlap(power: Array, bed: Array, sentences: Sentences | None) -> list[dict[str, Any]]:
    """Measures a bed, by the ends of the region, and then the sounds over it.

    Args:
        power: Spectra [T, 513] of the region.
        bed: The spectrum [513] of the bed alone.
        sentences: What a voice over the bed may say.
    """
    ends = np.concatenate([power[_EDGE], power[::-1][_EDGE][::-1]])
    event = _measure_event(ends)
    event.pop("length", None)
    rest = np.maximum(power - 2.0 * bed, 0.0)
    levels = decibels(rest.sum(axis=1))
    threshold = max(level_of(float(bed.sum())) + _OVER_BED_DB, _HEARD_DB)
    events = [event]
    for start, stop in runs(levels > threshold, _BRIDGE):
        if stop - start >= _SHORTEST_SOUND and levels[start:stop].max() > threshold + 4.0:
            events.append(_measure_sound(rest[start:stop], 2.0 * bed, threshold, sentences))
    return events


def _measure_sound(power: Array, under: Array, quietest: float, sentences: Sentences | None) -> dict[str, Any]:
    """Measures one sound, which may be a spoken sentence if there are any; the arguments are those of `recognise`."""
    spoken = sentences.recognise(power, under, quietest) if sentences is not None else None
    if spoken is not None:
        return {"kind": "voice", "loudness": spoken.loudness, "words": spoken.words}
    return _measure_event(power)


def _measure_event(power: Array) -> dict[str, Any]:
    """Measures one sound that is no voice.

    Args:
        power: Spectra [T, 513] of its frames, without what lies under it.
    """
    levels = decibels(power.sum(axis=1))
    fit = reference()
    best = fit.classify(features(power))
    event: dict[str, Any] = {"kind": best.kind}
    level = steady_level(levels) - fit.level_offsets[best.kind]
    event["loudness"] = min(LOUDNESS_DB, key=lambda name: abs(LOUDNESS_DB[name] - level))
    for fact in ("pitch", "quality", "direction"):
        if getattr(best, fact) is not None:
            event[fact] = getattr(best, fact)
    info = KINDS[best.kind]
    if info.counts:
        event["count"] = min(max(count_bursts(levels), min(info.counts)), max(info.counts))
    if info.sized:
        seconds = float(np.sum(levels > levels.max() - 12.0)) / FRAMES_PER_SECOND
        event["length"] = "long" if seconds > _SPLIT_SECONDS else "short"
    return event
