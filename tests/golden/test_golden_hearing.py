"""Clips, log-mel, the tower's states and the adaptor against the official code (close, its README's limits)."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from golden.official import RATE, error
from golden.rounding import exact_resample
from golden.test_golden_model import OfficialModel

from bagpiper.adaptors.configs import LinearConfig
from bagpiper.component import Adaptor, Encoder
from bagpiper.data.audio import read_clip
from bagpiper.encoders.configs import Qwen3OmniConfig
from bagpiper.recipe.registry import build

pytestmark = pytest.mark.golden

TOWER, ADAPTOR = "multimodal_io_dict.continuous_audio.model.audio_tower.", "adaptor.continuous_audio."


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


def resampled(official):
    """Clips at other rates, at least one."""
    clips = [name for name, clip in official.codes_info["clips"].items() if clip["sample_rate"] != RATE]
    assert clips
    return clips


def test_clips_are_resampled_as_the_filter_says(official):
    """All limits here allow for the rounding of the official filter, none for a filter of ours that is another."""
    for clip in resampled(official):
        assert error(official.wave(clip), official.by(exact_resample).wave(clip)) < 1e-6, clip


def test_features(official):
    """The log-mel of every heard clip, the waveform of every spoken one; clips at other rates are resampled."""
    seen = {"continuous_audio": 0, "discrete_audio": 0}
    for name in official.conversations:
        for clip, plan in official.features(name):
            golden = official.preprocess[plan["feat"]]
            if plan["io"] == "continuous_audio":
                official.compare(lambda view, clip=clip: [mel(view, clip)], [golden], [1e-4], (name, clip))
            else:
                official.compare(lambda view, clip=clip: [view.wave(clip)], [golden[:, 0]], [1e-5], (name, clip))
            seen[plan["io"]] += 1
    stored = [key for key in official.preprocess.files if key.startswith("ex/") and "/feat" in key]
    assert sum(seen.values()) == len(stored)
    assert all(seen.values())


def mel(official, clip):
    return official.encoder.features(official.wave(clip))


def test_soxr_is_another_filter(official):
    """The default resampler gives as many samples, but others."""
    differences = []
    for name in resampled(official):
        (path,) = (official.folder / "audio").glob(f"{name}.*")
        ours, theirs = torch.from_numpy(read_clip(path, RATE, resampler="soxr")), official.wave(name)
        assert ours.shape == theirs.shape, name
        differences.append(error(ours, theirs))
    assert max(differences) > 1e-5


def test_states_and_embeddings(official):
    """Every clip alone, and all clips in one call: both are the official states of the clip alone (quirk 4)."""
    clips = list(official.codes_info["clips"])
    states = {clip: official.codes[f"clip/{clip}/encoder_features"] for clip in clips}
    official.compare(lambda view: encode(view.encoder, view, clips), states.values(), [1e-4] * len(clips), "together")
    for clip in clips:
        assert len(states[clip]) == official.encoder.config.num_frames(len(official.wave(clip))), clip
        golden = [states[clip], official.codes[f"clip/{clip}/adaptor_output"]]
        official.compare(lambda view, clip=clip: states_and_embeddings(view, clip), golden, [1e-4, 1e-4], clip)


def encode(encoder, official, clips):
    """States of clips in one call."""
    return encoder([official.wave(clip) for clip in clips])


def states_and_embeddings(official, clip):
    """Of a clip alone."""
    states = encode(official.encoder, official, [clip])
    return [*states, *official.linear(states)]


def test_quirk_4_clips_under_a_second_are_encoded_as_if_alone(official):
    """The official states of a clip under 1 s change beside a longer one; ours do so only with ``isolate: false``."""
    quirk = official.codes_info["quirks"]["batched_features"]
    clips = quirk["clips"]
    sharing = build("encoder", replace(official.encoder.config, isolate=False)).eval().requires_grad_(False)
    sharing.load_state_dict(official.encoder.state_dict())
    beside = [official.codes[f"quirk/batched_features/{clip}"] for clip in clips]
    alone = [official.codes[f"clip/{clip}/encoder_features"] for clip in clips]
    limits = [1e-4] * len(clips)
    official.compare(lambda view: encode(sharing, view, clips), beside, limits, "sharing")
    official.compare(lambda view: encode(view.encoder, view, clips), alone, limits, "isolated")
    assert max(quirk["max_abs_difference_to_one_at_a_time"].values()) > 1e-4, "this set shows no such clip"


def test_from_files_to_loss(official):
    """Nothing given but files, weights and codes: embeddings, hidden states and loss."""
    head = official.head()
    for name, info in official.info["examples"].items():
        arrays = official.forward_arrays(name)
        golden = [arrays["inputs_embeds"], arrays["hidden"], np.float64(info["loss_sum"])]
        limits = [1e-4, 1e-4, 1e-5 * info["loss_sum"]]
        official.compare(lambda view, name=name: view.forward([name], head)[1:4], golden, limits, name)
    assert any(official.grid(name).slots for name in official.info["examples"])


def test_lengths_by_formula(official):
    config = official.encoder.config
    for name, clip in official.codes_info["clips"].items():
        assert config.num_frames(clip["samples_16k"]) == clip["encoder_frames"], name
        assert len(official.wave(name)) == clip["samples_16k"], name
