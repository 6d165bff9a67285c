"""Mistakes that are found while a model is built: one message that names the key or the file, and nothing lost.

Each of these ended in a traceback; ``run`` has one border that turns them all.
"""

from __future__ import annotations

import json
import shutil
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from desk import Desk, make_desk
from runs import Shared
from safetensors import safe_open
from safetensors.torch import save_file
from tiny import TEXTS
from transformers import LlamaConfig, LlamaForCausalLM

from bagpiper.data.codes import _HEADER, CodeCache
from bagpiper.encoders.configs import WhisperConfig
from bagpiper.errors import UserError, refusals_are_users
from bagpiper.llms.configs import HfConfig, TokenizerConfig
from bagpiper.llms.tokenizer import TextTokenizer
from bagpiper.training.checkpoints import list_checkpoints
from bagpiper.training.run_folder import read_recipe


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


@pytest.mark.parametrize("changes", [{"d_model": -4}, {"encoder_ffn_dim": -1}])
def test_sizes_of_an_encoder_that_cannot_be_are_told(desk: Desk, changes: dict[str, int]) -> None:
    config = {"d_model": 8, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 8, "num_mel_bins": 80}
    desk.recipe.model.encoder = WhisperConfig(config=config | changes, output_width=(config | changes)["d_model"])
    assert "encoder" in told(desk)


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


@pytest.mark.parametrize(("key", "value"), [("hidden_size", 32), ("vocab_size", 301), ("num_hidden_layers", 2)])
def test_a_config_that_is_not_that_of_the_weights_is_told(desk: Desk, published: Path, key: str, value: int) -> None:
    path = published / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    message = told(desk)
    assert str(published) in message and "ignore_mismatched" not in message


def test_weights_that_are_quantized_are_told(desk: Desk, published: Path) -> None:
    path = published / "config.json"
    marked = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": marked}))
    assert "are quantized ('bitsandbytes')" in told(desk)


def test_a_config_with_fewer_layers_than_the_weights_is_told(desk: Desk, published: Path) -> None:
    """Half of the LLM was trained, without a word."""
    path = published / "config.json"
    config = LlamaConfig.from_pretrained(published)
    config.num_hidden_layers = 2
    with torch.random.fork_rng():
        LlamaForCausalLM(config).save_pretrained(published)
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": 1}))
    assert "more layers than its config.json says (model.layers.1." in told(desk)


@pytest.mark.parametrize("fault", ["no config", "odd config", "a tensor less", "another shape", "nan"])
def test_a_codec_with_other_content_is_told(desk: Desk, fault: str) -> None:
    whole = Path(str(desk.recipe.model.codec.path))
    with safe_open(whole, "pt") as file:
        header = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    first = next(name for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.ndim > 1)
    if fault == "no config":
        del header["config"]
    elif fault == "odd config":
        header["config"] = "[]"
    elif fault == "a tensor less":
        del tensors[first]
    elif fault == "another shape":
        tensors[first] = tensors[first][:1].clone()
    else:
        tensors[first] = tensors[first] * torch.nan
    path = desk.path / "codec.safetensors"
    save_file(tensors, path, header)
    assert str(path) in told(desk, f"model.codec.path={path}")


def test_codes_beyond_the_codebook_are_told(desk: Desk) -> None:
    """A cache with a right checksum and wrong codes ended in a traceback of 100 lines."""
    desk.recipe.data.cache = str(desk.path / "cache")
    desk.train("trainer.max_steps=1")
    for path in (desk.path / "cache").rglob("*.codes"):
        codes = CodeCache._load(path)
        body = np.full_like(codes, 8, dtype="<i2").tobytes()
        path.write_bytes(_HEADER.pack(b"bpcodes1", zlib.crc32(body), *codes.shape, 2) + body)
    message = told(desk, f"run_dir={desk.path / 'another'}")
    assert "not all from 0 to 7" in message and "remove the cache folder" in message


def test_clips_beyond_the_reach_of_the_encoder_are_told_before_training(desk: Desk) -> None:
    """The first step found it, with a traceback."""
    config = {"d_model": 8, "encoder_layers": 1, "encoder_attention_heads": 1, "encoder_ffn_dim": 8}
    config |= {"num_mel_bins": 80, "max_source_positions": 40}
    desk.recipe.model.encoder = WhisperConfig(config=config, output_width=8)
    message = desk.untrained()
    assert "states, but the encoder's positions reach 40" in message


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


def test_a_refused_resume_leaves_the_folder_as_it_was(two_steps: Desk) -> None:
    """The recipe and the records of a refused plan were kept, and the next resume followed them."""
    before = {
        path: path.read_bytes() for path in two_steps.run.rglob("*") if path.is_file() and "cache" not in path.parts
    }
    changed = [f"data.soundscapes.folder={two_steps.path / 'another'}", "data.soundscapes.train=20"]
    kept = ["trainer.max_steps=9", "optimizer.decay_end_step=100"]
    assert "cannot change" in two_steps.unresumed(*changed, *kept)
    corpus = Path(read_recipe(two_steps.run)["data"]["soundscapes"]["folder"]) / "train.jsonl"
    lines = corpus.read_text()
    try:
        corpus.write_text(lines.replace("caption", "Caption", 0).replace("sound", "noise"))
        message = two_steps.unresumed(*kept)
    finally:
        corpus.write_text(lines)
    assert "not that of the checkpoint" in message
    after = {
        path: path.read_bytes() for path in two_steps.run.rglob("*") if path.is_file() and "cache" not in path.parts
    }
    assert before.keys() == after.keys()
    assert [path for path in before if before[path] != after[path]] == []


@pytest.mark.parametrize("content", ["", "{", "[1]", "version https://git-lfs.github.com/spec/v1"])
@pytest.mark.parametrize("name", ["started_from.json", "fingerprint.json", "metrics.jsonl"])
def test_a_damaged_record_is_named_before_anything_is_trained(two_steps: Desk, name: str, content: str) -> None:
    """`started_from.json` was read when a checkpoint was written: the steps so far were lost."""
    if name == "metrics.jsonl":
        content += "\n"
    (two_steps.run / name).write_text(content)
    assert name in two_steps.unresumed("trainer.max_steps=3")
    assert list_checkpoints(two_steps.run)[-1].step == 2


def test_the_way_out_of_a_run_without_an_older_checkpoint(desk: Desk) -> None:
    """It was advised to remove the checkpoint and to begin again, which `model/` forbids."""
    desk.train()
    (only,) = list_checkpoints(desk.run)
    only.state.write_bytes(b"")
    message = desk.unresumed("trainer.max_steps=3")
    assert f"start_from={only.model}" in message
    desk.train(f"start_from={only.model}", f"run_dir={desk.path / 'another'}")
    shutil.rmtree(only.folder)
    message = desk.unresumed("trainer.max_steps=3")
    assert f"start_from={desk.run / 'model'}" in message
    desk.train(f"start_from={desk.run / 'model'}", f"run_dir={desk.path / 'third'}")


def test_a_state_of_something_else_is_told(two_steps: Desk) -> None:
    newest = list_checkpoints(two_steps.run)[-1]
    torch.save({"model": 1}, newest.state)
    assert f"{newest.state} is no state of a run" in two_steps.unresumed("trainer.max_steps=3")


def test_a_state_without_that_of_the_optimizer_is_told(two_steps: Desk) -> None:
    """Of a run that is spread it stands in a folder beside."""
    newest = list_checkpoints(two_steps.run)[-1]
    state = torch.load(newest.state, weights_only=True)
    del state["optimizer_states"]
    torch.save(state, newest.state)
    assert "has no optimizer's state, nor has optimizer/ beside it" in two_steps.unresumed("trainer.max_steps=3")


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
