"""Weights of other programs: whole, or refused with the file's name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from bagpiper.pretrained import fault_of, load_weights, read_pretrained

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 123456\n"
CONFIG = LlamaConfig(
    hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, vocab_size=30, pad_token_id=None
)


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model in a folder, as transformers writes it."""
    folder = tmp_path_factory.mktemp("published")
    with torch.random.fork_rng():
        LlamaForCausalLM(CONFIG).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    for path in published.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def refusal(folder: Path) -> str:
    with pytest.raises(ValueError, match="^llm.source: ") as refused:
        load_weights(LlamaForCausalLM, str(folder), "llm.source")
    return str(refused.value)


# -- files ---------------------------------------------------------------------------------------------------------


@given(
    shapes=st.lists(st.lists(st.integers(0, 3), max_size=3), min_size=1, max_size=4),
    metadata=st.none() | st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2),
    cut=st.floats(0, 1, exclude_max=True),
    more=st.binary(min_size=1, max_size=9),
)
@settings(deadline=None)
def test_a_safetensors_file_is_whole_or_its_fault_is_told(tmp_path_factory, shapes, metadata, cut, more) -> None:
    path = tmp_path_factory.mktemp("any") / "x.safetensors"
    whole = save({str(number): torch.zeros(shape) for number, shape in enumerate(shapes)}, metadata)
    path.write_bytes(whole)
    assert fault_of(path) is None
    path.write_bytes(whole[: int(cut * len(whole))])
    assert fault_of(path)
    path.write_bytes(whole + more)
    assert fault_of(path)


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_bytes_that_are_no_safetensors_are_called_so(tmp_path_factory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "x.safetensors"
    path.write_bytes(content)
    try:
        load_file(path)
    except Exception:  # the library has an exception of its own for everything
        assert fault_of(path)


@pytest.mark.parametrize("name", ["model.safetensors", "model.gguf", "pytorch_model.bin"])
def test_a_pointer_of_git_lfs_says_what_to_run(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(POINTER)
    assert "git lfs pull" in (fault_of(path) or "")


def test_empty_and_unreadable_files_are_told(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.touch()
    assert fault_of(path) == "is empty; copy or fetch it again"
    assert fault_of(tmp_path / "nothing.bin") == "cannot be read (No such file or directory)"


# -- models --------------------------------------------------------------------------------------------------------


def test_a_whole_model_is_loaded_in_float32(published: Path) -> None:
    model = load_weights(LlamaForCausalLM, str(published), "llm.source")
    kept = load_file(published / "model.safetensors")
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in kept.items())
    assert model.dtype is torch.float32


def test_tensors_that_the_file_lacks_are_not_drawn_at_random(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    lost = [name for name in tensors if "layers.1.mlp" in name]
    save_file({name: tensor for name, tensor in tensors.items() if name not in lost}, path, {"format": "pt"})
    message = refusal(folder)
    assert "is not a whole LlamaForCausalLM" in message
    assert sorted(lost)[0] in message


def test_tensors_of_parts_that_are_thrown_away_may_lack(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["lm_head.weight"]
    save_file(tensors, path, {"format": "pt"})
    assert "lm_head.weight" in refusal(folder)
    load_weights(LlamaForCausalLM, str(folder), "encoder.source", part="model.")


def test_tensors_of_another_shape_are_refused(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "hidden_size": 32}))
    assert str(folder) in refusal(folder)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("model.safetensors", POINTER.encode(), "model.safetensors is a pointer of git-lfs"),
        ("model.safetensors", b"", "model.safetensors is empty"),
        ("model.safetensors", b"hello, world", "model.safetensors is not a safetensors file"),
        ("config.json", b"", "config.json is empty"),
        ("config.json", POINTER.encode(), "config.json is a pointer of git-lfs"),
        ("config.json", b"{", "config.json"),
    ],
)
def test_a_damaged_file_is_named(folder: Path, file: str, content: bytes, said: str) -> None:
    (folder / file).write_bytes(content)
    message = refusal(folder)
    assert said in message
    assert "\n" not in message


def test_a_model_without_its_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert str(folder) in refusal(folder)


def test_a_name_that_is_no_folder_says_how_to_fetch_it() -> None:
    with pytest.raises(ValueError, match=re.escape("hf download some-owner/some-model --local-dir weights")) as refused:
        read_pretrained(AutoTokenizer, "some-owner/some-model", "llm.source")
    assert str(refused.value).startswith("llm.source: cannot load 'some-owner/some-model': it is no folder here")
