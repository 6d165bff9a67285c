"""Decoding with the real parts: an LLM of transformers, the fitted codec, the trained tokenizer."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from rough import check_within_rounding
from tiny import noise, tiny_model

from bagpiper.batch import Spans
from bagpiper.codecs.configs import RvqConfig
from bagpiper.heads.configs import DepthConfig
from bagpiper.inference.generate import Step, generate
from bagpiper.language.conversation import Clip, Conversation, Message
from bagpiper.language.vocabulary import ASSISTANT, AUDIO, TEXT
from bagpiper.model import Bagpiper
from bagpiper.recipe.settings import DecodeSettings, GenerationSettings


@pytest.fixture(scope="module", params=["parallel", "depth"])
def parts(request: pytest.FixtureRequest) -> Bagpiper:
    if request.param == "parallel":
        return tiny_model()
    return tiny_model(
        head=DepthConfig(width=16, layers=2, heads=2),
        codec=RvqConfig(num_codebooks=3, codebook_size=8, num_mels=20, griffin_lim=2),
    )


def settings(temperature: float) -> GenerationSettings:
    return GenerationSettings(
        text=DecodeSettings(temperature=temperature, max_rows=8, min_rows=2),
        audio=DecodeSettings(temperature=temperature, cfg=2.0, max_rows=10, min_rows=2),
    )


REQUESTS = [
    Conversation("text", (Message("user", "text", "a loud bell on C5, then soft rain"),)),
    Conversation("heard", (Message("user", "audio", Clip(samples=noise(0.5, 0), sample_rate=16000)),)),
    Conversation("short", (Message("user", "text", "rain"),)),
]


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_three_together_equal_three_alone(parts: Bagpiper, temperature: float) -> None:
    logits: dict[int, list[torch.Tensor]] = {0: [], 1: [], 2: []}

    def watch(step: Step) -> None:
        for number, row in zip(step.conversations, step.logits, strict=True):
            logits[number].append(row)

    plan = ("text", "audio")
    together = generate(parts, REQUESTS, settings(temperature), seeds=[1, 2, 3], plan=plan, on_step=watch)
    for number, request in enumerate(REQUESTS):
        expected = logits[number]
        logits[0] = []
        alone = generate(parts, [request], settings(temperature), seeds=[number + 1], plan=plan, on_step=watch)[0]
        for one, other in zip(alone.segments, together[number].segments, strict=True):
            assert np.array_equal(one.rows, other.rows)
            assert one.text == other.text
            if one.samples is not None:
                np.testing.assert_allclose(one.samples, other.samples, atol=1e-4)
        for mine, its in zip(logits[0], expected, strict=True):
            check_within_rounding(mine, its)


def test_decoding_equals_the_training_forward_pass(parts: Bagpiper) -> None:
    """The answer's grid, run as a pack without a cache, gives the logits that each row was drawn from."""
    plain = settings(0.9)
    plain = dataclasses.replace(plain, audio=dataclasses.replace(plain.audio, cfg=1.0))
    steps: list[Step] = []
    request = REQUESTS[0]
    answer = generate(parts, [request], plain, seeds=[5], plan=["text", "audio"], on_step=steps.append)[0]
    text, audio = answer.segments
    prompt = parts.template.grid(request, next_role="assistant").ids
    marks = np.zeros((2, 2, prompt.shape[1]), dtype=np.int64)
    marks[:, 0, 0], marks[0, 1, 0], marks[1, 1, 0] = ASSISTANT, TEXT, AUDIO
    ids = torch.from_numpy(np.concatenate([prompt, marks[0], text.rows, marks[1], audio.rows]))
    spans = Spans(torch.tensor([0, len(ids)], dtype=torch.int32), (len(ids),))
    with torch.no_grad():
        hidden = parts.llm(parts.embed_rows(ids)[None], torch.arange(len(ids))[None], spans=spans)[0]
        expected = parts.logits(hidden[:-1], ids=ids[1:])
    starts = (len(prompt) + 2, len(prompt) + 4 + len(text.rows))
    for step in steps:
        row = expected[starts[step.segment] + step.row - 1]
        wanted = torch.stack([row[stream, ids] for stream, ids in enumerate(step.candidates)])
        drawn = step.logits[0] > -torch.inf
        check_within_rounding(step.logits[0][drawn], wanted[drawn])
    # what was said is what training would see: the template makes the same rows of the same messages
    said = parts.template.grid(
        dataclasses.replace(request, messages=(*request.messages, answer.conversation.messages[-1])),
        codes={1: audio.codes},
    )
    assert np.array_equal(said.ids[-len(audio.rows) : -1], audio.rows[:-1])


def test_the_codec_gives_the_samples(parts: Bagpiper) -> None:
    segment = generate(parts, REQUESTS[:1], settings(0.9), seeds=[1], plan=["audio"])[0].segments[0]
    assert segment.codes is not None
    assert segment.samples is not None
    assert segment.samples.dtype == np.float32
    assert len(segment.samples) == parts.settings.codec.num_samples(len(segment.codes))
    expected = parts.codec.decode([torch.from_numpy(segment.codes)])[0]
    np.testing.assert_allclose(segment.samples, expected.numpy(), atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_gpu_draws_the_same_rows(temperature: float) -> None:
    plan = ("text", "audio")
    expected = generate(tiny_model(), REQUESTS, settings(temperature), seeds=[1, 2, 3], plan=plan)
    found = generate(tiny_model().to("cuda"), REQUESTS, settings(temperature), seeds=[1, 2, 3], plan=plan)
    for one, other in zip(found, expected, strict=True):
        assert [segment.rows.tolist() for segment in one.segments] == [s.rows.tolist() for s in other.segments]
