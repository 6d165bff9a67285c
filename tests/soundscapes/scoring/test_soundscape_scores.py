"""Comparison of facts: what counts as right, and the correction for chance."""

from __future__ import annotations

import numpy as np
import pytest

from bagpiper.soundscapes.corpus.facts import scene_to_json
from bagpiper.soundscapes.corpus.sampling import sample_scene
from bagpiper.soundscapes.scoring.score import FACT_KINDS, score, score_many

BELL = {"kind": "bell", "loudness": "loud", "pitch": "C4"}
CLAPS = {"kind": "claps", "loudness": "soft", "count": 3}
RAIN = {"kind": "rain", "loudness": "soft"}


def _facts(arrangement: str, *events: dict) -> dict:
    return {"num_events": len(events), "arrangement": arrangement, "background": "hum", "events": list(events)}


def _truths(count: int, seed: int = 0, variety: str = "long") -> list[dict]:
    rng = np.random.default_rng(seed)
    return [scene_to_json(sample_scene(rng, variety)) for _ in range(count)]


def test_the_truth_itself_is_all_right() -> None:
    for truth in _truths(200):
        assert all(right == total for right, total in score(truth, truth).values())


def test_nothing_found_is_all_wrong() -> None:
    for truth in _truths(50):
        assert all(right == 0 for right, _ in score(truth, {}).values())
        assert all(right == 0 for right, _ in score(truth, {"events": []}).values())


def test_swapped_sequence_loses_order_but_not_the_rest_of_one_event() -> None:
    tally = score(_facts("sequence", BELL, CLAPS), _facts("sequence", CLAPS, BELL))
    assert tally["order"] == (0, 1)
    assert tally["overlap"] == (1, 1)
    assert tally["kind"] == (1, 2)


def test_swapped_overlap_is_right() -> None:
    truth, found = _facts("overlap", RAIN, CLAPS), _facts("overlap", CLAPS, RAIN)
    assert all(right == total for right, total in score(truth, found).values())


def test_a_missing_first_event_does_not_spoil_the_second() -> None:
    tally = score(_facts("sequence", BELL, CLAPS), _facts("single", CLAPS))
    assert tally["kind"] == (1, 2)
    assert tally["count"] == (1, 1)
    assert tally["pitch"] == (0, 1)
    assert tally["num_events"] == tally["overlap"] == tally["order"] == (0, 1)


def test_an_event_too_many_shows_in_the_number_only() -> None:
    tally = score(_facts("single", BELL), _facts("sequence", CLAPS, BELL))
    assert {fact for fact, (right, total) in tally.items() if right < total} == {"num_events"}


def test_many_scores_of_the_truth_and_of_shuffled_truths() -> None:
    truths = _truths(300)
    whole = score_many(truths, truths)
    assert whole["value"] == whole["score"] == 1.0
    assert 0.1 < whole["chance"] < 0.5
    assert set(whole["facts"]) == set(FACT_KINDS) - {"words"}  # without speech
    shuffled = score_many(truths, [truths[index] for index in np.random.default_rng(1).permutation(300)])
    assert shuffled["score"] < 0.03
    assert score_many(truths, truths) == whole


def test_a_constant_answer_scores_nothing() -> None:
    truths = _truths(100)
    result = score_many(truths, [truths[0]] * 100)
    assert result["value"] == pytest.approx(result["chance"])
    assert result["score"] == 0.0


def test_wrong_numbers_of_clips_are_refused() -> None:
    truths = _truths(3)
    with pytest.raises(ValueError, match="3 true and 2 found"):
        score_many(truths, truths[:2])
    with pytest.raises(ValueError, match="at least two clips"):
        score_many(truths[:1], truths[:1])
