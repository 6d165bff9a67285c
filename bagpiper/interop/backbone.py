"""The text-only LLM of a model as a folder of transformers, with the LLM's original ids."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import torch

from bagpiper.files import write_text
from bagpiper.interop.espnet_export import check_merged
from bagpiper.interop.resume import Meter, Progress, check_target, continued_folder, identity_of_folder, silent
from bagpiper.llms.sources import config_from_fields
from bagpiper.llms.tokenizer import TextTokenizer
from bagpiper.recipe.model_config import read_config
from bagpiper.weights.model_folder import TOKENIZER, build_empty, check_fit, check_language, read_tensors
from bagpiper.weights.safetensors import chunks_of, plan_shards, shard_file, spec_of, write_shards

STEM = "model"
_CARD = """The text-only LLM of the bagpiper model {name}, with the LLM's own ids (`AutoModelForCausalLM`).

Left out, because no class of transformers holds it: hearing (encoder, adaptor), sounds (codec, the rows of its ids,
stream embeddings) and the rows of the special tokens that mark roles, modalities and ends. So this model continues
text; it does not know the conversations that it was trained on, and no chat template comes with it.
"""


def export_backbone(
    folder: Path, out: Path, *, dtype: torch.dtype | None = None, progress: Progress = silent
) -> dict[str, str]:
    """Write the LLM by itself: its layers, its text rows and the tokenizer.

    Args:
        folder: the model folder.
        out: the folder to make. A call that was killed is continued by the same call.
        dtype: of the weights; None keeps what is there.
        progress: told what is going on.

    Returns:
        Names in the new folder and what they were called before.

    Raises:
        UserError: ``out`` exists, or LoRA is not merged.
    """
    check_target(out)
    config = read_config(folder)
    check_merged(folder, config)
    model = build_empty(folder, config)
    tensors = read_tensors(folder)
    check_fit(model, tensors, folder)
    check_language(model, tensors, config, folder)
    hf_config = config_from_fields(model.llm.portable_config().config or {}, config["text_size"])
    names, class_name = _names(hf_config)
    specs = {name: spec_of(tensors[own], dtype) for name, own in names.items()}
    with continued_folder(out, {"what": "backbone", "source": identity_of_folder(folder), "dtype": str(dtype)}) as made:
        advance = Meter(progress, "writing", sum(spec.num_bytes for spec in specs.values()))
        write_shards(made, STEM, specs, lambda n: chunks_of([tensors[names[n]]], specs[n].dtype), advance=advance)
        _write_index(made, specs)
        hf_config.architectures = [class_name]
        # what transformers loads all tensors in: none must be rounded
        hf_config.dtype = reduce(torch.promote_types, (spec.dtype for spec in specs.values()))
        hf_config.save_pretrained(made)
        TextTokenizer.load(folder / TOKENIZER).save(made)
        write_text(made / "tokenizer_config.json", json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}) + "\n")
        write_text(made / "README.md", _CARD.format(name=folder.resolve().name))
    return names


def _names(hf_config: Any) -> tuple[dict[str, str], str]:
    """Names in transformers' causal LM and ours, and the name of its class."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        causal_lm = AutoModelForCausalLM.from_config(hf_config)
    rows = {id(causal_lm.get_output_embeddings().weight): "output_rows.text"}
    rows[id(causal_lm.get_input_embeddings().weight)] = "input_rows.text"
    base = f"{causal_lm.base_model_prefix}."
    names = {
        name: rows.get(id(tensor), f"llm.model.{name.removeprefix(base)}")
        for name, tensor in causal_lm.state_dict(keep_vars=True).items()
    }
    if hf_config.tie_word_embeddings:  # written once, as transformers does
        first = next(name for name, own in names.items() if own == "input_rows.text")
        names = {name: own for name, own in names.items() if own != "input_rows.text" or name == first}
    return names, type(causal_lm).__name__


def _write_index(folder: Path, specs: Mapping[str, Any]) -> None:
    """The list of files that transformers wants where there are several."""
    plan = plan_shards(specs)
    if len(plan) == 1:
        return
    files = {name: shard_file(STEM, number, len(plan)) for number, names in enumerate(plan) for name in names}
    total = sum(spec.num_bytes for spec in specs.values())
    content = {"metadata": {"total_size": total}, "weight_map": files}
    write_text(folder / "model.safetensors.index.json", json.dumps(content, indent=2) + "\n")
