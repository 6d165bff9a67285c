"""From a recipe and what was prepared to a model that is ready to train."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bagpiper.component import Codec
from bagpiper.data.codes import CodeCache
from bagpiper.data.layout import Layout
from bagpiper.draws import derive_seed
from bagpiper.llms.lora import add_lora, merge_lora, set_compute_dtype
from bagpiper.llms.tokenizer import TextTokenizer
from bagpiper.model import Bagpiper
from bagpiper.recipe.model_config import find_model, read_config
from bagpiper.recipe.settings import DataSettings, Recipe
from bagpiper.training.optimizer import build_optimizer, build_schedule
from bagpiper.training.sharding import shard
from bagpiper.training.stages import apply_stage, make_masters
from bagpiper.weights.model_folder import load_model, read_provenance


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


def start_model(recipe: Recipe) -> tuple[Bagpiper, dict[str, Any]]:
    """The model of the folder that ``recipe.start_from`` names, with fresh adaptors if the stage has them.

    Adaptors that the folder's model has are folded into its weights first. Random weights depend on (seed, "init").

    Returns:
        The model and what is to be remembered of its origin.

    Raises:
        UserError: there is no model, or it is not what the recipe was checked against.
    """
    assert recipe.start_from is not None
    folder = find_model(Path(recipe.start_from).expanduser())
    config = read_config(folder)
    model = load_model(folder)
    if config["lora"]:
        merge_lora(model.llm)
    model.settings = recipe.model
    model.head.config = recipe.model.head  # the part of it that weights do not depend on may be the recipe's
    if recipe.stage.lora is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(recipe.seed, "init"))
            add_lora(model.llm, recipe.stage.lora)
    origin = {
        "folder": str(folder.resolve()),
        "fingerprint": config["fingerprint"],
        "stage": config["stage"],
        "provenance": read_provenance(folder),
    }
    return model, origin


def make_ready(model: Bagpiper, recipe: Recipe) -> Bagpiper:
    """Apply the stage and choose the optimizer; ``model`` is one just built or one loaded from a checkpoint."""
    apply_stage(model, recipe.stage)
    is_bf16 = recipe.trainer.precision == "bf16-mixed"
    model.takes_part = recipe.trainer.devices * recipe.trainer.nodes > 1 or recipe.trainer.strategy != "auto"
    if recipe.trainer.strategy == "fsdp2":
        model.spread = lambda trained: shard(trained, bf16=is_bf16)
    else:
        make_masters(model.parameters())
    set_compute_dtype(model.llm, torch.bfloat16 if is_bf16 else torch.float32)
    if recipe.trainer.gradient_checkpointing:
        model.llm.gradient_checkpointing()
    if recipe.trainer.compile:
        for layer in model.llm.layers:
            layer.compile()
    model.make_optimizer = lambda trained: _optimizers(trained, recipe)
    model.strict_loading = False  # weights come from model/, the resume state holds none
    return model


def build_layout(model: Bagpiper, data: DataSettings, cache: CodeCache) -> Layout:
    """How examples of a run are laid out for its model: the one place where ``data.loss_region`` acts.

    Args:
        model: gives the language and the promises of its parts.
        data: of the recipe.
        cache: codes of the spoken clips; also says how clips are resampled.
    """
    template = replace(model.template, loss_region=data.loss_region)
    settings = model.settings
    return Layout(
        template, model.encoder.portable_config(), settings.adaptor, settings.codec, cache, model.llm.max_positions
    )


def _optimizers(model: Bagpiper, recipe: Recipe) -> dict[str, Any]:
    matrices = [weight for part in (model.encoder, model.adaptor, model.llm) for weight in part.parameters()]
    optimizer = build_optimizer(model, model.input_rows.parameters(), recipe.optimizer, matrices)
    schedule = build_schedule(optimizer, recipe.optimizer, recipe.trainer.max_steps)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step", "frequency": 1}}
