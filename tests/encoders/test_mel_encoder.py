"""The mel encoder: promised lengths, independence of clips, loudness and pitch stay visible."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from isolation import DISTURBANCES, check_isolation

from bagpiper.encoders.configs import MelConfig
from bagpiper.encoders.mel import MelEncoder
from bagpiper.recipe.registry import build


def encoder(**fields: object) -> MelEncoder:
    torch.manual_seed(0)
    config = MelConfig(**{"num_mels": 20, "channels": 16, "heads": 2, **fields})
    return build("encoder", config).eval()


def tone(hertz: float, level: float, seconds: float = 0.5) -> torch.Tensor:
    return level * torch.sin(2 * math.pi * hertz * torch.arange(int(16000 * seconds)) / 16000.0)


@pytest.mark.parametrize(
    "fields", [{}, {"layers": 1}, {"strides": (2, 2, 2)}, {"strides": (1, 5), "kernel": 5}, {"hop": 320, "window": 640}]
)
@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(0, 4000), max_size=4))
def test_promise_of_num_frames(fields: dict[str, object], lengths: list[int]) -> None:
    module = encoder(**fields)
    states = module([torch.randn(length) for length in lengths])
    assert [tuple(state.shape) for state in states] == [(module.config.num_frames(n), 16) for n in lengths]


@pytest.mark.parametrize("layers", [0, 2])
@pytest.mark.parametrize("disturbance", DISTURBANCES)
def test_clips_are_independent(layers: int, disturbance: float) -> None:
    clips = [torch.randn(length) * 0.1 for length in (3200, 800, 5000)]
    check_isolation(encoder(layers=layers), clips, 1, disturbance)


def test_loudness_is_visible_and_features_have_a_sane_scale() -> None:
    module = encoder(num_mels=80)
    loud, quiet = (module.features(tone(440.0, level))[10:40] for level in (1.0, 0.1))
    band = int(loud.mean(dim=0).argmax())
    # a tenth of the amplitude is two decades of power, divided by the fixed scale of 2
    assert float((loud - quiet)[:, band].mean()) == pytest.approx(1.0, abs=1e-3)
    assert 2.0 < float(loud.max()) < 3.0
    assert float(module.features(torch.zeros(1600)).max()) == -2.5


def test_every_semitone_from_c4_up_has_features_of_its_own() -> None:
    module = encoder(num_mels=80, window=800)
    notes = [261.63 * 2 ** (step / 12) for step in range(24)]
    means = torch.stack([module.features(tone(note, 0.3))[10:40].mean(dim=0) for note in notes])
    distances = torch.cdist(means, means) + torch.eye(len(notes)) * 1e9
    assert float(distances.min()) > 0.5  # a state has a deviation of about 1 per band


def test_same_input_gives_the_same_bits() -> None:
    module = encoder(layers=1)
    clips = [torch.randn(3000), torch.randn(2000)]
    for first, second in zip(module(clips), module(clips), strict=True):
        assert torch.equal(first, second)


def test_positions_tell_equal_frames_apart() -> None:
    states = encoder(layers=1)([torch.zeros(16000)])[0]
    assert not torch.allclose(states[5], states[15], atol=1e-3)


def test_front_end_stays_float32_under_autocast() -> None:
    module = encoder()
    wave = torch.randn(3200) * 0.1
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module.features(wave), module.features(wave.float()))
        frames = module.features(wave)
    assert frames.dtype == torch.float32
    assert torch.equal(frames, module.features(wave))


def test_meta_build_equals_normal_build() -> None:
    module = encoder(layers=1)
    with torch.device("meta"):
        empty = MelEncoder(module.config)
    empty.to_empty(device="cpu")
    for buffer in empty.buffers():
        buffer.fill_(float("nan"))
    empty.load_state_dict(module.state_dict())
    empty.reset_buffers()
    for (name, mine), (other, theirs) in zip(module.named_buffers(), empty.named_buffers(), strict=True):
        assert name == other and torch.equal(mine, theirs)
    assert not {"window", "filterbank"} & set(module.state_dict())
    assert {"band_mean", "band_std"} <= set(module.state_dict())
    wave = torch.randn(3200)
    assert torch.equal(module([wave])[0], empty.eval()([wave])[0])


def test_calibration_standardises_bands_and_keeps_loudness() -> None:
    """Without it the states differed by a few percent, and the quickstart's LLM heard next to nothing."""
    module = encoder()
    clips = [torch.randn(16000) * level for level in (0.003, 0.03, 0.3)]
    module.calibrate(clips)
    frames = torch.cat([module.features(clip) for clip in clips])
    assert frames.mean(0).abs().max() < 1e-4
    assert torch.allclose(frames.std(0), torch.ones(frames.shape[1]), atol=1e-3)
    soft, loud = (module.features(clip).mean() for clip in (clips[0], clips[2]))
    assert loud - soft > 1.0


def test_impossible_configs_are_refused() -> None:
    with pytest.raises(ValueError, match="every stride must be from 1 to kernel"):
        MelConfig(strides=(2, 4))
    with pytest.raises(ValueError, match="hop must be from 1 to window"):
        MelConfig(window=100, hop=160)
    with pytest.raises(ValueError, match="multiple of 2"):
        MelConfig(channels=30, heads=4, layers=1)
    with pytest.raises(ValueError, match="at least one convolution"):
        MelConfig(strides=())
