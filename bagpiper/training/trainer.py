"""Lightning's Trainer as every run uses it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning import Callback, Trainer
from lightning.pytorch.loggers import Logger

from bagpiper.recipe.settings import Recipe
from bagpiper.training.checkpoints import StateFile


def build_trainer(
    recipe: Recipe, placement: Mapping[str, Any], callbacks: Sequence[Callback], logger: Logger, *, can_validate: bool
) -> Trainer:
    """Build it.

    Args:
        recipe: of the run.
        placement: arguments for devices and strategy (``training.parallel``).
        callbacks: in the order in which they act.
        logger: gets what callbacks log; its folder is the Trainer's.
        can_validate: whether there are validation examples.
    """
    settings = recipe.trainer
    validates = settings.validate_every if can_validate else 0
    world = settings.devices * settings.nodes
    return Trainer(
        **placement,
        callbacks=list(callbacks),
        logger=logger,
        log_every_n_steps=settings.log_every,
        plugins=[StateFile()],
        precision=settings.precision,
        max_epochs=-1,
        max_steps=settings.max_steps,
        accumulate_grad_batches=settings.accumulate,
        gradient_clip_val=recipe.optimizer.clip_norm or None,
        gradient_clip_algorithm="norm",
        # the training stream has no end and no epochs, so validations are counted in micro-batches
        check_val_every_n_epoch=None,
        val_check_interval=max(1, validates * settings.accumulate),
        limit_val_batches=(-(-settings.validate_packs // world) or 1.0) if validates else 0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=logger.save_dir,
    )
