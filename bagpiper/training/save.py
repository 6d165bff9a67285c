"""What a run writes of its model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from lightning import LightningModule

from bagpiper.model import Bagpiper
from bagpiper.recipe.settings import Recipe
from bagpiper.redact import redact_tree
from bagpiper.training.run_folder import read_origin
from bagpiper.weights.model_folder import write_model


def save_weights(
    model: LightningModule, target: Path, state: Mapping[str, torch.Tensor], recipe: Recipe, run_dir: Path
) -> None:
    """Write the model folder of a checkpoint; frozen tensors are kept once for all of a run.

    Args:
        model: the model.
        target: the folder, new.
        state: its state dict, of whole tensors.
        recipe: of the run.
        run_dir: of the run.
    """
    assert isinstance(model, Bagpiper)
    write_model(
        model,
        target,
        state,
        generation=recipe.sampling,
        lora=recipe.stage.lora,
        stage=recipe.stage.name,
        provenance=redact_tree({"recipe": recipe.name, "run": str(run_dir), **read_origin(run_dir)}),
        store=run_dir / "checkpoints" / "frozen",
    )
