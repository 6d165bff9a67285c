"""Facts measured in audio: true audio, shuffled audio, audio through a lossy codec, and audio that is none."""

from __future__ import annotations

import time

import numpy as np
import pytest
from mel_round_trip import round_trip

from bagpiper.soundscapes.corpus.facts import scene_to_json
from bagpiper.soundscapes.corpus.render import render_scene
from bagpiper.soundscapes.corpus.sampling import sample_scene_for
from bagpiper.soundscapes.scoring.analyse import analyse_audio
from bagpiper.soundscapes.scoring.reference import reference
from bagpiper.soundscapes.scoring.score import score_many


def _held_out(count: int, variety: str, seed: int) -> tuple[list[dict], list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    scenes = [sample_scene_for(rng, variety, held_out=True) for _ in range(count)]
    return [scene_to_json(scene) for scene in scenes], [render_scene(scene, rng) for scene in scenes]


def test_true_audio_and_shuffled_audio() -> None:
    truths, clips = _held_out(300, "quick", seed=11)
    founds = [analyse_audio(clip, 16_000) for clip in clips]
    result = score_many(truths, founds)
    assert result["value"] >= 0.97
    assert min(fact["value"] for fact in result["facts"].values()) >= 0.95
    order = np.random.default_rng(0).permutation(len(founds))
    assert score_many(truths, [founds[index] for index in order])["score"] < 0.04


def test_true_audio_of_the_long_variety() -> None:
    truths, clips = _held_out(80, "long", seed=12)
    assert score_many(truths, [analyse_audio(clip, 16_000) for clip in clips])["value"] >= 0.97


# Measured on 60 clips: 100 % of the facts, also where four frames become one and every log-mel value is 3 dB off.
@pytest.mark.parametrize(("hold", "noise_db"), [(1, 0.0), (4, 3.0)])
def test_audio_through_a_lossy_codec(hold: int, noise_db: float) -> None:
    truths, clips = _held_out(14, "quick", seed=13)
    heard = [round_trip(clip, hold=hold, noise_db=noise_db, seed=index) for index, clip in enumerate(clips)]
    assert score_many(truths, [analyse_audio(clip, 16_000) for clip in heard])["value"] >= 0.93


def test_other_sample_rates() -> None:
    truths, clips = _held_out(20, "quick", seed=14)
    founds = []
    for clip in clips:
        spectrum = np.fft.rfft(clip)
        wider = np.concatenate([spectrum, np.zeros(2 * len(clip) - len(clip) // 2)])
        founds.append(analyse_audio(np.fft.irfft(wider, 3 * len(clip)) * 3, 48_000))
    assert score_many(truths, founds)["value"] >= 0.97


@pytest.mark.parametrize("count", [0, 1, 100, 511, 1024, 30_000])
def test_silence_has_no_events(count: int) -> None:
    found = analyse_audio(np.zeros(count, dtype=np.float32), 16_000)
    assert found == {"num_events": 0, "background": "silence", "events": []}


@pytest.mark.parametrize("count", [1, 7, 600, 2000, 40_000])
def test_garbage_is_measured_without_complaint(count: int) -> None:
    rng = np.random.default_rng(count)
    for wave in (
        rng.standard_normal(count),
        rng.standard_normal(count) * 1e6,
        np.full(count, np.nan),
        np.where(rng.random(count) < 0.5, np.inf, 0.1),
        np.sign(rng.standard_normal(count)),
        np.ones(count),
    ):
        with np.errstate(all="raise", under="ignore"):
            found = analyse_audio(wave.astype(np.float32), 16_000)
        assert found["num_events"] == len(found["events"])


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 100\)"):
        analyse_audio(np.zeros((2, 100)), 16_000)
    with pytest.raises(ValueError, match="sample rate is 0"):
        analyse_audio(np.zeros(100), 0)


def test_the_reference_is_fitted_once() -> None:
    reference()
    start = time.perf_counter()
    assert reference() is reference()
    assert time.perf_counter() - start < 0.01
