"""Spoken sentences found in audio and in captions."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from fake_voice import FakeVoice
from hypothesis import given, settings
from hypothesis import strategies as st
from mel_round_trip import round_trip

from bagpiper.codecs.configs import RvqConfig
from bagpiper.codecs.rvq import RvqCodec
from bagpiper.soundscapes.corpus.captions import write_caption
from bagpiper.soundscapes.corpus.facts import SENTENCES, Event, Scene, scene_to_json
from bagpiper.soundscapes.corpus.render import render_scene
from bagpiper.soundscapes.corpus.sampling import sample_scene, sample_scene_for
from bagpiper.soundscapes.corpus.voice import HibariVoice, Recordings
from bagpiper.soundscapes.scoring.analyse import analyse_audio
from bagpiper.soundscapes.scoring.parse import parse_caption
from bagpiper.soundscapes.scoring.score import FACT_KINDS, score, score_many
from bagpiper.soundscapes.scoring.words import sentences_of

VOICES = [
    "fake",
    pytest.param(
        "real",
        marks=pytest.mark.skipif(importlib.util.find_spec("hibari") is None, reason="needs the extra `speech`"),
    ),
]


@pytest.fixture(scope="module")
def all_recordings() -> dict[str, Recordings]:
    return {}


@pytest.fixture
def recordings(request: pytest.FixtureRequest, all_recordings: dict[str, Recordings]) -> Recordings:
    name = getattr(request, "param", "fake")
    if name not in all_recordings:
        all_recordings[name] = Recordings.of(FakeVoice() if name == "fake" else HibariVoice())
    return all_recordings[name]


def _spoken_scenes(count: int, seed: int, held_out: bool = True) -> list[Scene]:
    """Scenes of which two in three or more hold a voice."""
    rng = np.random.default_rng(seed)
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = sample_scene_for(rng, "quick", held_out, speech=True)
        if len(scenes) % 3 == 0 or any(event.kind == "voice" for event in scene.events):
            scenes.append(scene)
    return scenes


def _clips(scenes: list[Scene], recordings: Recordings, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [render_scene(scene, rng, recordings) for scene in scenes]


@pytest.mark.parametrize("recordings", VOICES, indirect=True)
def test_true_audio_and_shuffled_audio(recordings: Recordings) -> None:
    scenes = _spoken_scenes(60, seed=21)
    founds = [analyse_audio(clip, 16_000, recordings) for clip in _clips(scenes, recordings)]
    truths = [scene_to_json(scene) for scene in scenes]
    result = score_many(truths, founds)
    assert result["facts"]["words"]["value"] >= 0.97
    assert min(fact["value"] for fact in result["facts"].values()) >= 0.95
    assert result["value"] >= 0.97
    order = np.random.default_rng(0).permutation(len(founds))
    shuffled = score_many(truths, [founds[index] for index in order])
    assert shuffled["score"] < 0.04
    assert shuffled["facts"]["words"]["value"] < 0.3


@pytest.mark.parametrize("recordings", VOICES[1:], indirect=True)
def test_audio_through_the_offline_codec(recordings: Recordings) -> None:
    fitted = _clips(_spoken_scenes(150, seed=22, held_out=False), recordings)
    codec = RvqCodec(RvqConfig(num_codebooks=4, codebook_size=256, hop=640)).fit(fitted, seed=0)
    scenes = [scene for scene in _spoken_scenes(24, seed=23) if any(event.kind == "voice" for event in scene.events)]
    waves = [torch.from_numpy(clip) for clip in _clips(scenes, recordings)]
    founds = [analyse_audio(wave.numpy(), 16_000, recordings) for wave in codec.decode(codec.encode(waves))]
    result = score_many([scene_to_json(scene) for scene in scenes], founds)
    assert result["facts"]["words"]["value"] >= 0.9
    assert result["value"] >= 0.93


@pytest.mark.parametrize("recordings", VOICES, indirect=True)
def test_audio_whose_every_value_is_off(recordings: Recordings) -> None:
    scenes = [Scene((Event("voice", "loud", words=words),), "single", "hum") for words in SENTENCES[::2]]
    for scene, clip in zip(scenes, _clips(scenes, recordings), strict=True):
        heard = round_trip(clip, hold=4, noise_db=3.0, seed=1)
        assert analyse_audio(heard, 16_000, recordings)["events"] == scene_to_json(scene)["events"]


def test_speech_is_heard_only_where_it_may_occur(recordings: Recordings) -> None:
    (clip,) = _clips([Scene((Event("voice", "loud", words="pass the salt"),), "single", "silence")], recordings)
    assert analyse_audio(clip, 16_000)["events"][0]["kind"] != "voice"


def test_without_speech_nothing_is_measured_otherwise(recordings: Recordings) -> None:
    """Scenes without a voice, measured with ears for speech and without."""
    rng = np.random.default_rng(24)
    for _ in range(60):
        clip = render_scene(sample_scene(rng, "long"), rng)
        assert analyse_audio(clip, 16_000, recordings) == analyse_audio(clip, 16_000)


@pytest.mark.parametrize("count", [0, 1, 700, 30_000])
def test_garbage_holds_no_sentence(recordings: Recordings, count: int) -> None:
    rng = np.random.default_rng(count)
    for wave in (rng.standard_normal(count), np.zeros(count), np.full(count, np.nan), np.ones(count)):
        with np.errstate(all="raise", under="ignore"):
            found = analyse_audio(wave.astype(np.float32), 16_000, recordings)
        assert all(event["kind"] != "voice" for event in found["events"])


def test_part_of_a_sentence_is_not_the_sentence(recordings: Recordings) -> None:
    for words in SENTENCES:
        samples = recordings.samples[words, 0]
        clip = np.concatenate([np.zeros(3000), samples[: len(samples) // 3], np.zeros(3000)])
        assert "words" not in analyse_audio(0.3 * clip, 16_000, recordings)["events"][0]


def test_recordings_are_analysed_once(recordings: Recordings) -> None:
    assert sentences_of(recordings) is sentences_of(recordings)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["quick", "long"]))
def test_true_captions_give_all_facts(seed: int, variety: str) -> None:
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng, variety, speech=True)
    caption = write_caption(scene, rng, variety)
    assert parse_caption(caption) == scene_to_json(scene), caption


@pytest.mark.parametrize(
    ("text", "events"),
    [
        (
            'a human voice human saying open the the "welcome home then a soft bell at C5',
            [{"kind": "voice", "words": "welcome home"}, {"kind": "bell", "loudness": "soft", "pitch": "C5"}],
        ),
        ("LOUD SPEAKING VOICE PASS THE SALT", [{"kind": "voice", "loudness": "loud", "words": "pass the salt"}]),
        ('a quiet human voice that says "open the morning"', [{"kind": "voice", "loudness": "soft"}]),
        ('a loud bell at C5 saying "good morning"', [{"kind": "bell", "loudness": "loud", "pitch": "C5"}]),
        ('two claps, a human voice saying "good', [{"kind": "claps", "count": 2}, {"kind": "voice"}]),
    ],
)
def test_garbled_captions_give_what_they_hold(text: str, events: list[dict]) -> None:
    assert parse_caption(text)["events"] == events


def test_words_are_scored() -> None:
    truth = scene_to_json(Scene((Event("voice", "soft", words="call me later"),), "single", "hum"))
    other = scene_to_json(Scene((Event("voice", "soft", words="open the door"),), "single", "hum"))
    assert "words" in FACT_KINDS
    assert score(truth, truth)["words"] == (1, 1)
    tally = score(truth, other)
    assert {fact for fact, (right, total) in tally.items() if right < total} == {"words"}
