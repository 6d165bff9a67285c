"""Tiny random models of every codec that runs through transformers."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from bagpiper.codecs.configs import DacConfig, EncodecConfig, MimiConfig, XcodecConfig
from bagpiper.codecs.hf import HfCodec
from bagpiper.recipe import registry

HUBERT = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 32,
    "num_conv_pos_embedding_groups": 4,
}
ACOUSTIC = {"encoder_hidden_size": 3, "hidden_size": 6, "decoder_hidden_size": 32}
DAC = {"encoder_hidden_size": 4, "decoder_hidden_size": 32, "codebook_dim": 4, "n_codebooks": 5}
TINY: dict[str, Any] = {
    "encodec": EncodecConfig(
        source=None,
        num_codebooks=4,
        codebook_size=16,
        config={"num_filters": 4, "hidden_size": 8, "num_lstm_layers": 1, "target_bandwidths": [1.2]},
    ),
    "xcodec": XcodecConfig(
        source=None, codebook_size=1024, config={"acoustic_model_config": ACOUSTIC, "semantic_model_config": HUBERT}
    ),
    "dac": DacConfig(source=None, num_codebooks=3, codebook_size=32, config=DAC),
    "dac with an odd ratio": DacConfig(
        source=None, sample_rate=24000, hop=320, ratios=(2, 4, 5, 8), num_codebooks=3, codebook_size=32, config=DAC
    ),
    "mimi": MimiConfig(
        source=None,
        num_codebooks=4,
        codebook_size=32,
        config={
            "hidden_size": 16,
            "num_filters": 4,
            "num_hidden_layers": 2,
            "intermediate_size": 32,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "codebook_dim": 8,
            "vector_quantization_hidden_dimension": 8,
            "upsample_groups": 16,
            "num_quantizers": 6,
            "sliding_window": 12,
        },
    ),
}


@cache
def tiny(name: str) -> HfCodec:
    torch.manual_seed(0)
    codec = registry.build("codec", TINY[name])
    assert isinstance(codec, HfCodec)
    return codec


def wave(num_samples: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(num_samples, generator=torch.Generator().manual_seed(seed))


def frames(name: str, count: int, seed: int = 0) -> torch.Tensor:
    return wave(count * TINY[name].hop, seed)
