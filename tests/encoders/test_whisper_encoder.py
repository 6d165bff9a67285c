"""Whisper's encoder: equal to transformers where both can run, and clips on their own length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from isolation import DISTURBANCES, check_isolation
from transformers import WhisperConfig as HfWhisperConfig
from transformers import WhisperFeatureExtractor, WhisperModel

from bagpiper.encoders.configs import WhisperConfig
from bagpiper.encoders.whisper import WhisperEncoder
from bagpiper.recipe.registry import build

FIELDS: dict[str, Any] = {
    "num_mel_bins": 80,
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "max_source_positions": 40,
}


def encoder(**fields: Any) -> WhisperEncoder:
    torch.manual_seed(0)
    return build("encoder", WhisperConfig(config={**FIELDS, **fields}, output_width=32)).eval()


def test_features_equal_the_feature_extractor() -> None:
    module = encoder()
    extractor = WhisperFeatureExtractor(feature_size=80)
    wave = torch.randn(12345) * 0.1
    theirs = extractor(wave.numpy(), sampling_rate=16000, padding="longest", return_tensors="pt").input_features[0]
    ours = module.features(wave)
    assert ours.shape == (77, 80)
    np.testing.assert_allclose(ours.numpy(), theirs.T.numpy(), atol=1e-4)


def test_states_equal_transformers_on_a_clip_of_full_length(tmp_path: Path) -> None:
    """transformers accepts exactly ``2 * max_source_positions`` frames; there both must agree."""
    torch.manual_seed(1)
    whisper = WhisperModel(
        HfWhisperConfig(
            **FIELDS,
            decoder_layers=1,
            decoder_attention_heads=2,
            decoder_ffn_dim=64,
            vocab_size=50,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
        )
    ).eval()
    whisper.save_pretrained(tmp_path / "whisper")
    module = build("encoder", WhisperConfig(source=str(tmp_path / "whisper"), output_width=32)).eval()
    wave = torch.randn(80 * 160)
    with torch.no_grad():
        theirs = whisper.encoder(module.features(wave).T[None]).last_hidden_state[0]
        ours = module([wave])[0]
    assert not torch.equal(ours[0], ours[1])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)

    portable = module.portable_config()
    assert portable.source is None
    rebuilt = WhisperEncoder(portable)
    rebuilt.load_state_dict(module.state_dict())
    assert torch.equal(rebuilt.eval()([wave])[0], ours)


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(0, 6400), max_size=4))
def test_promise_of_num_frames(lengths: list[int]) -> None:
    module = encoder()
    with torch.no_grad():
        states = module([torch.randn(length) for length in lengths])
    assert [tuple(state.shape) for state in states] == [(module.config.num_frames(n), 32) for n in lengths]


@pytest.mark.parametrize("disturbance", DISTURBANCES)
def test_clips_are_independent(disturbance: float) -> None:
    """Two of the clips share a length, and so a call."""
    check_isolation(encoder(), [torch.randn(length) * 0.1 for length in (3200, 3200, 5000)], 1, disturbance)


def test_a_clip_beyond_the_positions_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a clip of 1\.0 s is longer than the 0\.8 s"):
        encoder()([torch.zeros(16000)])


def test_positions_are_saved_but_never_trained() -> None:
    module = encoder()
    module.requires_grad_(True)
    assert "positions" in module.state_dict()
    assert not any(parameter is module.positions for parameter in module.parameters())


def test_meta_build_equals_normal_build() -> None:
    module = encoder()
    with torch.device("meta"):
        empty = WhisperEncoder(module.portable_config())
    empty.to_empty(device="cpu")
    for buffer in empty.buffers():
        buffer.fill_(float("nan"))
    empty.load_state_dict(module.state_dict())
    empty.reset_buffers()
    for (name, mine), (other, theirs) in zip(module.named_buffers(), empty.named_buffers(), strict=True):
        assert name == other and torch.equal(mine, theirs)
    wave = torch.randn(3200)
    assert torch.equal(module([wave])[0], empty.eval()([wave])[0])


def test_wrong_configs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="set output_width: 32"):
        WhisperEncoder(WhisperConfig(config=FIELDS, output_width=64))
    with pytest.raises(ValueError, match="unknown config fields d_modell"):
        WhisperEncoder(WhisperConfig(config={"d_modell": 32}, output_width=32))
    with pytest.raises(ValueError, match="hears 16000 Hz only"):
        WhisperConfig(sample_rate=8000)
    with pytest.raises(ValueError, match="cannot load"):
        WhisperEncoder(WhisperConfig(source=str(tmp_path), output_width=32))
