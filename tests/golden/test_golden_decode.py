"""Greedy decoding against the official code, run by run (ids exact, logits within the README's limit)."""

import numpy as np
import pytest
import torch
from golden.official import KINDS, OTHER, RATE, runs_of
from golden.test_golden_model import OfficialModel

from bagpiper.codecs.configs import CodecConfig
from bagpiper.component import Adaptor, Codec, Encoder
from bagpiper.encoders.configs import MelConfig
from bagpiper.inference.generate import generate
from bagpiper.language.conversation import Clip, Conversation
from bagpiper.llms.tokenizer import TextTokenizer
from bagpiper.model import Bagpiper
from bagpiper.recipe.settings import DecodeSettings, GenerationSettings, ModelSettings

pytestmark = pytest.mark.golden

STOPS = {"eos": "eos", "eot": "eot", "max_step": "max_rows"}


class GoldenEncoder(Encoder):
    """The recorded features of a clip whose samples all say its number."""

    def __init__(self, config):
        super().__init__(config)
        self.features = []

    def forward(self, waves):
        return [self.features[int(wave[0])] for wave in waves]


class GoldenAdaptor(Adaptor):
    def __init__(self, linear):
        super().__init__(None)
        self.linear = linear

    def forward(self, states):
        return [self.linear(clip) for clip in states]


class SilentCodec(Codec):
    """Only the rows are compared here."""

    def decode(self, codes):
        return [torch.zeros(len(clip) * self.config.hop) for clip in codes]


@pytest.fixture(scope="module")
def official(golden):
    return OfficialModel(golden)


@pytest.fixture(scope="module")
def model(official):
    codec = CodecConfig(
        hop=320, num_codebooks=official.vocabulary.num_codebooks, codebook_size=official.vocabulary.codebook_size
    )
    settings = ModelSettings(encoder=MelConfig(), codec=codec, text_zero_is_pad=True)
    made = Bagpiper(
        settings,
        TextTokenizer.from_transformers(str(official.folder / "llm")),
        encoder=GoldenEncoder(settings.encoder),
        adaptor=GoldenAdaptor(official.adaptor),
        llm=official.llm,
        codec=SilentCodec(codec),
        head=official.head(),
    )
    made.input_rows, made.output_rows = official.input_rows, official.output_rows
    return made.eval()


@pytest.fixture(scope="module")
def recorded(golden):
    return np.load(golden / "decode.npz")


def official_settings(config):
    def decode(part):
        return DecodeSettings(part["temperature"], part["topk"], part["cfg"], part["max_step"], part["min_step"])

    return GenerationSettings(
        text=decode(config["text"]),
        audio=decode(config["audio"]),
        enforce_pads=False,
        unused_text_ids=True,
        cfg_keeps_assistant=False,
        end_cut_segments=False,
        max_segments=8,
    )


def request_of(official, model, run):
    name, messages = run["prompt_example"], []
    for index, message in enumerate(official.conversations[name].prompt().messages):
        if message.modality == "audio":
            recorded = official.codes[f"clip/{official.clip_name(name, index)}/encoder_features"]
            number = np.full(RATE, len(model.encoder.features), dtype=np.float32)
            model.encoder.features.append(torch.from_numpy(recorded))
            message = type(message)(message.role, "audio", Clip(samples=number, sample_rate=RATE))
        messages.append(message)
    return Conversation(name, tuple(messages))


@pytest.mark.parametrize("kind", [*KINDS, OTHER])
def test_greedy_runs(official, model, recorded, kind):
    for run in runs_of(official.folder, kind):
        steps = []
        answer = generate(
            model,
            [request_of(official, model, run)],
            official_settings(run["config"]),
            seeds=[0],
            plan=run["config"]["enforce_modality"],
            on_step=steps.append,
        )[0]
        asked = [segment["modality"] for segment in run["segments"]]
        assert [segment.modality for segment in answer.segments] == asked, run["name"]
        for number, (segment, expected) in enumerate(zip(answer.segments, run["segments"], strict=True)):
            where = f"{run['name']}/seg{number}"
            assert segment.stop == STOPS[expected["ended_by"]], where
            assert np.array_equal(segment.rows, recorded[f"{where}/rows"]), where
            mine = [step for step in steps if step.segment == number]
            allowed, values = recorded[f"{where}/allowed_counts"], recorded[f"{where}/top5_values"]
            for step, counts, best in zip(mine, allowed, values, strict=True):
                logits = step.logits[0]
                assert (logits > -torch.inf).sum(-1).tolist() == counts[: len(logits)].tolist(), where
                assert (counts[len(logits) :] == 1).all(), where  # padding
                np.testing.assert_allclose(logits.topk(5).values.numpy(), best[: len(logits)], atol=2e-4, err_msg=where)
            if segment.codes is not None:
                assert len(segment.codes) * model.settings.codec.hop == expected["audio_samples"], where


def test_runs_in_one_batch(official, model, recorded):
    """A run that ended itself, decoded beside one that had to go on: for that one END is allowed too early here."""
    pairs = [
        (ending, going_on)
        for ending in runs_of(official.folder, "audio that ends itself")
        for going_on in runs_of(official.folder, "guided audio")
        if ending["config"]["audio"]["cfg"] == going_on["config"]["audio"]["cfg"]
        and ending["prompt_example"] != going_on["prompt_example"]
    ]
    assert pairs
    for pair in pairs:
        requests = [request_of(official, model, run) for run in pair]
        settings = official_settings(pair[0]["config"])
        ended, other = generate(model, requests, settings, seeds=[0, 0], plan=["audio"])
        rows, other_rows = (recorded[f"{run['name']}/seg0/rows"] for run in pair)
        assert np.array_equal(ended.segments[0].rows, rows)
        alike = min(run["config"]["audio"]["min_step"] for run in pair)  # neither has END in its first rows
        assert alike > 1
        assert np.array_equal(other.segments[0].rows[:alike], other_rows[:alike])
