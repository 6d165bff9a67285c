"""A model small enough to build in milliseconds, for tests."""

from __future__ import annotations

import numpy as np
import torch

from bagpiper.adaptors.configs import MlpConfig
from bagpiper.batch import Batch, collate
from bagpiper.codecs.configs import RvqConfig
from bagpiper.encoders.configs import MelConfig
from bagpiper.heads.configs import ParallelConfig
from bagpiper.language.conversation import Clip, Conversation, Message
from bagpiper.llms.configs import HfConfig, TokenizerConfig
from bagpiper.llms.tokenizer import TextTokenizer
from bagpiper.model import Bagpiper
from bagpiper.recipe.settings import ModelSettings

TEXTS = ["a loud bell on C5", "soft rain, then two knocks", "the background is silent", "a bird calls three times"]


def tiny_settings(**changes) -> ModelSettings:
    """Settings of a model of some 50 thousand parameters."""
    llm = {
        "model_type": "qwen3",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 48,
        **changes.pop("llm", {}),
    }
    settings = ModelSettings(
        encoder=MelConfig(num_mels=20, channels=16, strides=(2, 2)),
        adaptor=MlpConfig(stack=2, output_rms=1.0),
        llm=HfConfig(config=llm, tokenizer=TokenizerConfig(vocab_size=300)),
        codec=RvqConfig(num_codebooks=2, codebook_size=8, num_mels=20, griffin_lim=2),
        head=ParallelConfig(chunk=0),
    )
    for name, value in changes.items():
        setattr(settings, name, value)
    return settings


def noise(seconds: float, seed: int) -> np.ndarray:
    """A clip ``[N]`` at 16 kHz."""
    rng = np.random.default_rng(seed)
    return (0.1 * rng.standard_normal(int(seconds * 16000))).astype(np.float32)


def tiny_codec(config: RvqConfig):
    """A codec fitted to a little noise."""
    from bagpiper.codecs.rvq import RvqCodec

    codec = RvqCodec(config)
    codec.fit([noise(1.0, seed) for seed in range(4)], seed=0)
    return codec


def tiny_model(seed: int = 0, **changes) -> Bagpiper:
    """A built model with a fitted codec, in eval mode."""
    settings = tiny_settings(**changes)
    tokenizer = TextTokenizer.train_bpe(TEXTS, 300)
    codec = tiny_codec(settings.codec)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Bagpiper.build(settings, tokenizer, codec=codec).eval()


def tiny_batch(model: Bagpiper, which: str = "hsth", seed: int = 0) -> Batch:
    """A pack: for each letter a conversation that hears (h), speaks (s) or is text only (t)."""
    rng = np.random.default_rng(seed)
    grids, waves, keys = [], [], []
    for number, kind in enumerate(which):
        text = TEXTS[number % len(TEXTS)]
        wave = noise(0.4 + 0.1 * number, seed + number)
        clip = Clip(samples=wave, sample_rate=16000)
        answer = Message("assistant", "text", text)
        messages = {
            "h": (Message("user", "audio", clip), answer),
            "s": (Message("user", "text", text), Message("assistant", "audio", clip)),
            "t": (answer,),
        }[kind]
        frames = model.settings.codec.num_frames(len(wave))
        codes = rng.integers(0, model.vocabulary.codebook_size, (frames, model.vocabulary.num_codebooks))
        states = model.settings.adaptor.num_frames(model.settings.encoder.num_frames(len(wave)))
        grids.append(
            model.template.grid(Conversation(f"{kind}{number}", messages), codes={1: codes}, states={0: states})
        )
        waves.append([wave] if kind == "h" else [])
        keys.append(f"{kind}{number}")
    return collate(grids, waves, keys, audio_start=model.vocabulary.audio_start)
