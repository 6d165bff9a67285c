"""What can be said about a soundscape: kinds of sound, their facts, scenes, and the JSON form of both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

SAMPLE_RATE = 16_000

# At least two semitones apart, and at least 32 Hz, the width of one band of an 80-band mel filter bank at 16 kHz.
PITCHES: dict[str, float] = {
    "C4": 261.63,
    "D4": 293.66,
    "E4": 329.63,
    "G4": 392.00,
    "A4": 440.00,
    "C5": 523.25,
    "D5": 587.33,
    "E5": 659.26,
    "G5": 783.99,
    "A5": 880.00,
    "C6": 1046.50,
    "E6": 1318.51,
}

# Level in dBFS of the loudest 50 ms of an event. 11 dB apart, so a codec may err by 5 dB.
LOUDNESS_DB: dict[str, float] = {"soft": -37.0, "moderate": -26.0, "loud": -15.0}
# Level in dBFS of the background; None is digital silence.
BACKGROUND_DB: dict[str, float | None] = {"silence": None, "hiss": -56.0, "hum": -54.0}
# All sounds start on a grid of 40 ms, one frame of a codec at 25 frames per second, so that a sound meets the frames of
# such a codec in few different ways and a small codebook holds it.
GRID_SECONDS = 0.04
# How long a sound of a "sized" kind lasts.
LENGTH_SECONDS: dict[str, float] = {"short": 0.40, "long": 0.92}

LOUDNESSES = tuple(LOUDNESS_DB)
BACKGROUNDS = tuple(BACKGROUND_DB)
LENGTHS = tuple(LENGTH_SECONDS)
QUALITIES = ("major", "minor")
DIRECTIONS = ("rising", "falling")
# What a voice may say: each told from the others by most of its sounds, 0.6 to 1 s long, and without any word that
# states another fact.
SENTENCES = (
    "good morning",
    "open the door",
    "see you tomorrow",
    "happy birthday",
    "close your eyes",
    "coffee is ready",
    "pass the salt",
    "welcome home",
    "are you hungry",
    "please sit down",
    "call me later",
    "my mother called",
)
ARRANGEMENTS = ("single", "sequence", "overlap")
VARIETIES = ("quick", "long")


@dataclass(frozen=True)
class KindInfo:
    """Which facts a kind of sound has, and which parts it may play.

    Attributes:
        pitched: It has a note name.
        counts: The numbers of repetitions it may have; empty if it is not countable.
        sized: It is short or long by choice (other kinds last as long as their nature says).
        quality: It is major or minor.
        direction: It rises or falls.
        bed: It may lie under other sounds for a whole clip.
        spoken: It says one of `SENTENCES`. Such kinds occur only where speech is asked for.
    """

    pitched: bool = False
    counts: tuple[int, ...] = ()
    sized: bool = False
    quality: bool = False
    direction: bool = False
    bed: bool = False
    spoken: bool = False


KINDS: dict[str, KindInfo] = {
    "tone": KindInfo(pitched=True, sized=True, bed=True),
    "organ": KindInfo(pitched=True, sized=True, bed=True),
    "brass": KindInfo(pitched=True, sized=True),
    "pluck": KindInfo(pitched=True),
    "bell": KindInfo(pitched=True),
    "beeps": KindInfo(pitched=True, counts=(2, 3, 4)),
    "chord": KindInfo(pitched=True, sized=True, quality=True),
    "siren": KindInfo(sized=True),
    "sweep": KindInfo(sized=True, direction=True),
    "rain": KindInfo(sized=True, bed=True),
    "wind": KindInfo(sized=True, bed=True),
    "rumble": KindInfo(sized=True, bed=True),
    "knocks": KindInfo(counts=(1, 2, 3, 4)),
    "claps": KindInfo(counts=(1, 2, 3, 4)),
    "birds": KindInfo(counts=(1, 2, 3, 4)),
    "voice": KindInfo(spoken=True),
}

SPOKEN_KINDS = tuple(kind for kind, info in KINDS.items() if info.spoken)
# Without speech; `kinds_of` adds it.
VARIETY_KINDS: dict[str, tuple[str, ...]] = {
    "quick": tuple(kind for kind in KINDS if kind not in ("organ", "chord", "rumble", *SPOKEN_KINDS)),
    "long": tuple(kind for kind in KINDS if kind not in SPOKEN_KINDS),
}

EVENT_FACTS = ("kind", "loudness", "pitch", "count", "length", "quality", "direction", "words")


@dataclass(frozen=True)
class Event:
    """One sound of a scene; a fact that its kind does not have is None.

    A bed (the first event of an overlap) lasts for the whole scene and so has no length of its own.
    """

    kind: str
    loudness: str
    pitch: str | None = None
    count: int | None = None
    length: str | None = None
    quality: str | None = None
    direction: str | None = None
    words: str | None = None


@dataclass(frozen=True)
class Scene:
    """One to three sounds and what lies behind them.

    Attributes:
        events: In order of time; in an overlap the first event is the bed and the others lie over it in order.
        arrangement: "single", "sequence" or "overlap".
        background: "silence", "hiss" or "hum".
    """

    events: tuple[Event, ...]
    arrangement: str
    background: str


def check_variety(variety: str) -> None:
    """Raises a ValueError if there is no such variety of scenes."""
    if variety not in VARIETIES:
        raise ValueError(f"unknown variety of soundscapes {variety!r}; choose one of {', '.join(VARIETIES)}")


def kinds_of(variety: str, speech: bool) -> tuple[str, ...]:
    """Returns the kinds that scenes of a variety may hold.

    Raises:
        ValueError: There is no such variety.
    """
    check_variety(variety)
    return VARIETY_KINDS[variety] + (SPOKEN_KINDS if speech else ())


def allowed_values(kind: str, is_bed: bool = False) -> dict[str, tuple[Any, ...]]:
    """Returns the values that each fact of an event of this kind may take.

    Args:
        kind: A key of `KINDS`.
        is_bed: The event lies under others, so it has no length of its own.
    """
    info = KINDS[kind]
    values: dict[str, tuple[Any, ...]] = {"loudness": LOUDNESSES}
    if info.pitched:
        values["pitch"] = tuple(PITCHES)
    if info.counts:
        values["count"] = info.counts
    if info.sized and not is_bed:
        values["length"] = LENGTHS
    if info.quality:
        values["quality"] = QUALITIES
    if info.direction:
        values["direction"] = DIRECTIONS
    if info.spoken:
        values["words"] = SENTENCES
    return values


def scene_to_json(scene: Scene) -> dict[str, Any]:
    """Returns the facts of a scene as plain JSON values; facts that a kind does not have are left out."""
    events = [
        {fact: getattr(event, fact) for fact in EVENT_FACTS if getattr(event, fact) is not None}
        for event in scene.events
    ]
    return {
        "num_events": len(events),
        "arrangement": scene.arrangement,
        "background": scene.background,
        "events": events,
    }


def scene_from_json(facts: dict[str, Any]) -> Scene:
    """Builds the scene that `scene_to_json` wrote.

    Raises:
        ValueError: A fact is missing, unknown, or has a value that its kind cannot have.
    """
    if not isinstance(facts, dict) or not isinstance(facts.get("events"), list) or not facts["events"]:
        raise ValueError("soundscape facts need a non-empty list 'events'; pass what scene_to_json returned")
    arrangement = _one_of(facts, "arrangement", ARRANGEMENTS, "the scene")
    background = _one_of(facts, "background", BACKGROUNDS, "the scene")
    num_events = len(facts["events"])
    if facts.get("num_events", num_events) != num_events:
        raise ValueError(f"the scene says num_events={facts['num_events']} but lists {num_events}; correct one of them")
    if (arrangement == "single") != (num_events == 1):
        raise ValueError(f"the scene has {num_events} event(s), which cannot be arranged as {arrangement!r}")
    events = [
        _event_from_json(item, index, arrangement == "overlap" and index == 0)
        for index, item in enumerate(facts["events"])
    ]
    return Scene(tuple(events), arrangement, background)


def _event_from_json(item: dict[str, Any], index: int, is_bed: bool) -> Event:
    """Builds one event, refusing facts that its kind does not have."""
    where = f"event {index}"
    kind = _one_of(item, "kind", tuple(KINDS), where)
    allowed = allowed_values(kind, is_bed)
    extra = sorted(set(item) - set(allowed) - {"kind"})
    if extra:
        raise ValueError(f"{where} ({kind}) has the facts {extra}, which this kind cannot have here; remove them")
    return Event(kind, **{fact: _one_of(item, fact, values, where) for fact, values in allowed.items()})


def _one_of(item: dict[str, Any], key: str, values: tuple[Any, ...], where: str) -> Any:
    """Returns `item[key]`, or raises a ValueError that lists what it may be."""
    if item.get(key) not in values:
        raise ValueError(f"{where} has {key}={item.get(key)!r}; it must be one of {', '.join(map(str, values))}")
    return item[key]
