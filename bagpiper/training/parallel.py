"""How Lightning's Trainer spreads a run over devices."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.strategies import DDPStrategy

from bagpiper.errors import UserError
from bagpiper.recipe.settings import Recipe

_ACCELERATORS = {"auto": "auto", "cpu": "cpu", "cuda": "gpu", "mps": "mps"}


def placement(recipe: Recipe) -> dict[str, Any]:
    """The Trainer's arguments for accelerator, devices and strategy.

    Raises:
        UserError: the device is not there, or the strategy is not supported yet.
    """
    import torch

    trainer = recipe.trainer
    if recipe.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device is cuda, but PyTorch finds no CUDA device; use device=cpu or install a CUDA build")
    if recipe.device == "mps" and not torch.backends.mps.is_available():
        raise UserError("device is mps, but PyTorch finds none; use device=cpu")
    if trainer.strategy == "fsdp2":
        raise UserError("trainer.strategy=fsdp2 is not supported yet; use ddp, or one device with stage.lora")
    several = trainer.devices * trainer.nodes > 1
    return {
        "accelerator": _ACCELERATORS[recipe.device],
        "devices": trainer.devices,
        "num_nodes": trainer.nodes,
        "strategy": _ddp() if several or trainer.strategy == "ddp" else "auto",
    }


def _ddp() -> DDPStrategy:
    # a pack may hold no clip to hear, and then the encoder and the adaptor get no gradient in that micro-batch
    return DDPStrategy(find_unused_parameters=True)
