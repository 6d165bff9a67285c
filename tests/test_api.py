from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from fake_model import make_model

import bagpiper
from bagpiper import api
from bagpiper.api import Pipeline
from bagpiper.errors import UserError
from bagpiper.language.conversation import Clip, Message
from bagpiper.recipe.settings import DecodeSettings, GenerationSettings

RATE = 16000


@pytest.fixture(scope="module")
def piper() -> Pipeline:
    generation = GenerationSettings(
        text=DecodeSettings(temperature=1.0, max_rows=8, min_rows=4),
        audio=DecodeSettings(temperature=1.0, max_rows=12, min_rows=4, cfg=2.0),
    )
    return Pipeline(make_model(), generation)


@pytest.fixture(scope="module")
def tones() -> list[np.ndarray]:
    return [np.sin(np.arange(length) * 0.3).astype(np.float32) * 0.2 for length in (9000, 4000, 12000)]


def test_clips_are_described_alone_or_together(piper: Pipeline, tones: list[np.ndarray]) -> None:
    together = piper.describe([(tone, RATE) for tone in tones])
    assert [piper.describe((tone, RATE)) for tone in tones] == together
    assert all(together)
    assert piper.describe((tones[0], RATE), seed=7) != together[0]


def test_a_clip_is_a_file_samples_or_a_clip(piper: Pipeline, tones: list[np.ndarray], tmp_path: Path) -> None:
    path = tmp_path / "tone.wav"
    soundfile.write(path, tones[0], RATE, subtype="FLOAT")
    texts = {
        piper.describe(clip) for clip in (path, str(path), (tones[0], RATE), Clip(samples=tones[0], sample_rate=RATE))
    }
    assert len(texts) == 1
    assert piper.ask(path, "what is it?") not in texts


def test_samples_of_every_type_are_heard_alike(piper: Pipeline, tones: list[np.ndarray], tmp_path: Path) -> None:
    """int16 samples were cast: the model heard them 32,768 times too loud, and wrote nonsense."""
    path = tmp_path / "tone.wav"
    soundfile.write(path, tones[0], RATE, subtype="PCM_16")
    expected = piper.describe(path, temperature=0)
    for dtype in ("int16", "int32", "float32", "float64"):
        samples, rate = soundfile.read(path, dtype=dtype)
        for given in (samples, torch.from_numpy(samples), samples[None], np.stack([samples, 0 * samples], axis=1)):
            assert piper.describe((given, rate), temperature=0) == expected
            assert piper.describe(Clip(samples=given, sample_rate=rate), temperature=0) == expected
    question = Message("user", "text", "what is it?")
    integers = Message("user", "audio", Clip(samples=soundfile.read(path, dtype="int16")[0], sample_rate=RATE))
    (answer,) = piper.answer([[integers, question]], ["text"], temperature=0)
    assert answer.text == piper.ask(path, "what is it?", temperature=0)


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        ((np.zeros(100, dtype=np.int64), RATE), "type int64 have no known scale"),
        ((RATE, np.zeros(100)), r"\(samples, sample_rate\), in this order"),
        ((np.zeros(100), 0), "sample rate must be a positive whole number, got 0"),
        ((np.zeros(100), np.zeros(100)), "sample rate must be a positive whole number, got .array"),
        (np.zeros((2, 100)), r"a clip is a file or \(samples, sample_rate\), got .array"),
        ({"array": np.zeros(100), "sampling_rate": RATE}, r"a clip is a file or \(samples, sample_rate\)"),
        ((np.full(9000, 12000.0), RATE), "look like integers kept as floats"),
        (Clip(samples=np.full(9000, 12000.0), sample_rate=RATE), "look like integers kept as floats"),
        (Clip(samples=np.zeros(9000)), "sample rate must be a positive whole number, got None"),
        (Clip(), "samples of shape"),
    ],
)
def test_what_is_no_clip_is_refused_in_one_line(piper: Pipeline, clip: Any, message: str) -> None:
    for ask in (lambda: piper.describe(clip), lambda: piper.ask(clip, "what?")):
        with pytest.raises(UserError, match=message) as caught:
            ask()
        assert "\n" not in str(caught.value)


def test_a_silent_first_channel_is_told_and_another_can_be_chosen(
    piper: Pipeline, tones: list[np.ndarray], tmp_path: Path
) -> None:
    """`describe` of a file whose sound is on the right invented a caption."""
    right = tmp_path / "right.wav"
    soundfile.write(right, np.stack([0 * tones[0], tones[0]], axis=1), RATE, subtype="FLOAT")
    expected = piper.describe((tones[0], RATE), temperature=0, max_rows=100)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*first channel")
        assert piper.describe(right, temperature=0, max_rows=100, channel="loudest") == expected
        assert piper.ask(right, "what?", channel="loudest") == piper.ask((tones[0], RATE), "what?")
        other = Pipeline(piper.model, replace(piper.generation, channel="loudest"))
        assert other.describe(right, temperature=0, max_rows=100) == expected
    for heard in (lambda: piper.describe([right, str(right)]), lambda: piper.ask(right, "what?", channel="first")):
        with pytest.warns(UserWarning) as told:
            heard()
        assert len([one for one in told if "right.wav: the first channel is silent" in str(one.message)]) == 1
    with pytest.raises(UserError, match="channel 'left'; allowed: first, mean, loudest"):
        piper.describe(right, channel="left")


def test_captions_are_rendered_alone_or_together(piper: Pipeline) -> None:
    captions = ["a bell", "rain and wind", "x"]
    together = piper.render(captions)
    for caption, (samples, rate) in zip(captions, together, strict=True):
        alone, its_rate = piper.render(caption)
        assert rate == its_rate == piper.sample_rate == RATE
        assert samples.dtype == np.float32
        assert len(samples) >= 640
        assert np.array_equal(samples, alone)


def test_models_of_the_sft_stage_write_before_they_render(piper: Pipeline) -> None:
    thinker = Pipeline(piper.model, piper.generation, stage="sft")
    assert np.array_equal(thinker.render("a bell", think=False)[0], piper.render("a bell")[0])
    assert np.array_equal(piper.render("a bell", think=True)[0], thinker.render("a bell")[0])
    assert not np.array_equal(thinker.render("a bell")[0], piper.render("a bell")[0])


def test_options_win_over_the_model(piper: Pipeline, tones: list[np.ndarray]) -> None:
    greedy = {piper.describe((tones[0], RATE), temperature=0, seed=seed) for seed in range(3)}
    assert len(greedy) == 1
    assert piper.describe((tones[0], RATE), top_k=1) in greedy
    assert len(piper.describe((tones[0], RATE), max_rows=5)) <= 5
    assert piper.describe((tones[0], RATE), temperature=None, top_k=None) == piper.describe((tones[0], RATE))
    unguided = piper.render("a bell", cfg=1.0)[0]
    assert not np.array_equal(unguided, piper.render("a bell")[0])
    assert len(piper.render("a bell", max_seconds=0.09)[0]) == 2 * 640


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"temprature": 0.5},
            "unknown option temprature; allowed: temperature, top_k, cfg, max_rows, max_seconds, seed",
        ),
        ({"max_seconds": 0.01}, "0.01 s is shorter than one frame"),
        ({"temperature": -1.0}, "must not be negative"),
    ],
)
def test_options_that_cannot_work(piper: Pipeline, options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        piper.render("a bell", **options)


def test_max_seconds_bounds_sounds_only(piper: Pipeline, tones: list[np.ndarray]) -> None:
    with pytest.raises(UserError, match="unknown option max_seconds"):
        piper.describe((tones[0], RATE), max_seconds=1.0)


def test_an_answer_that_was_cut_says_so(piper: Pipeline, tones: list[np.ndarray]) -> None:
    """Nothing is cut in silence."""
    with pytest.warns(UserWarning, match="audio of 2 of 2 answers stopped at the limit of 3 rows.* max_seconds"):
        piper.render(["a bell", "rain"], max_rows=3)  # the model may not end before row 4
    with pytest.warns(UserWarning, match="text of 1 of 1 answers stopped at the limit of 3 rows"):
        piper.describe((tones[0], RATE), max_rows=3)


def test_nothing_is_loaded_for_a_device_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="device 'abacus' is not here; present: auto,.* cpu"):
        api.load(tmp_path, device="abacus")
    with pytest.raises(UserError, match="holds no model yet"):
        api.load(tmp_path, device="cpu")


def test_the_package_offers_the_same_names() -> None:
    for name in ("load", "describe", "render", "ask", "evaluate", "train"):
        assert getattr(bagpiper, name) is getattr(api, name)


def test_train_passes_overrides_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[object] = []

    class Finished:
        folder = tmp_path

    def run(recipe: object, callbacks: object) -> Finished:
        seen.append(recipe)
        return Finished()

    monkeypatch.setattr("bagpiper.run.run", run)
    overrides = {"trainer.max_steps": 3, "optimizer.lr": 1e-5, "eval.at_end": False}
    assert api.train("quickstart", run_dir=tmp_path, seed=5, **overrides) == tmp_path
    (recipe,) = seen
    assert (recipe.run_dir, recipe.seed, recipe.trainer.max_steps) == (str(tmp_path), 5, 3)  # type: ignore[attr-defined]
    assert recipe.optimizer.lr == 1e-5  # type: ignore[attr-defined]


def test_a_finished_run_is_used_by_its_folder(tiny_run: Path, tones: list[np.ndarray]) -> None:
    piper = bagpiper.load(tiny_run, device="cpu")
    caption = piper.describe((tones[0], RATE))
    assert bagpiper.describe(tiny_run, (tones[0], RATE), device="cpu") == caption
    assert bagpiper.load(tiny_run / "model", device="cpu").describe((tones[0], RATE)) == caption
    samples, rate = bagpiper.render(tiny_run, "a bell", device="cpu")
    assert np.array_equal(samples, piper.render("a bell")[0])
    assert rate == RATE
    assert bagpiper.ask(tiny_run, (tones[0], RATE), "what?", device="cpu") == piper.ask((tones[0], RATE), "what?")
