"""What all codecs of transformers promise, one by one on tiny random models."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_codecs import TINY, frames, tiny, wave

from bagpiper.codecs.configs import PUBLISHED, DacConfig, EncodecConfig, MimiConfig, XcodecConfig
from bagpiper.codecs.hf import full_precision
from bagpiper.recipe import registry
from bagpiper.recipe.load import model_from_dict, model_to_dict
from bagpiper.recipe.settings import ModelSettings

each = pytest.mark.parametrize("name", TINY)


@each
@settings(max_examples=6, deadline=None)
@given(share=st.floats(0, 8))
def test_lengths_are_as_promised(name: str, share: float) -> None:
    config, codec = TINY[name], tiny(name)
    for num_samples in {math.floor(share * config.hop), round(share) * config.hop}:
        codes = codec.encode([wave(num_samples)])[0]
        assert codes.shape == (config.num_frames(num_samples), config.num_codebooks) and codes.dtype == torch.int64
        assert codes.shape[0] == num_samples // config.hop
        assert codes.numel() == 0 or 0 <= int(codes.min()) <= int(codes.max()) < config.codebook_size
        decoded = codec.decode([codes])[0]
        assert decoded.shape == (config.num_samples(len(codes)),) and decoded.dtype == torch.float32


@each
@pytest.mark.parametrize("num_samples", [0, 1])
def test_clips_without_a_whole_hop_have_no_codes(name: str, num_samples: int) -> None:
    codec = tiny(name)
    codes = codec.encode([wave(num_samples)])[0]
    assert codes.shape == (0, TINY[name].num_codebooks)
    assert codec.decode([codes])[0].shape == (0,)


@pytest.mark.parametrize(
    ("config", "lost"),
    [
        (DacConfig(), 0),
        (DacConfig(sample_rate=24000, hop=320, ratios=(2, 4, 5, 8), num_codebooks=32, source="descript/dac_24khz"), 8),
        (DacConfig(sample_rate=16000, hop=320, ratios=(2, 4, 5, 8), num_codebooks=12, source="descript/dac_16khz"), 8),
        (XcodecConfig(), 0),
        (MimiConfig(), 0),
        (EncodecConfig(), 0),
    ],
)
def test_what_published_models_decode_to(config: Any, lost: int) -> None:
    """DAC's odd stride of 5 comes before strides of 4 and 2: its one sample less is 8 at the end."""
    assert [config.num_samples(count) for count in (0, 1, 50)] == [0, config.hop - lost, 50 * config.hop - lost]
    facts = PUBLISHED[config.source]
    assert (config.sample_rate, config.hop) == (facts["sample_rate"], facts["hop"])


@each
def test_codes_follow_the_waveform(name: str) -> None:
    """transformers leaves most random codebooks at zero, which would make every code 0."""
    codes = tiny(name).encode([frames(name, 40)])[0]
    assert all(len(column.unique()) > 4 for column in codes.T)
    assert not torch.equal(codes, tiny(name).encode([frames(name, 40, seed=1)])[0])


@each
def test_each_clip_is_coded_and_decoded_as_if_alone(name: str) -> None:
    codec = tiny(name)
    waves = [frames(name, 12, 1), frames(name, 3, 2), wave(TINY[name].hop // 3), frames(name, 25, 3)]
    together, alone = codec.encode(waves), [codec.encode([item])[0] for item in waves]
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))
    decoded = codec.decode(together)
    assert all(torch.equal(item, codec.decode([codes])[0]) for item, codes in zip(decoded, alone, strict=True))


@each
def test_meta_build_filled_from_a_state_dict_equals_the_normal_one(name: str) -> None:
    codec, sound = tiny(name), frames(name, 10)
    codes = codec.encode([sound])[0]
    with torch.device("meta"):
        other = registry.build("codec", codec.portable_config())
    other.to_empty(device="cpu")
    with torch.no_grad():
        for key, tensor in other.state_dict().items():
            tensor.copy_(codec.state_dict()[key])
    other.reset_buffers()
    for found, wanted in (
        (dict(other.named_buffers()), dict(codec.named_buffers())),
        (dict(other.named_parameters()), dict(codec.named_parameters())),
    ):
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert not any(parameter.requires_grad for parameter in other.parameters())
    assert torch.equal(other.encode([sound])[0], codes)
    assert torch.equal(other.decode([codes])[0], codec.decode([codes])[0])
    assert other.weights_hash() == codec.weights_hash()


@each
def test_other_weights_in_the_same_module_are_used(name: str) -> None:
    """Mimi's codebooks are quotients that transformers keeps outside the state dict."""
    codec, sound = copy.deepcopy(tiny(name)), frames(name, 30)
    before = codec.encode([sound])[0]
    torch.manual_seed(1)
    other = registry.build("codec", TINY[name])
    codec.load_state_dict(other.state_dict())
    assert torch.equal(codec.encode([sound])[0], other.encode([sound])[0])
    assert torch.equal(codec.decode([before])[0], other.decode([before])[0])
    assert codec.weights_hash() != tiny(name).weights_hash()


@each
def test_portable_config_survives_a_model_folder(name: str) -> None:
    codec = tiny(name)
    portable = codec.portable_config()
    back = model_from_dict(model_to_dict(ModelSettings(codec=portable))).codec
    assert back == portable and back.source is None
    again = registry.build("codec", back)
    again.load_state_dict(codec.state_dict())
    assert again.weights_hash() == codec.weights_hash()


def pretrained(name: str, folder: Path) -> Any:
    """A model of transformers with the codec's weights, and the same as a folder."""
    codec = tiny(name)
    if name != "mimi":
        codec.model.save_pretrained(folder)
        return codec.model
    from transformers import MimiModel

    from bagpiper.codecs.mimi import MimiParts

    whole = MimiModel(codec.model.config).eval()
    MimiParts(whole).load_state_dict(codec.model.state_dict())
    whole.save_pretrained(folder)
    return whole


@each
def test_folder_of_transformers_gives_the_same_codec(name: str, tmp_path: Path) -> None:
    codec, sound = tiny(name), frames(name, 10)
    pretrained(name, tmp_path)
    other = registry.build("codec", replace(TINY[name], source=str(tmp_path), config=None))
    assert torch.equal(other.encode([sound])[0], codec.encode([sound])[0])
    assert other.portable_config() == codec.portable_config()
    assert other.weights_hash() == codec.weights_hash()


@pytest.mark.parametrize("name", ["xcodec", "dac", "dac with an odd ratio", "mimi"])
def test_equals_transformers_own_calls(name: str, tmp_path: Path) -> None:
    codec, sound = tiny(name), frames(name, 20)
    model = pretrained(name, tmp_path)
    codes = codec.encode([sound])[0]
    with torch.no_grad():
        whole = model.encode(sound[None, None])
        decoded = model.decode(audio_codes=codes.T[None])
    assert torch.equal(whole.audio_codes[0].T[:, : codes.shape[1]], codes)
    assert torch.equal(decoded.audio_values.flatten(), codec.decode([codes])[0])


@each
def test_incomplete_weights_are_refused(name: str, tmp_path: Path) -> None:
    """transformers would draw what a file lacks at random, with a warning."""
    from safetensors.torch import load_file, save_file

    pretrained(name, tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    lost = sorted(tensors)[0]
    save_file({key: tensor for key, tensor in tensors.items() if key != lost}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"not a whole \w+Model: it lacks .*would be random"):
        registry.build("codec", replace(TINY[name], source=str(tmp_path), config=None))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cannot load"):
        registry.build("codec", replace(TINY[name], source=str(tmp_path), config=None))


@each
def test_an_unreachable_hub_says_how_to_get_the_weights(name: str) -> None:
    published = {"encodec": EncodecConfig, "xcodec": XcodecConfig, "mimi": MimiConfig}.get(name, DacConfig)()
    with pytest.raises(ValueError, match=rf"^codec.source: .*hf download {published.source} --local-dir"):
        registry.build("codec", published)


@each
def test_promises_that_do_not_hold_are_refused(name: str) -> None:
    config = replace(TINY[name], config=tiny(name).portable_config().config)
    with pytest.raises(ValueError, match=rf"sample_rate {config.sample_rate} \(not 8000\)"):
        registry.build("codec", replace(tiny(name).portable_config(), sample_rate=8000))
    with pytest.raises(ValueError, match=rf"codebook_size {config.codebook_size} \(not 64\)"):
        registry.build("codec", replace(config, codebook_size=64, num_codebooks=2 if name != "xcodec" else 13))
    with pytest.raises(ValueError, match=r"unknown fields (depth|\w+, depth)"):
        registry.build("codec", replace(TINY[name], config={**TINY[name].config, "depth": 3}))


@pytest.mark.parametrize("source", PUBLISHED)
def test_wrong_promises_of_published_models_are_refused_without_loading(source: str) -> None:
    kind = {"facebook": EncodecConfig, "hf-audio": XcodecConfig, "descript": DacConfig, "kyutai": MimiConfig}
    make, facts = kind[source.split("/")[0]], dict(PUBLISHED[source])
    if make is DacConfig:
        facts["ratios"] = (2, 4, 8, 8) if facts["hop"] == 512 else (2, 4, 5, 8)  # type: ignore[assignment]
    assert make(source=source, **facts).frame_rate == facts["sample_rate"] / facts["hop"]
    with pytest.raises(ValueError, match=rf"has sample_rate {facts['sample_rate']} \(not 48000\); correct"):
        make(source=source, **{**facts, "sample_rate": 48000})
    with pytest.raises(ValueError, match=rf"has at most {facts['num_codebooks']} num_codebooks \(not 64\)"):
        make(source=source, **{**facts, "num_codebooks": 64})


def test_all_wrong_promises_come_at_once() -> None:
    with pytest.raises(ValueError, match=r"dac_24khz has sample_rate 24000 \(not 44100\), hop 320 \(not 512\)"):
        DacConfig(source="descript/dac_24khz")
    for change in ({"hop": 0}, {"sample_rate": 0}, {"codebook_size": 1}):
        with pytest.raises(ValueError, match="must be at least 1 and codebook_size at least 2"):
            XcodecConfig(source=None, **change)


def test_numbers_of_codebooks() -> None:
    """X-Codec was trained at five bit rates; DAC and Mimi with any number of first codebooks."""
    for count in range(1, 9):
        if count in (1, 2, 3, 4, 8):
            assert XcodecConfig(num_codebooks=count).num_codebooks == count
        else:
            with pytest.raises(ValueError, match=f"must be one of 1, 2, 3, 4, 8, got {count}"):
                XcodecConfig(num_codebooks=count)
        assert DacConfig(num_codebooks=count).num_codebooks == MimiConfig(num_codebooks=count).num_codebooks == count
    with pytest.raises(ValueError, match=r"product of ratios, 512 for \[2, 4, 8, 8\], got 320"):
        DacConfig(hop=320, source=None)
    with pytest.raises(ValueError, match=r"6 codebooks \(not 7\)"):
        registry.build("codec", replace(TINY["mimi"], num_codebooks=7))


@each
def test_fewer_codebooks_are_a_prefix(name: str) -> None:
    codec = tiny(name)
    fewer = registry.build("codec", replace(codec.portable_config(), num_codebooks=2))
    fewer.load_state_dict(codec.state_dict())
    codes = fewer.encode([frames(name, 10)])[0]
    assert torch.equal(codes, codec.encode([frames(name, 10)])[0][:, :2])
    assert fewer.decode([codes])[0].shape == (TINY[name].num_samples(10),)
    assert fewer.weights_hash() != codec.weights_hash()


@each
def test_codec_stays_in_eval_mode_and_float32(name: str) -> None:
    """Upstream's `model.train()` reached the codec and changed 80 % of the target codes (golden README, quirk 6)."""
    codec, sound = copy.deepcopy(tiny(name)), frames(name, 20)
    before = codec.encode([sound])[0]
    torch.nn.Sequential(codec).train().to(torch.bfloat16)
    assert not any(module.training for module in codec.modules())
    assert {tensor.dtype for tensor in codec.parameters()} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(codec.encode([sound])[0], before)
        decoded = codec.decode([before])[0]
    assert decoded.dtype == torch.float32 and torch.equal(decoded, codec.decode([before])[0])


@each
def test_bad_input_is_refused(name: str) -> None:
    codec = tiny(name)
    with pytest.raises(ValueError, match="NaN"):
        codec.encode([torch.full((2000,), float("nan"))])
    with pytest.raises(ValueError, match="one channel"):
        codec.encode([torch.zeros(1, 2000)])
    with pytest.raises(ValueError, match="rounded ones have other codes"):
        codec.encode([torch.zeros(2000, dtype=torch.bfloat16)])
    with pytest.raises(ValueError, match=f"0..{TINY[name].codebook_size - 1}"):
        codec.decode([torch.full((2, TINY[name].num_codebooks), TINY[name].codebook_size)])
    with pytest.raises(ValueError, match=f"frames, {TINY[name].num_codebooks}"):
        codec.decode([torch.zeros(2, TINY[name].num_codebooks + 1, dtype=torch.int64)])


@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
def test_convolutions_on_a_gpu_do_not_round_to_tf32() -> None:
    """torch lets them by default; whatever a run has set is there again afterwards, an error or not."""
    switches = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = True
        with pytest.raises(RuntimeError, match="inside"), full_precision(torch.device("cuda")):
            assert not any(switch.allow_tf32 for switch in switches)
            raise RuntimeError("inside")
        assert all(switch.allow_tf32 for switch in switches)
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value


@pytest.mark.gpu
@each
def test_a_gpu_gives_the_same_codes_but_for_near_ties(name: str) -> None:
    codec, sound = copy.deepcopy(tiny(name)), frames(name, 40)
    codes = codec.encode([sound])[0]
    decoded = codec.decode([codes])[0]
    codec.to("cuda")
    assert float((codec.encode([sound.cuda()])[0].cpu() == codes).float().mean()) > 0.95
    torch.testing.assert_close(codec.decode([codes.cuda()])[0].cpu(), decoded, atol=1e-4, rtol=1e-3)
