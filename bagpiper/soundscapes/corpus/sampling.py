"""Drawing scenes, and the rule that keeps some combinations of facts out of training."""

from __future__ import annotations

import zlib
from itertools import pairwise
from typing import Any

import numpy as np

from bagpiper.soundscapes.corpus.facts import (
    ARRANGEMENTS,
    BACKGROUNDS,
    KINDS,
    Event,
    Scene,
    allowed_values,
    kinds_of,
)

# How often each arrangement is drawn.
_ARRANGEMENT_SHARES = {"quick": (0.50, 0.28, 0.22), "long": (0.20, 0.42, 0.38)}
# A sound over a bed is at least one loudness class above it, so that both can be heard and measured.
_OVERLAP_LOUDNESS = (("soft", "moderate"), ("soft", "loud"), ("moderate", "loud"))
# Over a pitched bed only sounds that share no band with it: a knock (300 to 800 Hz) would hide in it.
_OVER_PITCHED_BED = ("claps", "birds")
_NOISES = ("rain", "wind", "rumble")

_EVENT_HOLD_OUT = 12
_PAIR_HOLD_OUT = 11
# Chosen so that every kind has a combination that is held out, and none has more than a fifth of its own.
_HOLD_OUT_SALT = 3560


def sample_scene(rng: np.random.Generator, variety: str = "quick", speech: bool = False) -> Scene:
    """Draws one scene; the facts are independent of one another wherever they can be.

    Args:
        rng: Source of all choices.
        variety: "quick" (one or two events, 12 kinds) or "long" (up to three).
        speech: A spoken sentence may be among the sounds.
    """
    kinds = kinds_of(variety, speech)
    arrangement = ARRANGEMENTS[int(rng.choice(3, p=_ARRANGEMENT_SHARES[variety]))]
    background = _pick(rng, BACKGROUNDS)
    if arrangement == "single":
        events: tuple[Event, ...] = (_sample_event(rng, _pick(rng, kinds)),)
    else:
        num_events = 3 if variety == "long" and rng.random() < 0.5 else 2
        make = _sample_sequence if arrangement == "sequence" else _sample_overlap
        events = make(rng, kinds, num_events)
    return Scene(events, arrangement, background)


def is_held_out(scene: Scene) -> bool:
    """Says whether a scene may occur in `valid` and `test` only.

    Held out are about one in twelve of the combinations of kind, loudness and pitch (or count, length or words), such
    as a loud bell at D5 or a soft short siren, at least one for every kind; and about one in ten of the ordered pairs
    of kinds that follow each other or overlap. A scene that holds one of these is held out as a whole. Each value of
    each single fact is still met in training.
    """
    for event in scene.events:
        detail = event.pitch or event.count or event.length or event.words
        # A bed of noise has its loudness alone, and that is no combination.
        if detail is not None and _stable_hash("event", event.kind, detail, event.loudness) % _EVENT_HOLD_OUT == 0:
            return True
    kinds = [event.kind for event in scene.events]
    return any(
        _stable_hash("pair", scene.arrangement, first, second) % _PAIR_HOLD_OUT == 0
        for first, second in pairwise(kinds)
    )


def sample_scene_for(rng: np.random.Generator, variety: str, held_out: bool, speech: bool = False) -> Scene:
    """Draws scenes until one is, or is not, held out (about one in five is)."""
    while True:
        scene = sample_scene(rng, variety, speech)
        if is_held_out(scene) == held_out:
            return scene


def _sample_sequence(rng: np.random.Generator, kinds: tuple[str, ...], num_events: int) -> tuple[Event, ...]:
    """Draws events of different kinds that follow one another."""
    return tuple(_sample_event(rng, kinds[index]) for index in rng.permutation(len(kinds))[:num_events])


def _sample_overlap(rng: np.random.Generator, kinds: tuple[str, ...], num_events: int) -> tuple[Event, ...]:
    """Draws a bed and one or two events over it."""
    bed = _pick(rng, tuple(kind for kind in kinds if KINDS[kind].bed))
    over = _OVER_PITCHED_BED if KINDS[bed].pitched else tuple(kind for kind in kinds if kind not in _NOISES)
    chosen = [over[index] for index in rng.permutation(len(over))[: num_events - 1]]
    below, above = _OVERLAP_LOUDNESS[int(rng.integers(len(_OVERLAP_LOUDNESS)))]
    return (_sample_event(rng, bed, below, is_bed=True), *(_sample_event(rng, kind, above) for kind in chosen))


def _sample_event(rng: np.random.Generator, kind: str, loudness: str | None = None, is_bed: bool = False) -> Event:
    """Draws the facts of one event."""
    facts = {fact: _pick(rng, values) for fact, values in allowed_values(kind, is_bed).items()}
    if loudness is not None:
        facts["loudness"] = loudness
    return Event(kind, **facts)


def _pick(rng: np.random.Generator, values: tuple[Any, ...]) -> Any:
    """Returns one of the values, each equally likely."""
    return values[int(rng.integers(len(values)))]


def _stable_hash(*parts: object) -> int:
    """Returns a number that depends on the parts alone (Python's own hash changes from process to process)."""
    return zlib.crc32("/".join(map(str, (_HOLD_OUT_SALT, *parts))).encode())
