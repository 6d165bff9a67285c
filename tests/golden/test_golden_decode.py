"""Greedy decoding against the official code, run by run (ids exact, logits within the README's limit)."""

import json

import numpy as np
import pytest
import torch
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

RUNS = (
    "text24/dlg_understand",
    "text24/dlg_generate",
    "audio_cfg1/dlg_generate",
    "audio_cfg3/dlg_generate",
    "text_audio/dlg_tts_nosys",
    "text_audio_maxstep/dlg_generate",
    "audio_natural/dlg_tts_nosys",
    "free/dlg_id0",
    "free/text_short",
)
STOPS = {"eos": "eos", "eot": "eot", "max_step": "max_rows"}


class GoldenEncoder(Encoder):
    """The recorded features of one clip, whatever is heard."""

    features = torch.empty(0)

    def forward(self, waves):
        return [self.features for _ in waves]


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
    runs = {run["name"]: run for run in json.loads((golden / "decode.json").read_text())["runs"]}
    return runs, np.load(golden / "decode.npz")


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


def request_of(official, model, name):
    prompt = official.conversations[name].prompt()
    messages = []
    for message in prompt.messages:
        if message.modality == "audio":
            clip = message.clip.path.split("/")[-1].rsplit(".", 1)[0]
            model.encoder.features = torch.from_numpy(official.codes[f"clip/{clip}/encoder_features"])
            silence = Clip(samples=np.zeros(16000, dtype=np.float32), sample_rate=16000)
            message = type(message)(message.role, "audio", silence)
        messages.append(message)
    return Conversation(name, tuple(messages))


@pytest.mark.parametrize("name", RUNS)
def test_greedy_runs(official, model, recorded, name):
    runs, arrays = recorded
    run = runs[name]
    steps = []
    answer = generate(
        model,
        [request_of(official, model, run["prompt_example"])],
        official_settings(run["config"]),
        seeds=[0],
        plan=run["config"]["enforce_modality"],
        on_step=steps.append,
    )[0]
    assert [segment.modality for segment in answer.segments] == [segment["modality"] for segment in run["segments"]]
    for number, (segment, expected) in enumerate(zip(answer.segments, run["segments"], strict=True)):
        prefix = f"{name}/seg{number}"
        assert segment.stop == STOPS[expected["ended_by"]]
        assert np.array_equal(segment.rows, arrays[f"{prefix}/rows"])
        mine = [step for step in steps if step.segment == number]
        for step, counts, values in zip(
            mine, arrays[f"{prefix}/allowed_counts"], arrays[f"{prefix}/top5_values"], strict=True
        ):
            logits = step.logits[0]
            assert (logits > -torch.inf).sum(-1).tolist() == counts[: len(logits)].tolist()
            assert (counts[len(logits) :] == 1).all()  # padding
            np.testing.assert_allclose(logits.topk(5).values.numpy(), values[: len(logits)], atol=2e-4)
        if segment.codes is not None:
            assert len(segment.codes) * model.settings.codec.hop == expected["audio_samples"]


def test_runs_in_one_batch(official, model, recorded):
    """The same prompts decoded together, and with the text of the ones that have ended waiting."""
    runs, arrays = recorded
    names = ["audio_natural/dlg_tts_nosys", "audio_cfg3/dlg_generate"]
    config = runs[names[0]]["config"]
    requests = [request_of(official, model, runs[name]["prompt_example"]) for name in names]
    answers = generate(model, requests, official_settings(config), seeds=[0, 0], plan=["audio"])
    assert np.array_equal(answers[0].segments[0].rows, arrays[f"{names[0]}/seg0/rows"])
    # the second prompt was recorded with min_step 20; its first nine rows are free of END either way
    assert np.array_equal(answers[1].segments[0].rows[:9], arrays[f"{names[1]}/seg0/rows"][:9])
