"""From a recipe and what was prepared to a model that is ready to train."""

from __future__ import annotations

from typing import Any

import torch

from bagpiper.component import Codec
from bagpiper.llms.lora import add_lora
from bagpiper.llms.tokenizer import TextTokenizer
from bagpiper.model import Bagpiper
from bagpiper.settings import Recipe
from bagpiper.training.optimizer import build_optimizer, build_schedule
from bagpiper.training.seeds import derive_seed
from bagpiper.training.stages import apply_stage


def build_model(recipe: Recipe, tokenizer: TextTokenizer, codec: Codec) -> Bagpiper:
    """A model with fresh or pretrained weights.

    Random weights depend on (seed, "init") alone; the global generators are left as they were.

    Args:
        recipe: checked.
        tokenizer: of the LLM.
        codec: ready to use.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(recipe.seed, "init"))
        model = Bagpiper.build(recipe.model, tokenizer, codec=codec)
        if recipe.stage.lora is not None:
            add_lora(model.llm, recipe.stage.lora)
    return model


def make_ready(model: Bagpiper, recipe: Recipe) -> Bagpiper:
    """Apply the stage and choose the optimizer; ``model`` is one just built or one loaded from a checkpoint."""
    apply_stage(model, recipe.stage)
    if recipe.trainer.gradient_checkpointing:
        model.llm.gradient_checkpointing()
    if recipe.trainer.compile:
        for layer in model.llm.layers:
            layer.compile()
    model.make_optimizer = lambda trained: _optimizers(trained, recipe)
    model.strict_loading = False  # weights come from model/, the resume state holds none
    return model


def _optimizers(model: Bagpiper, recipe: Recipe) -> dict[str, Any]:
    optimizer = build_optimizer(model, model.input_rows.parameters(), recipe.optimizer)
    schedule = build_schedule(optimizer, recipe.optimizer, recipe.trainer.max_steps)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step", "frequency": 1}}
