"""Rich captions: prose in varied words that states every fact of a scene."""

from __future__ import annotations

import numpy as np

from bagpiper.data.soundscapes.facts import KINDS, Event, Scene
from bagpiper.data.soundscapes.lexicon import (
    BACKGROUND,
    DIRECTION,
    LENGTH,
    LOUDNESS,
    NOUNS,
    NUMBERS,
    QUALITY,
    TEXTURE,
)

_SINGLE = (
    "There is one sound in the clip: {0}.",
    "One sound can be heard on its own: {0}.",
    "The recording holds one sound, {0}, and nothing else.",
    "Only one sound is present here, {0}.",
)
_SEQUENCE = {
    2: (
        "Two sounds follow each other: first {0}, then {1}.",
        "Two sounds come in a row: {0}, followed by {1}.",
        "There are two sounds: first comes {0}, and after it {1}.",
    ),
    3: (
        "Three sounds follow each other: first {0}, then {1}, and finally {2}.",
        "Three sounds come in a row: {0}, followed by {1}, followed by {2}.",
        "There are three sounds: first comes {0}, and after it {1}, and finally {2}.",
    ),
}
# The bed is {0}; the sounds over it follow in order of time.
_OVERLAP = {
    2: (
        "Two sounds overlap: {1} over {0}.",
        "Two sounds overlap: while {0} goes on, you hear {1}.",
        "There are two sounds at once: {1}, on top of {0}.",
    ),
    3: (
        "Three sounds overlap: {1}, then {2}, both over {0}.",
        "Three sounds overlap: while {0} goes on, you hear {1}, then {2}.",
        "There are three sounds, partly at once: {1}, followed by {2}, on top of {0}.",
    ),
}
# Captions of one sound always tell its texture, so that they are not much shorter than the others.
_TEXTURE_SHARE = {1: 1.0, 2: 0.3, 3: 0.15}


def write_caption(scene: Scene, rng: np.random.Generator) -> str:
    """Writes a caption that states every fact of a scene.

    Args:
        scene: What to describe.
        rng: Source of the wording.

    Returns:
        One paragraph of two sentences, about 17 to 50 words.
    """
    num_events = len(scene.events)
    if scene.arrangement == "single":
        templates: tuple[str, ...] = _SINGLE
    else:
        templates = (_SEQUENCE if scene.arrangement == "sequence" else _OVERLAP)[num_events]
    phrases = []
    for index, event in enumerate(scene.events):
        if scene.arrangement == "overlap" and index == 0:
            phrases.append(_plain_phrase(event, rng))
        else:
            phrases.append(_phrase(event, rng, rng.random() < _TEXTURE_SHARE[num_events]))
    main = _pick(rng, templates).format(*phrases)
    background = _pick(rng, BACKGROUND[scene.background])
    # Only the first wording makes sense before anything else was said.
    if rng.random() < 0.3:
        return f"{BACKGROUND[scene.background][0]} {main}"
    return f"{main} {background}"


def _phrase(event: Event, rng: np.random.Generator, with_texture: bool) -> str:
    """Returns a noun phrase with every fact of an event, such as "a short organ note at C5, at a soft level"."""
    texture = f", {_pick(rng, TEXTURE[event.kind])}" if with_texture else ""
    if rng.random() < 0.6:
        return _plain_phrase(event, rng) + texture
    length = _pick(rng, LENGTH[event.length]) if event.length is not None else ""
    core = _counted(event, f"{length} {_noun(event, rng)}".strip())
    loudness, place = _pick(rng, LOUDNESS[event.loudness]), _pick(rng, ("level", "volume"))
    return f"{core}{_at_pitch(event, rng)}{texture}, at a {loudness} {place}"


def _plain_phrase(event: Event, rng: np.random.Generator) -> str:
    """Returns a noun phrase without commas after the noun, such as "a soft, short organ note at C5"."""
    loudness = _pick(rng, LOUDNESS[event.loudness])
    adjectives = f"{loudness}, {_pick(rng, LENGTH[event.length])}" if event.length is not None else loudness
    return _counted(event, f"{adjectives} {_noun(event, rng)}") + _at_pitch(event, rng)


def _noun(event: Event, rng: np.random.Generator) -> str:
    """Returns the noun in its number, with the quality or the direction of the event."""
    form = 1 if (event.count or 1) > 1 else 0
    noun = _pick(rng, tuple(forms[form] for forms in NOUNS[event.kind]))
    if event.quality is not None:
        noun = f"{_pick(rng, QUALITY[event.quality])} {noun}"
    if event.direction is not None:
        noun = f"{_pick(rng, DIRECTION[event.direction])} {noun}"
    return noun


def _at_pitch(event: Event, rng: np.random.Generator) -> str:
    """Returns where the event lies, such as " at C5", or nothing."""
    return f" {_pick(rng, ('at', 'on'))} {event.pitch}" if event.pitch is not None else ""


def _counted(event: Event, words: str) -> str:
    """Puts the count, or an article, before a noun phrase."""
    if KINDS[event.kind].counts:
        assert event.count is not None
        return f"{NUMBERS[event.count]} {words}"
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _pick(rng: np.random.Generator, values: tuple[str, ...]) -> str:
    """Returns one of the values, each equally likely."""
    return values[int(rng.integers(len(values)))]
