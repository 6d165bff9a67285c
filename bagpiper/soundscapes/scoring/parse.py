"""Facts found in a caption, whoever wrote it: any text is accepted, and what cannot be found is left out."""

from __future__ import annotations

import re
from typing import Any

from bagpiper.soundscapes.corpus import lexicon
from bagpiper.soundscapes.corpus.facts import KINDS, PITCHES, SENTENCES

_NOUN_KINDS = {form: kind for kind, nouns in lexicon.NOUNS.items() for pair in nouns for form in pair}
_NOUN = re.compile(r"\b(" + "|".join(sorted(map(re.escape, _NOUN_KINDS), key=len, reverse=True)) + r")\b")
# What stands between the words about one event and those about the next.
_CONNECTOR = re.compile(
    r"followed by|and finally|on top of|both over|\b(?:one|two|three) sounds?\b|\b(?:while|first|then|over)\b|:"
)
_BED_AFTER = re.compile(r"(?:on top of|over)\s*$")
_OVERLAP_CUES = re.compile(r"\b(?:overlap|at once|on top of|while|over)\b")
_NUM_EVENTS = re.compile(r"\b(one|two|three|four)\s+sounds?\b")
_PITCH = re.compile(r"\b([a-g][0-9])\b")
_NUMBER = re.compile(r"\b(" + "|".join(lexicon.NUMBERS.values()) + r")\b")
_NUMBER_VALUES = {word: number for number, word in lexicon.NUMBERS.items()}


def _cues(words: dict[str, tuple[str, ...]]) -> list[tuple[str, re.Pattern[str]]]:
    """Returns, per value, the pattern that gives it away."""
    return [(value, re.compile(r"\b(?:" + "|".join(options) + r")\b")) for value, options in words.items()]


_EVENT_CUES = {
    "loudness": _cues(lexicon.LOUDNESS),
    "length": _cues(lexicon.LENGTH),
    "quality": _cues(lexicon.QUALITY),
    "direction": _cues(lexicon.DIRECTION),
}
# Quotation marks and what stands before them need not be right.
_WORDS_CUES = _cues({sentence: (sentence,) for sentence in SENTENCES})
_BACKGROUND_CUES = _cues(lexicon.BACKGROUND_CUES)


def parse_caption(text: str) -> dict[str, Any]:
    """Finds the facts that a caption states.

    Args:
        text: Any text; generated prose may be broken off, repeat itself or hold nothing of use.

    Returns:
        The same form as `scene_to_json`, without the facts that were not found; "events" is always there, in an
        overlap with the bed first.
    """
    text = " ".join(text.lower().split())
    found: dict[str, Any] = {"events": []}
    background = _first_value(_BACKGROUND_CUES, text)
    if background is not None:
        found["background"] = background
    said = _NUM_EVENTS.search(text)
    sentences = [part for part in text.split(".") if _NOUN.search(part)]
    # One sentence tells of the sounds; where a model rambles on, its first one counts.
    sentence = sentences[0] if sentences else ""
    clauses, bed = _clauses(sentence)
    found["events"] = [_parse_event(kind, clause) for kind, clause in clauses]
    if bed is not None and bed < len(clauses):
        found["events"].insert(0, found["events"].pop(bed))
    if said:
        found["num_events"] = _NUMBER_VALUES[said.group(1)]
    elif clauses:
        found["num_events"] = len(clauses)
    if len(clauses) == 1:
        found["arrangement"] = "single"
    elif clauses:
        found["arrangement"] = "overlap" if _OVERLAP_CUES.search(sentence) else "sequence"
    return found


def _clauses(sentence: str) -> tuple[list[tuple[str, str]], int | None]:
    """Splits a sentence at its nouns and the connectors between them.

    Returns:
        Pairs of kind and clause in order, and the index of the clause that is the bed of an overlap if one is.
    """
    nouns = list(_NOUN.finditer(sentence))
    clauses: list[tuple[str, str]] = []
    bed = None
    start = 0
    for index, noun in enumerate(nouns):
        if index == 0:
            connectors = list(_CONNECTOR.finditer(sentence, 0, noun.start()))
            start = connectors[-1].end() if connectors else 0
            if connectors and connectors[-1].group() == "while":
                bed = 0
        stop = nouns[index + 1].start() if index + 1 < len(nouns) else len(sentence)
        between = list(_CONNECTOR.finditer(sentence, noun.end(), stop))
        cut = between[-1] if between and index + 1 < len(nouns) else None
        # Without a connector the words after the noun still belong to it, up to the last comma.
        end = (
            cut.start() if cut else (stop if index + 1 == len(nouns) else max(noun.end(), sentence.rfind(",", 0, stop)))
        )
        clauses.append((_NOUN_KINDS[noun.group()], sentence[start:end]))
        start = cut.end() if cut else end
        if cut and _BED_AFTER.search(sentence[: cut.end()]):
            bed = index + 1
    return clauses, bed


def _parse_event(kind: str, clause: str) -> dict[str, Any]:
    """Finds the facts of one event in the words about it."""
    event: dict[str, Any] = {"kind": kind}
    for fact, cues in _EVENT_CUES.items():
        value = _first_value(cues, clause)
        if value is not None:
            event[fact] = value
    pitch = _PITCH.search(clause)
    if pitch and pitch.group(1).upper() in PITCHES:
        event["pitch"] = pitch.group(1).upper()
    number = _NUMBER.search(clause)
    if number and KINDS[kind].counts:
        event["count"] = _NUMBER_VALUES[number.group(1)]
    words = _first_value(_WORDS_CUES, clause) if KINDS[kind].spoken else None
    if words is not None:
        event["words"] = words
    return event


def _first_value(cues: list[tuple[str, re.Pattern[str]]], text: str) -> str | None:
    """Returns the value whose cue stands first in the text, or None."""
    hits = [(match.start(), value) for value, cue in cues if (match := cue.search(text))]
    return min(hits)[1] if hits else None
