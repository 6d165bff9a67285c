"""The audio towers of the Omni models: lengths, isolation, the official front end, and reading them out of shards."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError
from hypothesis import given, settings
from hypothesis import strategies as st
from isolation import DISTURBANCES, check_isolation
from rough import check_within_rounding
from safetensors.torch import save_file
from tiny import tiny_model
from transformers import WhisperFeatureExtractor

from bagpiper.adaptors.configs import LinearConfig, QformerConfig
from bagpiper.encoders.configs import OmniConfig, Qwen3OmniConfig, Qwen25OmniConfig
from bagpiper.encoders.omni import OmniEncoder
from bagpiper.recipe.registry import build
from bagpiper.recipe.settings import GenerationSettings
from bagpiper.weights.model_folder import generation_of, load_model, save_model

FIELDS: dict[str, Any] = {
    "num_mel_bins": 16,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "d_model": 8,
    "max_source_positions": 100,
    "initializer_range": 0.3,  # at transformers' 0.02 the states of so small a tower hardly depend on the clip
}
QWEN3 = {**FIELDS, "downsample_hidden_size": 4, "n_window_infer": 200}
KINDS = ["qwen3_omni", "qwen2_5_omni"]
WIDTH = 6


def tower_config(kind: str, **changes: Any) -> OmniConfig:
    if kind == "qwen3_omni":
        return Qwen3OmniConfig(config={**QWEN3, **changes}, output_width=WIDTH)
    return Qwen25OmniConfig(config={**FIELDS, **changes}, output_width=WIDTH)


def encoder(kind: str, **changes: Any) -> OmniEncoder:
    torch.manual_seed(0)
    module = build("encoder", tower_config(kind, **changes)).eval()
    with torch.no_grad():
        for name, parameter in module.tower.named_parameters():
            if name.endswith("bias"):  # transformers' zeros would hide what convolutions make of padding
                parameter.normal_(std=0.3)
    return module


def noise(*lengths: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(length, generator=generator) * 0.1 for length in lengths]


# -- lengths ------------------------------------------------------------------------------------------------------


def test_published_lengths() -> None:
    """Spec section 3.2: mel frames -> states."""
    config = Qwen3OmniConfig(config={})
    assert [config.num_frames(160 * frames) for frames in (0, 1, 99, 100, 400, 1000, 3000)] == [
        0,
        1,
        13,
        13,
        52,
        130,
        390,
    ]
    assert config.num_frames(159) == 0
    config = Qwen25OmniConfig(config={})
    assert [config.num_frames(160 * frames) for frames in (0, 1, 2, 3, 4, 3000)] == [0, 0, 0, 1, 1, 750]


@pytest.mark.parametrize("kind", KINDS)
def test_every_length_is_what_the_tower_gives(kind: str) -> None:
    """The tower decides how many states it gives; splitting them by the formula fails where it gives others."""
    module = encoder(kind)
    with torch.no_grad():
        for frames in [*range(0, 230), 1000]:
            (states,) = module(noise(160 * frames + 7))
            assert states.shape == (module.config.num_frames(160 * frames + 7), WIDTH), frames


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(0, 40000), max_size=4))
def test_promise_of_num_frames_in_a_batch(kind: str, lengths: list[int]) -> None:
    module = encoder(kind)
    with torch.no_grad():
        states = module(noise(*lengths))
    assert [tuple(state.shape) for state in states] == [(module.config.num_frames(n), WIDTH) for n in lengths]


# -- isolation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("disturbance", DISTURBANCES)
@pytest.mark.parametrize("disturbed", [0, 2])
def test_clips_are_independent(kind: str, disturbed: int, disturbance: float) -> None:
    """Two clips over 1 s that cross an attention window, two under 1 s of one length, and one of another."""
    clips = noise(40000, 36000, 8000, 8000, 5000)
    check_isolation(encoder(kind), clips, disturbed, disturbance)


def test_golden_quirk_4_a_clip_under_a_second_beside_a_longer_one() -> None:
    """The official states of the short clip depend on the longer one; ours do so only where the recipe asks for it."""
    ours = encoder("qwen3_omni")
    theirs = build("encoder", Qwen3OmniConfig(config=QWEN3, output_width=WIDTH, isolate=False)).eval()
    theirs.load_state_dict(ours.state_dict())
    short, long = noise(8000, 20000)
    with torch.no_grad():
        (alone,) = ours([short])
        check_within_rounding(theirs([short])[0], alone)
        check_within_rounding(ours([short, long])[0], alone)
        assert (theirs([short, long])[0] - alone).abs().max() > 1e-3
        check_within_rounding(theirs([short, long])[1], ours([long])[0])


def test_our_call_equals_that_of_transformers() -> None:
    """Clips alone, of every kind of length, through our packing and through transformers' own forward."""
    ours = encoder("qwen3_omni")
    theirs = build("encoder", Qwen3OmniConfig(config=QWEN3, output_width=WIDTH, isolate=False)).eval()
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        for frames in (1, 2, 50, 99, 100, 101, 102, 150, 200, 201, 555, 556):
            (wave,) = noise(160 * frames)
            torch.testing.assert_close(ours([wave])[0], theirs([wave])[0], rtol=0, atol=1e-5)


def test_convolutions_run_in_parts_of_bounded_memory() -> None:
    whole, parts = encoder("qwen3_omni"), encoder("qwen3_omni", conv_chunksize=2)
    clips = noise(40000, 8000, 5000, 20000)
    with torch.no_grad():
        for one, other in zip(whole(clips), parts(clips), strict=True):
            check_within_rounding(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_all_clips_share_one_pass_of_the_layers(kind: str) -> None:
    module = encoder(kind)
    calls = []
    module.tower.layers[0].register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        module(noise(40000, 8000, 100, 5000, 20000))
    assert len(calls) == 1


# -- the front end ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("samples", [12345, 16000])
def test_features_equal_the_feature_extractor(normalize: bool, samples: int) -> None:
    """As the official code calls it (spec section 3.1): no truncation, as long as the clip, normalised first."""
    config = tower_config("qwen3_omni", num_mel_bins=128)
    config.normalize = normalize
    wave = noise(samples)[0] + 0.02
    theirs = WhisperFeatureExtractor(feature_size=128)(
        wave.numpy(),
        sampling_rate=16000,
        truncation=False,
        max_length=samples,
        do_normalize=normalize,
        return_tensors="pt",
    ).input_features[0]
    ours = build("encoder", config).features(wave)
    assert ours.shape == (samples // 160, 128)
    torch.testing.assert_close(ours, theirs.T[: samples // 160], rtol=0, atol=1e-4)


def test_digital_silence_has_finite_states() -> None:
    module = encoder("qwen3_omni")
    assert bool(module([torch.zeros(4000)])[0].isfinite().all())


@pytest.mark.parametrize("kind", KINDS)
def test_front_end_stays_float32_under_autocast(kind: str) -> None:
    module = encoder(kind)
    (wave,) = noise(20000)
    with torch.no_grad():
        exact = module([wave])[0]
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(module.features(wave), module.features(wave.float()))
            assert module.features(wave).dtype == torch.float32
            rounded = module([wave])[0]
    assert (rounded - exact).abs().max() < 0.05 * exact.abs().max()


# -- frozen -------------------------------------------------------------------------------------------------------


def test_a_frozen_tower_never_trains() -> None:
    """The official code's ``model.train()`` reaches its frozen parts (golden quirk 6); here it must not."""
    config = tower_config("qwen3_omni", dropout=0.5, attention_dropout=0.5, activation_dropout=0.5)
    model = tiny_model(encoder=config, adaptor=LinearConfig())
    model.encoder.requires_grad_(False)
    clips = noise(20000, 5000)
    before = model.eval().encoder(clips)
    model.train()
    assert model.training
    assert not any(module.training for module in model.encoder.modules())
    for state, was in zip(model.encoder(clips), before, strict=True):
        assert torch.equal(state, was)
        assert not state.requires_grad


# -- building and loading -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_meta_build_equals_normal_build(kind: str) -> None:
    module = encoder(kind)
    portable = module.portable_config()
    assert portable.source is None
    with torch.device("meta"):
        empty = build("encoder", portable)
    empty.to_empty(device="cpu")
    for buffer in empty.buffers():
        buffer.fill_(float("nan"))
    empty.load_state_dict(module.state_dict())
    empty.reset_buffers()
    mine, theirs = dict(module.named_buffers()), dict(empty.named_buffers())
    assert set(mine) == set(theirs) == {"window", "filterbank", "tower.positional_embedding.positional_embedding"}
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert not set(mine) & set(module.state_dict())
    (wave,) = noise(20000)
    assert torch.equal(module([wave])[0], empty.eval()([wave])[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_folder_brings_the_tower_back(kind: str, tmp_path: Path) -> None:
    config = tower_config(kind)
    config.normalize = False
    model = tiny_model(encoder=config, adaptor=QformerConfig(width=8, heads=2))
    save_model(model, tmp_path / "model", generation=GenerationSettings(resampler="official"))
    loaded = load_model(tmp_path / "model")
    assert loaded.settings.encoder == model.encoder.portable_config()
    assert generation_of(tmp_path / "model").resampler == "official"
    clips = noise(20000, 5000)
    with torch.no_grad():
        for mine, theirs in zip(model.hear(clips), loaded.hear(clips), strict=True):
            assert torch.equal(mine, theirs)


def test_published_size_and_names() -> None:
    """Spec section 3.3 and 8: 525 tensors, 647.9 M parameters, without the 30 B model around them."""
    with torch.device("meta"):
        module = build("encoder", Qwen3OmniConfig(config={}))
    shapes = {name: tuple(tensor.shape) for name, tensor in module.tower.state_dict().items()}
    assert len(shapes) == 525
    assert sum(parameter.numel() for parameter in module.parameters()) == pytest.approx(647.9e6, abs=0.05e6)
    assert shapes["conv_out.weight"] == (1280, 7680) and "conv_out.bias" not in shapes
    assert shapes["conv2d3.weight"] == (480, 480, 3, 3)
    assert shapes["layers.31.fc1.weight"] == (5120, 1280)
    assert shapes["proj2.weight"] == (2048, 1280)


def write_omni(folder: Path, module: OmniEncoder, prefix: str, outer: tuple[str, ...]) -> None:
    """A folder as of a whole Omni model: the tower over two shards, in bfloat16; other parts' shards are not there."""
    folder.mkdir(parents=True)
    tensors = {f"{prefix}{name}": tensor.bfloat16() for name, tensor in module.tower.state_dict().items()}
    names = sorted(tensors)
    half = len(names) // 2
    shards = {"model-00001-of-00003.safetensors": names[:half], "model-00002-of-00003.safetensors": names[half:]}
    weight_map = {name: file for file, held in shards.items() for name in held}
    weight_map["thinker.model.layers.0.mlp.gate.weight"] = "model-00003-of-00003.safetensors"
    for file, held in shards.items():
        extra = {"thinker.visual.merger.weight": torch.ones(3)} if "00002" in file else {}
        save_file({**{name: tensors[name] for name in held}, **extra}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    config: dict[str, Any] = {**module.portable_config().config, "model_type": "some_audio_encoder", "other": 1}
    for key in reversed(outer):
        config = {key: config, "model_type": "some_outer_model"}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("prefix", "outer"),
    [
        ("thinker.audio_tower.", ("thinker_config", "audio_config")),
        ("thinker.model.audio_tower.", ("thinker_config", "audio_config")),
        ("audio_tower.", ("audio_config",)),
    ],
)
def test_only_the_tower_is_read_from_an_omni_folder(
    kind: str, prefix: str, outer: tuple[str, ...], tmp_path: Path
) -> None:
    original = encoder(kind)
    with torch.no_grad():
        for parameter in original.parameters():
            parameter.copy_(parameter.bfloat16())
    write_omni(tmp_path / "omni", original, prefix, outer)
    config = type(original.config)(source=str(tmp_path / "omni"), output_width=WIDTH)
    loaded = build("encoder", config).eval()
    assert all(parameter.dtype == torch.float32 and parameter.requires_grad for parameter in loaded.parameters())
    (wave,) = noise(20000)
    assert torch.equal(loaded([wave])[0], original([wave])[0])
    assert loaded.portable_config() == original.portable_config()
    with torch.device("meta"):
        assert build("encoder", config).portable_config() == original.portable_config()


@pytest.mark.parametrize("kind", KINDS)
def test_a_tower_alone_is_read_as_transformers_saves_it(kind: str, tmp_path: Path) -> None:
    original = encoder(kind)
    original.tower.save_pretrained(tmp_path / "tower")
    loaded = build("encoder", type(original.config)(source=str(tmp_path / "tower"), output_width=WIDTH)).eval()
    (wave,) = noise(9000)
    assert torch.equal(loaded([wave])[0], original([wave])[0])


def test_only_shards_of_the_tower_are_fetched_from_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = encoder("qwen3_omni")
    write_omni(tmp_path / "omni", original, "thinker.audio_tower.", ("thinker_config", "audio_config"))
    original.tower.save_pretrained(tmp_path / "tower")
    fetched: list[str] = []

    def download(repository: str, name: str) -> str:
        fetched.append(name)
        path = tmp_path / repository.removeprefix("qwen/") / name
        if not path.is_file():
            response = SimpleNamespace(headers={}, request=None)  # what a 404 of the hub is raised with
            raise RemoteEntryNotFoundError(name, response=response)
        return str(path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    build("encoder", Qwen3OmniConfig(source="qwen/omni", output_width=WIDTH))
    assert set(fetched) == {
        "config.json",
        "model.safetensors.index.json",
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
    }
    (wave,) = noise(9000)
    loaded = build("encoder", Qwen3OmniConfig(source="qwen/tower", output_width=WIDTH)).eval()
    assert torch.equal(loaded([wave])[0], original([wave])[0])
    with pytest.raises(ValueError, match="'qwen/nothing'.*has no config.json"):
        build("encoder", Qwen3OmniConfig(source="qwen/nothing"))

    def offline(repository: str, name: str) -> str:
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    with pytest.raises(ValueError, match="cannot load 'qwen/tower'.*no connection"):
        build("encoder", Qwen3OmniConfig(source="qwen/tower"))


def test_wrong_configs_are_refused() -> None:
    with pytest.raises(ValueError, match="encoder qwen3_omni: hears 16000 Hz only, got sample_rate 8000"):
        Qwen3OmniConfig(config={}, sample_rate=8000)
    with pytest.raises(ValueError, match="set output_width: 64"):
        Qwen3OmniConfig(config={"output_dim": 64})
    with pytest.raises(ValueError, match="n_window must be 50, got 25"):
        Qwen3OmniConfig(config={"n_window": 25})
    with pytest.raises(ValueError, match="n_window_infer must be at least 100, got 50"):
        Qwen3OmniConfig(config={"n_window_infer": 50})
    with pytest.raises(ValueError, match="unknown config fields d_modell"):
        build("encoder", Qwen3OmniConfig(config={"d_modell": 8}))
    with pytest.raises(ValueError, match="max_source_positions is 12, but a chunk has 13"):
        encoder("qwen3_omni", max_source_positions=12)
    with pytest.raises(ValueError, match="max_source_positions is 99, but a chunk has 100"):
        encoder("qwen2_5_omni", max_source_positions=99)


def test_wrong_sources_are_refused(tmp_path: Path) -> None:
    def load(source: Path | str, **fields: Any) -> None:
        build("encoder", Qwen3OmniConfig(source=str(source), **{"output_width": WIDTH, **fields}))

    folder = tmp_path / "omni"
    with pytest.raises(ValueError, match="there is no folder"):
        load(folder)
    with pytest.raises(ValueError, match="cannot load 'nobody/nothing'"):
        load("nobody/nothing")
    original = encoder("qwen3_omni")
    write_omni(folder, original, "thinker.audio_tower.", ("thinker_config", "audio_config"))
    with pytest.raises(ValueError, match="have width 6, the recipe promises output_width: 2048; set output_width: 6"):
        load(folder, output_width=2048)
    shard = folder / "model-00001-of-00003.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="00001-of-00003.safetensors is cut off"):
        load(folder)
    shard.unlink()
    with pytest.raises(ValueError, match="lacks model-00001-of-00003.safetensors, which its index names"):
        load(folder)
    shard.write_bytes(content)
    index = folder / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    del weight_map["thinker.audio_tower.proj2.bias"]
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ValueError, match="missing, unknown or of another shape than its config says: proj2.bias"):
        load(folder)
    index.write_text('{"weight_map": {')
    with pytest.raises(ValueError, match="model.safetensors.index.json: not JSON"):
        load(folder)
    index.unlink()
    with pytest.raises(ValueError, match="neither model.safetensors nor model.safetensors.index.json"):
        load(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_size": 8}))
    with pytest.raises(ValueError, match="describes no audio tower"):
        load(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="config.json: not a JSON object"):
        load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match="has no config.json"):
        load(folder)
