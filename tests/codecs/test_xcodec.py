"""X-Codec: the model that its config describes, and what the official code does with it that we do not."""

from __future__ import annotations

import copy
import json
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_codecs import TINY, frames, tiny
from transformers import XcodecConfig as HfXcodecConfig

from bagpiper.codecs.configs import XcodecConfig
from bagpiper.codecs.xcodec import XcodecCodec, xcodec_config
from bagpiper.recipe import registry

XCODEC = TINY["xcodec"]


def test_the_default_is_the_official_model() -> None:
    """Names and shapes of spec section 8: 454 tensors, 211 of them HuBERT's."""
    with torch.device("meta"):
        codec = XcodecCodec(XcodecConfig(source=None))
    tensors = codec.model.state_dict()
    assert Counter(name.split(".")[0] for name in tensors) == {
        "semantic_model": 211,
        "acoustic_encoder": 89,
        "acoustic_decoder": 89,
        "quantizer": 32,
        "encoder_semantic": 13,
        "decoder_semantic": 14,
        "fc": 2,
        "fc1": 2,
        "fc2": 2,
    }
    assert tensors["quantizer.quantizers.7.codebook.embed"].shape == (1024, 1024)
    assert tensors["fc2.weight"].shape == (256, 1024)
    assert "semantic_model.masked_spec_embed" in tensors
    assert "semantic_model.encoder.pos_conv_embed.conv.parametrizations.weight.original1" in tensors


def test_a_config_json_describes_the_codec_without_weights() -> None:
    whole = HfXcodecConfig(**json.loads(json.dumps(tiny("xcodec").model.config.to_dict())))
    config = xcodec_config(whole)
    assert config == tiny("xcodec").portable_config()
    assert (config.sample_rate, config.hop, config.num_codebooks, config.codebook_size) == (16000, 320, 8, 1024)


def test_bit_rates_of_another_model_decide_the_numbers_of_codebooks() -> None:
    fields = {**(XCODEC.config or {}), "target_bandwidths": [1, 2]}
    with pytest.raises(ValueError, match="must be one of 2, 5, got 8"):
        replace(XCODEC, codebook_size=256, config=fields)
    codec = registry.build("codec", replace(XCODEC, codebook_size=256, num_codebooks=5, config=fields))
    assert codec.encode([frames("xcodec", 4)])[0].shape == (4, 5)


def test_wavlm_in_huberts_place() -> None:
    fields = copy.deepcopy(XCODEC.config or {})
    fields["semantic_model_config"] |= {"model_type": "wavlm", "num_buckets": 16, "max_bucket_distance": 40}
    codec = registry.build("codec", replace(XCODEC, config=fields))
    with torch.device("meta"):
        other = registry.build("codec", codec.portable_config())
    other.load_state_dict(codec.state_dict(), assign=True)
    other.reset_buffers()
    codes = codec.encode([frames("xcodec", 9)])[0]
    assert torch.equal(other.encode([frames("xcodec", 9)])[0], codes) and codes.shape == (9, 8)


def upstream_codes(model: Any, waves: list[torch.Tensor], dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Codes as the official training loop makes them: one padded batch, cast to the training precision."""
    padded = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True).to(dtype).float()
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        codes = model.encode(padded[:, None], return_dict=False).transpose(1, 2)
    return [clip[: len(wave) // XCODEC.hop] for clip, wave in zip(codes, waves, strict=True)]


def test_codes_do_not_depend_on_the_longest_clip_of_the_batch() -> None:
    """Upstream codes a zero-padded batch without a mask, and HuBERT looks at all of it (golden README, quirk 3)."""
    codec, waves = tiny("xcodec"), [frames("xcodec", 10, 1), frames("xcodec", 40, 2)]
    short, long = codec.encode(waves)
    upstream_short, upstream_long = upstream_codes(codec.model, waves)
    assert torch.equal(upstream_long, long)
    assert float((upstream_short == short).float().mean()) < 0.9
    assert torch.equal(codec.encode(waves[:1])[0], short)


def test_codes_are_those_of_the_file_not_of_rounded_samples() -> None:
    """Upstream casts the waveform to bfloat16 and encodes under autocast (spec section 4.1)."""
    codec, sound = tiny("xcodec"), frames("xcodec", 40)
    codes = codec.encode([sound])[0]
    assert torch.equal(upstream_codes(codec.model, [sound])[0], codes)
    assert float((upstream_codes(codec.model, [sound], torch.bfloat16)[0] == codes).float().mean()) < 0.99
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(codec.encode([sound])[0], codes)
    with pytest.raises(ValueError, match="rounded ones have other codes"):
        codec.encode([sound.bfloat16()])


def test_targets_are_never_coded_in_training_mode() -> None:
    """Upstream's `model.train()` reaches HuBERT: dropout, layer drop and SpecAugment (golden README, quirk 6)."""
    codec, sound = copy.deepcopy(tiny("xcodec")), frames("xcodec", 40)
    codes = codec.encode([sound])[0]
    torch.nn.ModuleList([codec]).train()
    assert torch.equal(codec.encode([sound])[0], codes)
    codec.model.train()
    torch.manual_seed(0)
    assert float((upstream_codes(codec.model, [sound])[0] == codes).float().mean()) < 0.9
