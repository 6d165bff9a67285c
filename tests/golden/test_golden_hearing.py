"""Clips, log-mel, the tower's states and the adaptor against the official code (close, its README's limits)."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from golden.test_golden_model import OfficialModel, error

from bagpiper.adaptors.configs import LinearConfig
from bagpiper.component import Adaptor, Encoder
from bagpiper.data.audio import read_clip
from bagpiper.encoders.configs import Qwen3OmniConfig
from bagpiper.recipe.registry import build

pytestmark = pytest.mark.golden

TOWER, ADAPTOR = "multimodal_io_dict.continuous_audio.model.audio_tower.", "adaptor.continuous_audio."
RATE = 16000


def starting_with(weights, prefix):
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


class OfficialHearing(OfficialModel):
    """The official tower and adaptor in our parts, built from the set's own configs."""

    def __init__(self, folder):
        super().__init__(folder)
        fields = json.loads((folder / "audio_tower" / "audio_config.json").read_text())
        fields.pop("model_type")
        config = Qwen3OmniConfig(config=fields, output_width=fields["output_dim"])
        self.encoder: Encoder = build("encoder", config).eval().requires_grad_(False)
        self.encoder.tower.load_state_dict(starting_with(self.weights, TOWER))
        self.linear: Adaptor = build("adaptor", LinearConfig(), width_in=config.width, width_out=self.llm.width)
        self.linear.output.load_state_dict(starting_with(self.weights, ADAPTOR))
        self.plans = json.loads((folder / "preprocess.json").read_text())["examples"]

    def wave(self, clip):
        (path,) = (self.folder / "audio").glob(f"{clip}.*")
        return torch.from_numpy(read_clip(path, RATE, resampler="official"))

    def hear(self, clip):
        """Embeddings of a clip, from its file."""
        return self.linear(self.encoder([self.wave(clip)]))[0]

    def features(self, name):
        """(clip, its feature's plan) of an example, as the official preprocessor gave them."""
        messages = self.conversations[name].messages
        clips = [self.clip_name(name, i) for i, message in enumerate(messages) if message.modality == "audio"]
        return list(zip(clips, self.plans[name]["conti_feats"], strict=True))


@pytest.fixture(scope="module")
def official(golden):
    return OfficialHearing(golden)


def test_features(official):
    """The log-mel of every heard clip, the waveform of every spoken one; clips at other rates are resampled."""
    seen = {"continuous_audio": 0, "discrete_audio": 0}
    for name in official.conversations:
        for clip, plan in official.features(name):
            golden = official.preprocess[plan["feat"]]
            wave = official.wave(clip)
            if plan["io"] == "continuous_audio":
                mel = official.encoder.features(wave)
                assert mel.shape == golden.shape
                assert error(mel, golden) < 1e-4, (name, clip)
            else:
                assert wave.shape == golden[:, 0].shape
                assert error(wave, golden[:, 0]) < 1e-5, (name, clip)
            seen[plan["io"]] += 1
    stored = [key for key in official.preprocess.files if key.startswith("ex/") and "/feat" in key]
    assert sum(seen.values()) == len(stored)
    assert all(seen.values())


def test_soxr_is_another_filter(official):
    """The default resampler gives as many samples, but others."""
    rates = {name: clip["sample_rate"] for name, clip in official.codes_info["clips"].items()}
    others = [name for name, rate in rates.items() if rate != RATE]
    differences = []
    for name in others:
        (path,) = (official.folder / "audio").glob(f"{name}.*")
        ours, theirs = torch.from_numpy(read_clip(path, RATE, resampler="soxr")), official.wave(name)
        assert ours.shape == theirs.shape, name
        differences.append(error(ours, theirs))
    assert max(differences) > 1e-5


def test_states_and_embeddings(official):
    """Every clip alone, and all clips in one call: both are the official states of the clip alone (quirk 4)."""
    clips = list(official.codes_info["clips"])
    waves = [official.wave(clip) for clip in clips]
    together = official.encoder(waves)
    for clip, wave, beside_others in zip(clips, waves, together, strict=True):
        (alone,) = official.encoder([wave])
        golden = official.codes[f"clip/{clip}/encoder_features"]
        assert alone.shape == golden.shape == (official.encoder.config.num_frames(len(wave)), golden.shape[1])
        assert error(alone, golden) < 1e-4, clip
        assert error(beside_others, golden) < 1e-4, clip
        (embeddings,) = official.linear([alone])
        assert error(embeddings, official.codes[f"clip/{clip}/adaptor_output"]) < 1e-4, clip


def test_quirk_4_clips_under_a_second_are_encoded_as_if_alone(official):
    """The official states of a clip under 1 s change beside a longer one; ours do so only with ``isolate: false``."""
    quirk = official.codes_info["quirks"]["batched_features"]
    clips = quirk["clips"]
    waves = [official.wave(clip) for clip in clips]
    sharing = build("encoder", replace(official.encoder.config, isolate=False)).eval().requires_grad_(False)
    sharing.load_state_dict(official.encoder.state_dict())
    for clip, theirs, ours in zip(clips, sharing(waves), official.encoder(waves), strict=True):
        assert error(theirs, official.codes[f"quirk/batched_features/{clip}"]) < 1e-4, clip
        assert error(ours, official.codes[f"clip/{clip}/encoder_features"]) < 1e-4, clip
    assert max(quirk["max_abs_difference_to_one_at_a_time"].values()) > 1e-4, "this set shows no such clip"


def test_from_files_to_loss(official):
    """Nothing given but files, weights and codes: embeddings, hidden states and loss."""
    head = official.head()
    heard = 0
    for name, info in official.info["examples"].items():
        with torch.no_grad():
            batch, embeds, hidden, total, _ = official.forward([name], head)
        golden = official.forward_arrays(name)
        assert error(embeds, golden["inputs_embeds"]) < 1e-4, name
        assert error(hidden, golden["hidden"]) < 1e-4, name
        assert float(total) == pytest.approx(info["loss_sum"], rel=1e-5), name
        heard += len(batch.slots)
    assert heard


def test_lengths_by_formula(official):
    config = official.encoder.config
    for name, clip in official.codes_info["clips"].items():
        assert config.num_frames(clip["samples_16k"]) == clip["encoder_frames"], name
        assert len(official.wave(name)) == clip["samples_16k"], name
