"""Mistakes that are found while a model is built: one message that names the key or the file, and nothing lost.

Each of these ended in a traceback; ``run`` has one border that turns them all.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from desk import Desk, make_desk
from runs import Shared
from tiny import TEXTS
from transformers import LlamaConfig, LlamaForCausalLM

from bagpiper.errors import UserError, refusals_are_users
from bagpiper.llms.configs import HfConfig, TokenizerConfig
from bagpiper.llms.tokenizer import TextTokenizer
from bagpiper.training.checkpoints import list_checkpoints


@pytest.fixture
def desk(tmp_path: Path, shared_parts: Shared) -> Desk:
    return make_desk(tmp_path, shared_parts)


@pytest.fixture
def published(desk: Desk) -> Path:
    """An LLM in a folder, which the desk's recipe names as its source."""
    folder = desk.path / "published"
    tokenizer = TextTokenizer.train_bpe(TEXTS, 300)
    with torch.random.fork_rng():
        LlamaForCausalLM(
            LlamaConfig(
                hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=300
            )
        ).save_pretrained(folder)
    tokenizer.save(folder)
    desk.recipe.model.llm = HfConfig(source=str(folder))
    return folder


def told(desk: Desk, *overrides: object) -> str:
    message = desk.untrained(*overrides)
    assert len(message) < 1000
    return message


# -- keys of the recipe --------------------------------------------------------------------------------------------


def test_a_misspelt_lora_target_is_named(desk: Desk) -> None:
    message = told(desk, "stage={name: sft, lora: {rank: 4, targets: [q_proj, v_porj]}}")
    assert "v_porj" in message


@pytest.mark.parametrize("model_type", ["lama", "bert", None, 7, ["llama"], "x" * 5000])
def test_an_unknown_model_type_is_named(desk: Desk, model_type: object) -> None:
    desk.recipe.model.llm = HfConfig(config={"model_type": model_type}, tokenizer=TokenizerConfig(vocab_size=300))
    assert told(desk).startswith("llm")


@pytest.mark.parametrize(
    ("key", "value"),
    [("hidden_size", "wide"), ("num_attention_heads", 5), ("hidden_size", -8), ("rope_parameters", 3), ("colour", 1)],
)
def test_a_field_that_the_llm_does_not_take_is_told(desk: Desk, key: str, value: object) -> None:
    config = {**desk.recipe.model.llm.config, key: value}
    desk.recipe.model.llm = replace(desk.recipe.model.llm, config=config)
    assert told(desk).startswith("llm")


def test_a_hub_name_says_how_to_fetch_it(desk: Desk) -> None:
    assert "hf download some-owner/some-model" in told(desk, "model.llm={name: hf, source: some-owner/some-model}")


# -- files of others -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", b"hello"])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_damaged_file_of_a_published_llm_is_named(desk: Desk, published: Path, name: str, content: bytes) -> None:
    (published / name).write_bytes(content)
    assert name in told(desk)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_missing_file_of_a_published_llm_names_the_folder(desk: Desk, published: Path, name: str) -> None:
    (published / name).unlink()
    assert str(published) in told(desk)


@pytest.mark.parametrize("kept", [0, 3, 8, 100, -1])
def test_a_codec_that_is_cut_off_is_named(desk: Desk, kept: int) -> None:
    path = desk.path / "codec.safetensors"
    whole = Path(str(desk.recipe.model.codec.path)).read_bytes()
    path.write_bytes(whole[:kept])
    message = told(desk, f"model.codec.path={path}")
    assert str(path) in message
    assert "fetch it again" in message


# -- files of a run ------------------------------------------------------------------------------------------------


@pytest.fixture
def two_steps(desk: Desk) -> Desk:
    """A desk with a run that has checkpoints of steps 1 and 2."""
    desk.train("trainer.checkpoint_every=1", "trainer.keep_checkpoints=2")
    assert [checkpoint.step for checkpoint in list_checkpoints(desk.run)] == [1, 2]
    return desk


@pytest.mark.parametrize("content", [b"", b"hello", None])
def test_a_damaged_state_is_told_with_a_way_out(two_steps: Desk, content: bytes | None) -> None:
    newest = list_checkpoints(two_steps.run)[-1]
    whole = newest.state.read_bytes()
    newest.state.write_bytes(whole[: len(whole) // 2] if content is None else content)
    message = two_steps.unresumed("trainer.max_steps=3")
    assert str(newest.state) in message
    assert f"remove {newest.folder} to resume from step-" in message


@pytest.mark.parametrize("name", ["trained.safetensors", "frozen.safetensors", "config.json"])
def test_a_damaged_model_of_a_checkpoint_is_told_with_a_way_out(two_steps: Desk, name: str) -> None:
    newest = list_checkpoints(two_steps.run)[-1]
    path = newest.model / name
    if not path.is_file():
        pytest.skip(f"checkpoints have no {name}")
    path.write_bytes(path.read_bytes()[:100])
    message = two_steps.unresumed("trainer.max_steps=3")
    assert name in message
    assert f"remove {newest.folder}" in message


def test_a_fingerprint_that_is_no_json_is_named(two_steps: Desk) -> None:
    path = two_steps.run / "fingerprint.json"
    path.write_text("{")
    assert f"{path}: not JSON" in two_steps.unresumed("trainer.max_steps=3")


# -- the border ----------------------------------------------------------------------------------------------------


def test_the_border_turns_what_parts_refuse_and_nothing_else() -> None:
    own = UserError("as it is")
    for error, said in [
        (own, "as it is"),
        (ValueError("head.width: 3"), "head.width: 3"),
        (OSError(28, "No space left on device", "/run/x"), "/run/x: No space left on device"),
        (json.JSONDecodeError("bad", "{", 0), "bad: line 1 column 1 (char 0)"),
    ]:
        with pytest.raises(UserError) as turned, refusals_are_users():
            raise error
        assert str(turned.value) == said
    with pytest.raises(ZeroDivisionError), refusals_are_users():
        raise ZeroDivisionError
