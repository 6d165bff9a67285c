"""LoRA and QLoRA on an LLM's linear layers (arXiv:2106.09685, arXiv:2305.14314), through peft and bitsandbytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from bagpiper.component import Backbone
from bagpiper.llms.configs import LoraSettings

if TYPE_CHECKING:
    from bagpiper.llms.nf4 import Nf4Linear

ADAPTER = "default"
ALL_LINEAR = "all-linear"


def add_lora(backbone: Backbone, settings: LoraSettings) -> list[str]:
    """Freeze the backbone and put low-rank adaptors beside its linear layers; at first they change nothing.

    The layers are replaced inside the backbone (no wrapper): their weights move to ``...base_layer.weight``.

    Args:
        backbone: changed in place; on any device, the meta device too.
        settings: rank, targets and quantisation.

    Returns:
        Names of the parameters that train, as in the backbone's state dict.

    Raises:
        ValueError: a target names no layer, or the backbone has adaptors already.
    """
    from peft import LoraConfig, inject_adapter_in_model

    if _lora_layers(backbone):
        raise ValueError("stage.lora: this LLM has LoRA adaptors already; merge them first")
    if settings.rank < 1:
        raise ValueError(f"stage.lora.rank must be at least 1, got {settings.rank}")
    targets = _find_targets(backbone.body, settings.targets)
    backbone.body.requires_grad_(False)
    if settings.quantize == "nf4":
        quantize_nf4(backbone)
    inject_adapter_in_model(
        LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,  # type: ignore[arg-type]  # declared int; only alpha / rank is used
            lora_dropout=settings.dropout,
            target_modules=targets,
            bias="none",
        ),
        backbone.body,
        adapter_name=ADAPTER,
    )
    return [name for name, parameter in backbone.named_parameters() if parameter.requires_grad]


def merge_lora(backbone: Backbone) -> None:
    """Add the adaptors to the weights and remove them; quantised layers become ordinary float32 layers again."""
    for name, layer in _changed_layers(backbone).items():
        backbone.body.set_submodule(name, merged_layer(layer))


def merged_layer(layer: Any) -> nn.Linear:
    """An ordinary layer that computes what a layer with adaptors, or a quantised one, computes; that one stays."""
    from bagpiper.llms.nf4 import Nf4Linear

    base = layer if isinstance(layer, Nf4Linear) else layer.get_base_layer()
    if isinstance(base, Nf4Linear):
        merged = base.to_linear()
    else:
        merged = nn.Linear(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
        merged.weight = nn.Parameter(base.weight.detach().clone(), requires_grad=False)
        if base.bias is not None:
            merged.bias = nn.Parameter(base.bias.detach().clone(), requires_grad=False)
    if layer is not base:
        with torch.no_grad():
            merged.weight += layer.get_delta_weight(ADAPTER).to(merged.weight)
    return merged


@contextmanager
def merged_for_a_while(backbone: Backbone) -> Iterator[None]:
    """Inside the block the backbone computes what ``merge_lora`` would leave; afterwards it is as it was.

    Every layer is merged anew whenever it is called, so that one merged layer exists at a time: all of them would be
    32 GB for an 8B model with a base of 4 bits.
    """
    layers = _changed_layers(backbone)
    for layer in layers.values():
        layer.forward = lambda states, *_, layer=layer, **__: merged_layer(layer)(states)
    try:
        yield
    finally:
        for layer in layers.values():
            del layer.forward


def _changed_layers(backbone: Backbone) -> dict[str, Any]:
    """Layers with adaptors, and quantised layers without."""
    adapted = _lora_layers(backbone)
    bases = {id(layer.get_base_layer()) for layer in adapted.values()}
    quantized = {name: layer for name, layer in quantized_layers(backbone.body).items() if id(layer) not in bases}
    return {**adapted, **quantized}


def quantize_nf4(backbone: Backbone) -> None:
    """Replace every linear layer of the backbone by its NF4 form (frozen), which computes in float32 at first."""
    from bagpiper.llms.nf4 import Nf4Linear

    for name, module in list(backbone.body.named_modules()):
        if type(module) is nn.Linear:
            backbone.body.set_submodule(name, Nf4Linear.from_linear(module))


def quantized_layers(module: nn.Module) -> dict[str, Nf4Linear]:
    """Layers in 4 bits by name; bitsandbytes, which takes seconds to import, is not looked for without need."""
    # by its name: this must not import what the model may not use
    found = {name: layer for name, layer in module.named_modules() if type(layer).__name__ == "Nf4Linear"}
    return cast("dict[str, Nf4Linear]", found)


def set_compute_dtype(backbone: Backbone, dtype: torch.dtype) -> None:
    """What the products of quantised layers are computed in, whatever type their input has.

    Args:
        backbone: with quantised layers, or without.
        dtype: float32, or bfloat16 as in ``trainer.precision: bf16-mixed`` (emulated on most CPUs).
    """
    for layer in quantized_layers(backbone).values():
        layer.compute_dtype = dtype


@contextmanager
def computing_in(backbone: Backbone, dtype: torch.dtype) -> Iterator[None]:
    """``set_compute_dtype`` inside the block; afterwards every layer is as it was."""
    before = {layer: layer.compute_dtype for layer in quantized_layers(backbone).values()}
    set_compute_dtype(backbone, dtype)
    try:
        yield
    finally:
        for layer, own in before.items():
            layer.compute_dtype = own


def _lora_layers(backbone: Backbone) -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in backbone.body.named_modules() if isinstance(module, LoraLayer)}


def _find_targets(model: nn.Module, targets: list[str]) -> list[str]:
    """Full names of the linear layers that ``targets`` name by their last part, by full name, or all."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    kinds = sorted({name.rpartition(".")[2] for name in linear})
    if not linear:
        raise ValueError("stage.lora: this LLM has no linear layers (torch.nn.Linear)")
    chosen: set[str] = set()
    for target in targets:
        hit = [name for name in linear if target == ALL_LINEAR or name == target or name.endswith("." + target)]
        if not hit:
            raise ValueError(
                f"stage.lora.targets: the LLM has no linear layer '{target}'; allowed: {ALL_LINEAR}, {', '.join(kinds)}"
            )
        chosen.update(hit)
    if not chosen:
        raise ValueError(f"stage.lora.targets is empty; allowed: {ALL_LINEAR}, {', '.join(kinds)}")
    return sorted(chosen)
