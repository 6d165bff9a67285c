"""Model folders out, as official checkpoints (spec sections 7.2 and 8)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from bagpiper.errors import UserError, shown
from bagpiper.interop.espnet_file import write_checkpoint
from bagpiper.interop.names import VOCAB_WEIGHT, official_shapes, pieces_of_official
from bagpiper.interop.resume import Meter, Progress, check_target, continued_file, identity_of_folder, silent
from bagpiper.model import Bagpiper
from bagpiper.recipe import registry
from bagpiper.recipe.model_config import read_config
from bagpiper.weights.model_folder import build_empty, check_fit, check_language, read_provenance, read_tensors
from bagpiper.weights.safetensors import TensorSpec, chunks_of, spec_of

_PARTS = {
    "encoder": ("qwen3_omni", "qwen2_5_omni"),
    "adaptor": ("linear",),
    "llm": ("hf",),
    "codec": ("xcodec",),
    "head": ("parallel",),
}
"""Parts that the official code has."""


def export_espnet(
    folder: Path, out: Path, *, dtype: torch.dtype | None = None, progress: Progress = silent
) -> dict[str, TensorSpec]:
    """Write a model folder as an official checkpoint.

    What was not trained since an import has the bits it came with. A call that was killed is continued by the same
    call.

    Args:
        folder: the model folder.
        out: the ``.pt`` file.
        dtype: of all floats but ``vocab_weight``; None means that of the file the model was imported from, or
            bfloat16, the official one.
        progress: told what is going on.

    Returns:
        What was written.

    Raises:
        UserError: the file exists, or the official code has no such model (LoRA not merged, other parts).
    """
    check_target(out)
    config = read_config(folder)
    check_merged(folder, config)
    model = build_empty(folder, config)
    _check_parts(folder, model)
    tensors = read_tensors(folder)
    check_fit(model, tensors, folder)
    check_language(model, tensors, config, folder)
    weights = torch.from_numpy(model.vocabulary.token_weights(model.template.stream_weights))
    specs = _specs(model, tensors, weights, read_provenance(folder), dtype)

    def chunks(name: str) -> Iterator[memoryview]:
        if name == VOCAB_WEIGHT:
            return chunks_of([weights], specs[name].dtype)
        return chunks_of(official_rows(tensors, name), specs[name].dtype)

    plan = {
        "what": "export",
        "source": identity_of_folder(folder),
        "dtypes": {name: str(spec.dtype) for name, spec in specs.items()},
    }
    with continued_file(out, plan) as partial:
        total = sum(spec.num_bytes for spec in specs.values())
        write_checkpoint(partial, specs, chunks, Meter(progress, "writing", total))
    return specs


def official_rows(tensors: Mapping[str, torch.Tensor], name: str) -> list[torch.Tensor]:
    """Views of our tensors that make up an official one."""
    pieces = pieces_of_official(name)
    return [tensors[p.name][p.start : p.stop] if p.start or p.stop else tensors[p.name] for p in pieces]


def check_merged(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse adaptors, for which other formats have no place.

    Raises:
        UserError: the model has LoRA adaptors.
    """
    if config["lora"]:
        raise UserError(
            f"{folder} has LoRA adaptors; fold them into the weights first: bagpiper convert merge {folder} -o MERGED"
        )


def _check_parts(folder: Path, model: Bagpiper) -> None:
    for kind, allowed in _PARTS.items():
        name = registry.name_of(kind, getattr(model.settings, kind))
        if name not in allowed:
            raise UserError(f"{folder}: {kind} '{name}' has no place in the official format, only {', '.join(allowed)}")
    if model.settings.pattern not in ("delay", "parallel"):
        raise UserError(f"{folder}: the official code has no codebook pattern {shown(model.settings.pattern)}")


def _specs(
    model: Bagpiper,
    tensors: Mapping[str, torch.Tensor],
    weights: torch.Tensor,
    provenance: Mapping[str, Any],
    dtype: torch.dtype | None,
) -> dict[str, TensorSpec]:
    """Names, dtypes and shapes of the official file, in its order."""
    recorded = find_official(provenance)
    usual = dtype or getattr(torch, recorded.get("dtype", "bfloat16"))
    special = {} if dtype else {n: getattr(torch, d) for n, d in recorded.get("exceptions", {}).items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    specs = {}
    for name, shape in official_shapes(shapes, model.vocabulary).items():
        is_weight = name == VOCAB_WEIGHT
        source = weights if is_weight else tensors[pieces_of_official(name)[0].name]
        wanted = special.get(name, torch.float32 if is_weight else usual)
        specs[name] = TensorSpec(spec_of(source, wanted).dtype, shape)
    return specs


def find_official(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What an import has recorded about the official file, through any number of runs since."""
    if "official" in provenance:
        return dict(provenance["official"])
    before = provenance.get("started_from")
    return find_official(before["provenance"]) if before else {}
