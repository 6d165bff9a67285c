"""Comparing found facts with the truth, and correcting the share that is right for chance."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import numpy as np

from bagpiper.soundscapes.corpus.facts import EVENT_FACTS

Facts = dict[str, Any]
Tally = dict[str, tuple[int, int]]

# "overlap" asks of clips with several sounds whether they sound at once; "order" asks of sequences which came first.
FACT_KINDS = (
    "kind",
    "pitch",
    "count",
    "loudness",
    "length",
    "quality",
    "direction",
    "words",
    "background",
    "num_events",
    "overlap",
    "order",
)
_MOST_EVENTS = 4


def score(truth: Facts, found: Facts) -> Tally:
    """Compares the facts of one clip.

    Events of a sequence are matched in order of time; events of an overlap as suits the found facts best. Whatever
    the truth has and the found facts lack is wrong; what they have in excess shows in the number of events only.

    Args:
        truth: The form of `scene_to_json`.
        found: The same form, possibly without some facts.

    Returns:
        Per kind of fact that the truth has: how many are right, and how many there are.
    """
    true_events = truth["events"]
    found_events = [event for event in found.get("events", []) if isinstance(event, dict)][:_MOST_EVENTS]
    arrangement = found.get("arrangement")
    in_order = truth["arrangement"] == "sequence"
    matched = _best_match(true_events, found_events, in_order)
    tally: dict[str, list[int]] = {}
    for event, other in zip(true_events, matched, strict=True):
        for fact in EVENT_FACTS:
            if fact in event:
                _count(tally, fact, other is not None and other.get(fact) == event[fact])
    _count(tally, "background", found.get("background") == truth["background"])
    _count(tally, "num_events", found.get("num_events", len(found_events)) == truth["num_events"])
    if len(true_events) > 1:
        _count(tally, "overlap", arrangement in ("sequence", "overlap") and arrangement == truth["arrangement"])
    if in_order:
        _count(tally, "order", arrangement == "sequence" and _order_is_right(true_events, found_events))
    return {fact: (right, total) for fact, (right, total) in tally.items()}


def score_many(truths: Sequence[Facts], founds: Sequence[Facts], num_shuffles: int = 5) -> dict[str, Any]:
    """Scores many clips, corrected for chance.

    Args:
        truths: True facts, one per clip.
        founds: Found facts of the same clips.
        num_shuffles: Over how many ways of pairing every clip with another one chance is averaged.

    Returns:
        "value" (share of all facts right), "chance" (the same with found facts of other clips), "score"
        ((value - chance) / (1 - chance) within 0..1), and "facts": the same three per kind of fact.
    """
    if len(truths) != len(founds):
        raise ValueError(f"{len(truths)} true and {len(founds)} found facts were given; pass one found item per clip")
    if len(truths) < 2:
        raise ValueError("chance needs at least two clips to pair with one another; pass more clips")
    value = _total(truths, founds)
    chance: dict[str, np.ndarray] = {}
    for shift in _shifts(len(truths), num_shuffles):
        order = _derangement(len(truths), shift)
        for fact, counts in _total(truths, [founds[index] for index in order]).items():
            chance[fact] = chance.get(fact, np.zeros(2)) + counts
    result: dict[str, Any] = _corrected(sum(value.values()), sum(chance.values()))
    result["facts"] = {fact: _corrected(value[fact], chance[fact]) for fact in FACT_KINDS if fact in value}
    return result


def _best_match(true_events: list[Facts], found_events: list[Facts], in_order: bool) -> list[Facts | None]:
    """Gives each true event the found event that makes most facts right, each found event at most once.

    A right kind weighs as much as all the other facts of an event together, so that events match by what they are.
    """
    candidates: list[Facts | None] = [*found_events, *[None] * len(true_events)]
    best: tuple[int, list[Facts | None]] = (-1, [None] * len(true_events))
    for chosen in permutations(range(len(candidates)), len(true_events)):
        real = [index for index in chosen if index < len(found_events)]
        if in_order and real != sorted(real):
            continue
        events = [candidates[index] for index in chosen]
        points = sum(_points(true, other) for true, other in zip(true_events, events, strict=True))
        if points > best[0]:
            best = (points, events)
    return best[1]


def _points(true: Facts, found: Facts | None) -> int:
    """Says how well a found event fits a true one."""
    if found is None:
        return 0
    return sum((6 if fact == "kind" else 1) for fact in EVENT_FACTS if fact in true and found.get(fact) == true[fact])


def _order_is_right(true_events: list[Facts], found_events: list[Facts]) -> bool:
    """Says whether no other order of the found events fits the true sequence better, and this one fits in kind."""
    if len(found_events) != len(true_events):
        return False
    points = [
        sum(_points(true, other) for true, other in zip(true_events, order, strict=True))
        for order in permutations(found_events)
    ]
    some_kind = any(true["kind"] == other.get("kind") for true, other in zip(true_events, found_events, strict=True))
    return some_kind and points[0] == max(points)


def _count(tally: dict[str, list[int]], fact: str, right: bool) -> None:
    """Adds one fact to a tally."""
    entry = tally.setdefault(fact, [0, 0])
    entry[0] += int(right)
    entry[1] += 1


def _total(truths: Sequence[Facts], founds: Sequence[Facts]) -> dict[str, np.ndarray]:
    """Sums the tallies of many clips: per kind of fact [2], right and all."""
    total: dict[str, np.ndarray] = {}
    for truth, found in zip(truths, founds, strict=True):
        for fact, counts in score(truth, found).items():
            total[fact] = total.get(fact, np.zeros(2)) + counts
    return total


def _shifts(count: int, num_shuffles: int) -> list[int]:
    """Returns different rotations of the shuffled clips, none of which leaves a clip in place."""
    return sorted({1 + (index * (count - 1)) // num_shuffles for index in range(min(num_shuffles, count - 1))})


def _derangement(count: int, shift: int) -> np.ndarray:
    """Returns an order [count] that pairs no clip with itself: a rotation of a fixed random order."""
    order = np.random.default_rng(0).permutation(count)
    paired = np.empty(count, dtype=int)
    paired[order] = np.roll(order, shift)
    return paired


def _corrected(value: Any, chance: Any) -> dict[str, float]:
    """Turns counts of right and all into shares and the score that is corrected for chance."""
    share, by_chance = float(value[0] / value[1]), float(chance[0] / chance[1])
    # Where all clips share a fact, chance may be 1 and nothing can be better than it.
    corrected = (share - by_chance) / (1.0 - by_chance) if by_chance < 1.0 else share
    return {"value": share, "chance": by_chance, "score": min(max(corrected, 0.0), 1.0)}
