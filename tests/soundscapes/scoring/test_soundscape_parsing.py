"""Facts parsed from captions: all of them from true captions, whatever can be found from other text."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bagpiper.soundscapes.corpus.captions import write_caption
from bagpiper.soundscapes.corpus.facts import scene_to_json
from bagpiper.soundscapes.corpus.sampling import sample_scene
from bagpiper.soundscapes.scoring.parse import parse_caption
from bagpiper.soundscapes.scoring.score import score, score_many


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["quick", "long"]))
def test_true_captions_give_all_facts(seed: int, variety: str) -> None:
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng, variety)
    caption = write_caption(scene, rng, variety)
    assert parse_caption(caption) == scene_to_json(scene), caption


@settings(max_examples=80, deadline=None)
@given(st.text(max_size=300))
def test_any_text_is_accepted(text: str) -> None:
    found = parse_caption(text)
    truth = scene_to_json(sample_scene(np.random.default_rng(0)))
    assert all(0 <= right <= total for right, total in score(truth, found).values())


def test_broken_off_captions_give_what_they_hold() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        scene = sample_scene(rng, "long")
        caption = write_caption(scene, rng, "long")
        for stop in range(0, len(caption), 7):
            found = parse_caption(caption[:stop])
            assert len(found["events"]) <= len(scene.events)


def test_shuffled_words_and_repetition_do_not_raise() -> None:
    rng = np.random.default_rng(0)
    words = [word for _ in range(20) for word in write_caption(sample_scene(rng), rng).split()]
    for _ in range(50):
        parse_caption(" ".join(rng.permutation(words)))
    assert parse_caption(" ".join(["over a bell"] * 2000))["events"][0]["kind"] == "bell"


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("a loud bell at C5 then three soft claps", ["bell", "claps"]),
        ("LOUD BELL", ["bell"]),
        ("two claps over a soft rain shower", ["rain", "claps"]),
        ("nothing to be heard", []),
        ("", []),
    ],
)
def test_free_wording(text: str, kinds: list[str]) -> None:
    assert [event["kind"] for event in parse_caption(text)["events"]] == kinds


def test_shuffled_captions_score_chance() -> None:
    rng = np.random.default_rng(3)
    scenes = [sample_scene(rng) for _ in range(400)]
    founds = [parse_caption(write_caption(scene, rng)) for scene in scenes]
    truths = [scene_to_json(scene) for scene in scenes]
    assert score_many(truths, founds)["value"] >= 0.995
    assert score_many(truths, [founds[index] for index in rng.permutation(400)])["score"] < 0.03
