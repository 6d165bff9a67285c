"""An LLM has so many positions: longer examples are refused, longer requests too, and answers end at the last one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import tiny_recipe
from tiny import tiny_model

from bagpiper.api import Pipeline
from bagpiper.errors import UserError
from bagpiper.language.conversation import Conversation, Message
from bagpiper.llms.configs import HfConfig, TokenizerConfig
from bagpiper.recipe.settings import DecodeSettings, GenerationSettings
from bagpiper.run import run

LEARNED = {"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 80}
ROTARY = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 80,
}


@pytest.mark.parametrize("fields", [LEARNED, ROTARY], ids=["learned", "rotary"])
def test_examples_longer_than_the_positions_are_refused_or_counted(
    tmp_path: Path, shared_parts: Any, fields: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Learned positions ended in a traceback, rotary ones trained on places that the LLM was never meant to see."""
    recipe = tiny_recipe(tmp_path / "run", shared_parts, max_steps=1)
    recipe.model.llm = HfConfig(config=fields, tokenizer=TokenizerConfig(vocab_size=300))
    with pytest.raises(UserError, match=r"jsonl:\d+: \d+ rows, but the LLM has 80 positions; shorten it, or take an"):
        run(recipe)
    recipe.run_dir = str(tmp_path / "other")
    recipe.data = replace(recipe.data, on_bad_example="skip")
    run(recipe)
    assert "more rows than positions" in capsys.readouterr().out


def piper(positions: int, **audio: Any) -> Pipeline:
    fields = {"max_position_embeddings": positions}
    generation = GenerationSettings(
        text=DecodeSettings(max_rows=500, min_rows=500),
        audio=DecodeSettings(max_rows=500, min_rows=400, cfg=1.0, **audio),
    )
    return Pipeline(tiny_model(llm=fields), generation)


def test_an_answer_ends_where_no_position_is_left_and_says_so() -> None:
    """The rotary LLM once went on without a word."""
    model = piper(64)
    asked = [[Message("user", "text", "a bell")], [Message("user", "text", "rain, then two knocks, and a loud bell")]]
    with pytest.warns(UserWarning, match=r"2 of 2 answers ended where the LLM has no position left \(it has 64\)"):
        answers = model.answer(asked, ["text", "audio"])
    for request, answer in zip(asked, answers, strict=True):
        (segment,) = answer.segments  # no room for the planned sound
        assert segment.stop == "positions"
        (alone,) = model.answer([request], ["text", "audio"])
        assert alone.text == answer.text, "a shorter mate changes nothing"
        prompt = model.model.template.grid(Conversation("r", tuple(request)), next_role="assistant")
        assert len(prompt) + 1 + len(segment.rows) == 64 - 2, "room is left for what follows a segment"


def test_a_request_longer_than_the_positions_is_refused() -> None:
    with pytest.raises(UserError, match=r"request 1: the request takes \d+ rows, but the LLM has 16 positions"):
        piper(16).render("a loud bell on C5, then soft rain, then two knocks")


def test_positions_do_not_matter_where_there_are_enough() -> None:
    few, many = piper(200, top_k=5), piper(4000, top_k=5)
    few.model.load_state_dict(many.model.state_dict())
    with pytest.warns(UserWarning, match="stopped at the limit of 51 rows"):
        short, long = (model.render("a bell", max_seconds=2.0)[0] for model in (few, many))
    assert torch.equal(torch.from_numpy(short), torch.from_numpy(long))
