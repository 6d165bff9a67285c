"""Captions: varied wording, nothing left out."""

from __future__ import annotations

import numpy as np
import pytest

from bagpiper.soundscapes.corpus.captions import write_caption
from bagpiper.soundscapes.corpus.sampling import sample_scene


@pytest.mark.parametrize("variety", ["quick", "long"])
def test_captions_are_varied_and_of_the_promised_length(variety: str) -> None:
    rng = np.random.default_rng(0)
    captions = [write_caption(sample_scene(rng, variety), rng, variety) for _ in range(1000)]
    words = [len(caption.split()) for caption in captions]
    assert 12 <= np.mean(words) <= 40
    assert min(words) >= 7
    assert max(words) <= 60
    assert len(set(captions)) > 990
    # A small vocabulary lets a small model learn it within minutes.
    assert len({word.strip(".,:").lower() for caption in captions for word in caption.split()}) < 200


def test_one_scene_has_many_wordings() -> None:
    scene = sample_scene(np.random.default_rng(0))
    captions = {write_caption(scene, np.random.default_rng(seed)) for seed in range(50)}
    assert len(captions) > 25
    assert write_caption(scene, np.random.default_rng(7)) == write_caption(scene, np.random.default_rng(7))
