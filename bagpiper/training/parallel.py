"""How Lightning's Trainer spreads a run over devices."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.strategies import DDPStrategy, Strategy

from bagpiper.errors import UserError
from bagpiper.recipe.settings import Recipe
from bagpiper.training.sharding import Sharded

_ACCELERATORS = {"auto": "auto", "cpu": "cpu", "cuda": "gpu", "mps": "mps"}


def placement(recipe: Recipe) -> dict[str, Any]:
    """The Trainer's arguments for accelerator, devices and strategy.

    Raises:
        UserError: the device is not there.
    """
    import torch

    trainer = recipe.trainer
    if recipe.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device is cuda, but PyTorch finds no CUDA device; use device=cpu or install a CUDA build")
    if recipe.device == "mps" and not torch.backends.mps.is_available():
        raise UserError("device is mps, but PyTorch finds none; use device=cpu")
    return {
        "accelerator": _ACCELERATORS[recipe.device],
        "devices": trainer.devices,
        "num_nodes": trainer.nodes,
        "strategy": _strategy(recipe),
    }


def _strategy(recipe: Recipe) -> Strategy | str:
    world = recipe.trainer.devices * recipe.trainer.nodes
    if recipe.trainer.strategy == "fsdp2":
        return Sharded(world)
    if world > 1 or recipe.trainer.strategy == "ddp":
        return DDPStrategy(find_unused_parameters=False)  # every parameter gets a gradient: ``Bagpiper.takes_part``
    return "auto"
