"""LoRA adaptors folded into the weights, layer by layer (arXiv:2106.09685 section 4.1)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from bagpiper.errors import UserError
from bagpiper.interop.resume import Meter, Progress, check_target, continued_folder, identity_of_folder, silent
from bagpiper.llms.configs import LoraSettings
from bagpiper.llms.lora import ADAPTER
from bagpiper.llms.tokenizer import TextTokenizer
from bagpiper.recipe.load import model_from_dict
from bagpiper.recipe.model_config import read_config
from bagpiper.weights.model_folder import (
    FROZEN,
    TOKENIZER,
    TRAINED,
    build_empty,
    check_fit,
    check_language,
    generation_of,
    read_provenance,
    read_tensors,
    write_records,
)
from bagpiper.weights.safetensors import CHUNK_BYTES, TensorSpec, chunks_of, map_tensors, write_shards

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class _Merged:
    """A tensor of the merged model.

    Attributes:
        base: the tensor before.
        absmax: scales of the base where it is kept in 4 bits.
        down, up: the adaptor ``[rank, in]`` and ``[out, rank]``, if the layer has one.
        spec: of the tensor after.
    """

    base: torch.Tensor
    absmax: torch.Tensor | None
    down: torch.Tensor | None
    up: torch.Tensor | None
    spec: TensorSpec

    def values(self, scale: float) -> Iterator[torch.Tensor]:
        """Blocks of rows of the merged tensor."""
        base = self.base
        if self.absmax is not None:
            from bagpiper.llms.nf4 import dequantize

            out_features, in_features = self.spec.shape
            base = dequantize(base, self.absmax, (out_features, in_features))
        if self.down is None or self.up is None:
            yield base
            return
        step = max(1, CHUNK_BYTES // (4 * base.shape[1]))
        down = self.down.float()
        for start in range(0, len(base), step):
            rows = slice(start, start + step)
            yield base[rows].float() + (self.up[rows].float() @ down) * scale


def merge_folder(folder: Path, out: Path, *, progress: Progress = silent) -> int:
    """Make a model folder without adaptors of one with them; 4-bit layers become float32 again.

    Args:
        folder: the model folder.
        out: the folder to make. A call that was killed is continued by the same call.
        progress: told what is going on.

    Returns:
        Number of layers that were merged.

    Raises:
        UserError: there is nothing to merge, or ``out`` exists.
    """
    check_target(out)
    config = read_config(folder)
    if not config["lora"]:
        raise UserError(f"{folder} has no LoRA adaptors; there is nothing to merge")
    lora = LoraSettings(**config["lora"])
    tensors = read_tensors(folder)
    model = build_empty(folder, config)
    check_fit(model, tensors, folder)
    check_language(model, tensors, config, folder)
    plain = build_empty(folder, {**config, "lora": None})
    merged = {name: _find(name, tuple(own.shape), tensors) for name, own in plain.state_dict().items()}
    trained = set(map_tensors(folder, TRAINED))
    groups: dict[str, dict[str, TensorSpec]] = {TRAINED: {}, FROZEN: {}}
    for name, item in merged.items():
        groups[TRAINED if item.up is not None or name in trained else FROZEN][name] = item.spec
    advance = Meter(progress, "merging", sum(item.spec.num_bytes for item in merged.values()))
    scale = lora.alpha / lora.rank
    with continued_folder(out, {"what": "merge", "source": identity_of_folder(folder)}) as made:
        for stem, specs in groups.items():
            write_shards(
                made,
                stem,
                specs,
                lambda name: chunks_of(merged[name].values(scale), merged[name].spec.dtype),
                advance=advance,
            )
        TextTokenizer.load(folder / TOKENIZER).save(made / TOKENIZER)
        write_records(
            made,
            fingerprint=config["fingerprint"],
            text_size=config["text_size"],
            model=model_from_dict(config["model"]),
            generation=generation_of(folder),
            lora=None,
            stage=config["stage"],
            provenance={**read_provenance(folder), "merged_from": str(folder), "lora": config["lora"]},
            sizes={stem: len(specs) for stem, specs in groups.items()},
        )
    return sum(item.up is not None for item in merged.values())


def _find(name: str, shape: tuple[int, ...], tensors: Tensors) -> _Merged:
    """What a tensor of the merged model is made of."""
    layer, _, leaf = name.rpartition(".")
    prefix = f"{layer}.base_layer." if f"{layer}.base_layer.{leaf}" in tensors else f"{layer}."
    base = tensors[prefix + leaf] if layer else tensors[name]
    absmax = tensors.get(f"{prefix}absmax") if leaf == "weight" else None
    adaptors = [tensors.get(f"{layer}.lora_{side}.{ADAPTER}.weight") if leaf == "weight" else None for side in "AB"]
    dtype = torch.float32 if absmax is not None else base.dtype
    return _Merged(base, absmax, adaptors[0], adaptors[1], TensorSpec(dtype, shape))
