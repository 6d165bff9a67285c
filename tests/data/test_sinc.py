"""The official resampling filter, and where the choice between it and soxr arrives."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from tiny import noise, tiny_model, tiny_settings

from bagpiper.data import sinc
from bagpiper.data.audio import read_clip, resample, resampled_length
from bagpiper.data.codes import CodeCache, fill_codes
from bagpiper.data.examples import distinct_clips
from bagpiper.data.layout import Layout
from bagpiper.data.ledger import Ledger
from bagpiper.data.module import PackDataModule
from bagpiper.data.sinc import sinc_resample
from bagpiper.errors import UserError
from bagpiper.inference.prompts import embed_prompts
from bagpiper.language.conversation import Clip, Conversation, Message
from bagpiper.recipe.settings import DataSettings, GenerationSettings, Recipe
from bagpiper.training.prepare import Examples, prepare_codes

RATES = [(44100, 16000), (48000, 16000), (24000, 16000), (8000, 16000), (16000, 24000), (22050, 44100), (44101, 16000)]


def by_the_formula(wave: np.ndarray, rate_in: int, rate_out: int, index: int) -> float:
    """One output sample, term by term."""
    cutoff = 0.99 * min(rate_in, rate_out)
    total = 0.0
    for position, value in enumerate(wave):
        time = cutoff * (position / rate_in - index / rate_out)
        if abs(time) < 6:
            sine = math.sin(math.pi * time) / (math.pi * time) if time else 1.0
            total += value * cutoff / rate_in * sine * math.cos(math.pi * time / 12) ** 2
    return total


@pytest.mark.parametrize(("rate_in", "rate_out"), RATES)
def test_every_kind_of_ratio_follows_the_formula(rate_in: int, rate_out: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinc, "_BLOCK", 50)  # the blocks' borders are inside the clip
    wave = noise(0.02, 0)
    ours = sinc_resample(wave, rate_in, rate_out)
    assert ours.dtype == np.float32
    assert len(ours) == resampled_length(len(wave), rate_in, rate_out)
    for index in [0, 1, 49, 50, len(ours) // 2, len(ours) - 2, len(ours) - 1]:
        assert ours[index] == pytest.approx(by_the_formula(wave, rate_in, rate_out, index), abs=1e-6)


@pytest.mark.parametrize("length", [1, 2, 3, 30])
def test_clips_shorter_than_the_filter(length: int) -> None:
    wave = np.linspace(-1, 1, length, dtype=np.float32)
    for rate_in, rate_out in ((44100, 16000), (8000, 16000)):
        ours = sinc_resample(wave, rate_in, rate_out)
        expected = [by_the_formula(wave, rate_in, rate_out, index) for index in range(len(ours))]
        np.testing.assert_allclose(ours, expected, atol=1e-6)


@pytest.mark.parametrize(("rate_in", "rate_out"), RATES)
def test_a_tone_stays_a_tone(rate_in: int, rate_out: int) -> None:
    def tone(rate: int) -> np.ndarray:
        return (0.5 * np.sin(2 * np.pi * 440 * np.arange(rate // 2) / rate)).astype(np.float32)

    middle = slice(200, rate_out // 4)
    error = sinc_resample(tone(rate_in), rate_in, rate_out)[middle] - tone(rate_out)[middle]
    assert np.abs(error).max() < 2e-3


def test_rates_without_a_common_divisor_need_little_memory() -> None:
    """One filter for each of 16,000 phases, but only the taps that are not zero."""
    kernels, _ = sinc._kernels(44101, 16000)
    assert kernels.nbytes < 3e6


# -- where the choice arrives -------------------------------------------------------------------------------------


@pytest.fixture
def clip(folder: Any) -> Path:
    """A clip of noise at 24 kHz."""
    return folder.path / folder.clip("noise.wav", noise(0.5, 3), 24000)


def test_reading(clip: Path) -> None:
    official = read_clip(clip, 16000, resampler="official")
    soxr = read_clip(clip, 16000, resampler="soxr")
    np.testing.assert_array_equal(official, sinc_resample(read_clip(clip, 24000), 24000, 16000))
    np.testing.assert_array_equal(read_clip(clip, 16000), soxr)
    assert np.abs(official - soxr).max() > 1e-3
    wave = read_clip(clip, 24000)
    assert resample(wave, 24000, 24000, "official") is wave


def module_with(folder: Any, examples: Any, cache: CodeCache) -> PackDataModule:
    return PackDataModule(
        train=examples,
        valid=[],
        layout=Layout(folder.template, folder.encoder, folder.adaptor, folder.codec, cache),
        settings=DataSettings(workers=0, cfg_dropout=0.0),
        seed=0,
    )


def test_packs_hold_clips_of_the_chosen_resampler(folder: Any, rows: Any, clip: Path) -> None:
    examples = folder.read(folder.manifest([rows["heard"]("a", clip.name)]))
    for resampler in ("soxr", "official"):
        cache = CodeCache(folder.path / "cache", "codec", resampler)
        module = module_with(folder, examples, cache)
        (wave,) = module.batch_at(0).waves
        np.testing.assert_array_equal(wave.numpy(), read_clip(clip, 16000, resampler=resampler))
        if resampler == "soxr":
            state = module.state_dict()
    with pytest.raises(UserError, match="not that of the checkpoint.*resampler"):
        module.load_state_dict(state)


def test_codes_of_one_resampler_are_never_taken_for_those_of_the_other(folder: Any, rows: Any, clip: Path) -> None:
    examples = folder.read(folder.manifest([rows["spoken"]("a", clip.name)]))
    (spoken,) = distinct_clips(examples, spoken=True)
    heard: list[np.ndarray] = []

    def encode(waves: list[np.ndarray]) -> list[np.ndarray]:
        heard.extend(waves)
        return folder.encode(waves)

    caches = {name: CodeCache(folder.path / "cache", "codec", name) for name in ("soxr", "official")}
    for name, cache in caches.items():
        assert fill_codes(cache, [spoken], folder.codec, encode) == 1, name
        np.testing.assert_array_equal(heard[-1], read_clip(clip, 16000, resampler=name))
        assert fill_codes(cache, [spoken], folder.codec, encode) == 0, name
        assert module_with(folder, examples, cache).layout.resampler == name, "heard clips follow"


def test_a_recipe_encodes_with_its_resampler(folder: Any, rows: Any, clip: Path) -> None:
    model = tiny_model()
    examples = Examples(folder.read(folder.manifest([rows["spoken"]("a", clip.name)])), [], Ledger())
    (spoken,) = distinct_clips(examples.train, spoken=True)
    for name in ("soxr", "official"):
        recipe = Recipe(model=tiny_settings(), data=DataSettings(resampler=name, cache=str(folder.path / "cache")))
        cache = prepare_codes(
            recipe, folder.path, model.codec, examples, torch.device("cpu"), Console(file=io.StringIO())
        )
        assert cache.resampler == name
        (codes,) = model.codec.encode([torch.from_numpy(read_clip(clip, 16000, resampler=name))])
        np.testing.assert_array_equal(cache.get(spoken.sha256), codes.numpy())


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("resampler", [None, "soxr", "official"])
def test_requests_are_resampled_as_the_model_says(resampler: Any, in_memory: bool, clip: Path) -> None:
    model = tiny_model()
    samples = read_clip(clip, 24000)
    sound = Clip(samples=samples, sample_rate=24000) if in_memory else Clip(path=str(clip))
    request = Conversation("a", (Message("user", "audio", sound),))
    (prompt,) = embed_prompts(model, [request], GenerationSettings(resampler=resampler), torch.device("cpu"))
    with torch.no_grad():
        (heard,) = model.hear([torch.from_numpy(resample(samples, 24000, 16000, resampler or "soxr"))])
    at = (prompt[:, None] == heard[0]).all(-1).any(-1).nonzero()
    assert len(at) == 1
    torch.testing.assert_close(prompt[at[0, 0] : at[0, 0] + len(heard)], heard)


def test_a_model_is_sampled_with_the_resampler_of_its_training() -> None:
    assert Recipe(data=DataSettings(resampler="official")).sampling.resampler == "official"
    assert Recipe().sampling.resampler == "soxr"
    other = Recipe(
        data=DataSettings(resampler="official"), generation=GenerationSettings(resampler="soxr", batch_size=3)
    )
    assert other.sampling == other.generation
