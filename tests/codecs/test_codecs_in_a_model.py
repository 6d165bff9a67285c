"""Every codec inside a whole model: any rate, any number of codebooks, head ``parallel``."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import TEXTS, noise, tiny_settings
from tiny_codecs import TINY, frames, tiny

from bagpiper.batch import collate
from bagpiper.component import Codec
from bagpiper.inference.generate import generate
from bagpiper.language.conversation import Clip, Conversation, Message
from bagpiper.llms.tokenizer import TextTokenizer
from bagpiper.model import Bagpiper
from bagpiper.recipe import registry
from bagpiper.recipe.settings import DecodeSettings, GenerationSettings
from bagpiper.weights.model_folder import load_model, save_model

NAMES = [*TINY, "dac with one codebook", "mimi with six codebooks"]


@cache
def codec_named(name: str) -> Codec:
    if name in TINY:
        return tiny(name)
    few = replace(TINY["dac"], num_codebooks=1) if "dac" in name else replace(TINY["mimi"], num_codebooks=6)
    torch.manual_seed(0)
    codec: Codec = registry.build("codec", few)
    return codec


@cache
def tokenizer() -> TextTokenizer:
    return TextTokenizer.train_bpe(TEXTS, 300)


def model_with(codec: Codec, pattern: str = "delay") -> Bagpiper:
    torch.manual_seed(0)
    settings = tiny_settings(codec=codec.config, pattern=pattern)
    return Bagpiper.build(settings, tokenizer(), codec=codec).eval()


@pytest.mark.parametrize("name", NAMES)
def test_it_trains_on_every_codebook(name: str) -> None:
    codec = codec_named(name)
    model = model_with(codec)
    codes = codec.encode([frames(name if name in TINY else name.split()[0], 6)])[0].numpy()
    clip = Clip(samples=noise(0.5, 0), sample_rate=16000)
    said = Conversation("said", (Message("user", "audio", clip), Message("assistant", "audio", clip)))
    states = model.settings.adaptor.num_frames(model.settings.encoder.num_frames(8000))
    grid = model.template.grid(said, codes={1: codes}, states={0: states})
    model(collate([grid], [[clip.samples]], ["said"], audio_start=model.vocabulary.audio_start)).total.backward()
    trained = model.output_rows.new.grad
    assert trained is not None and bool(trained.isfinite().all())
    first = model.vocabulary.audio_start - model.vocabulary.text_size  # specials, then audio
    per_book = trained[first:].view(codec.config.num_codebooks, -1, trained.shape[1])
    assert bool(per_book.abs().sum((1, 2)).gt(0).all())
    assert not any(parameter.grad is not None for parameter in codec.parameters())


@pytest.mark.parametrize(
    ("name", "pattern"), [*((name, "delay") for name in NAMES), ("xcodec", "flatten"), (NAMES[-2], "coarse_first")]
)
def test_it_speaks_at_the_promised_rate(name: str, pattern: str) -> None:
    codec = codec_named(name)
    model = model_with(codec, pattern)
    settings = GenerationSettings(audio=DecodeSettings(temperature=1.0, cfg=2.0, max_rows=24, min_rows=2))
    request = Conversation("r", (Message("user", "text", TEXTS[0]),))
    answer = generate(model, [request], settings, seeds=[3], plan=["audio"])[0]
    segment = answer.segments[0]
    assert segment.codes is not None and segment.samples is not None
    assert segment.codes.shape[1] == codec.config.num_codebooks and len(segment.codes) > 0
    assert len(segment.samples) == codec.config.num_samples(len(segment.codes))
    assert np.isfinite(segment.samples).all()
    assert answer.conversation.messages[-1].clip.sample_rate == codec.config.sample_rate


@pytest.mark.parametrize("name", TINY)
def test_a_model_folder_brings_its_codec_along(name: str, tmp_path: Path) -> None:
    codec = codec_named(name)
    model = model_with(codec)
    save_model(model, tmp_path / "model", generation=GenerationSettings())
    loaded = load_model(tmp_path / "model")
    sound = frames(name, 8)
    assert torch.equal(loaded.codec.encode([sound])[0], codec.encode([sound])[0])
    assert loaded.fingerprint() == model.fingerprint()
