"""Optimizers, and the plan of a run: the learning-rate schedule of the official trainer (spec section 7.1)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from bagpiper.recipe.settings import OptimizerSettings, Recipe
from bagpiper.training.muon import MuonWithAdamW

_FUSED_DEVICES = ("cpu", "cuda", "mps")


def plan_end(recipe: Recipe) -> int:
    """The step at which the plan of a run ends: the learning rate is at its floor and no frame is hidden any more."""
    end = recipe.optimizer.decay_end_step
    return recipe.trainer.max_steps if end is None else end


def learning_rate(step: int, recipe: Recipe) -> float:
    """The rate that ``metrics.jsonl`` shows: Muon's where it trains the matrices.

    Args:
        step: number of optimizer steps already taken.
        recipe: of the run.
    """
    settings = recipe.optimizer
    peak = settings.matrix_lr if settings.name == "muon" else settings.lr
    return peak * learning_rate_factor(step, settings, recipe.trainer.max_steps)


def hidden_share(step: int, share: float, end: int) -> float:
    """Share of the frames of target audio that are hidden at a step: from ``share`` straight down to 0 at ``end``."""
    return share * max(0.0, 1.0 - step / end)


def learning_rate_factor(step: int, settings: OptimizerSettings, max_steps: int) -> float:
    """Share of the peak learning rate at a step.

    Linear from 0 at step 0, cosine to ``min_lr_ratio`` at ``decay_end_step``, then constant.

    Args:
        step: number of optimizer steps already taken; the first step has 0 and therefore learns nothing while there
            is a warm-up.
        settings: of the optimizer.
        max_steps: of the run; the end of the decay when ``decay_end_step`` is null.
    """
    if step < settings.warmup_steps:
        return step / settings.warmup_steps
    end = max_steps if settings.decay_end_step is None else settings.decay_end_step
    if step >= end:
        return settings.min_lr_ratio
    progress = (step - settings.warmup_steps) / (end - settings.warmup_steps)
    return settings.min_lr_ratio + (1.0 - settings.min_lr_ratio) * 0.5 * (1.0 + math.cos(math.pi * progress))


def parameter_groups(
    model: torch.nn.Module, embedding_rows: Iterable[torch.nn.Parameter], weight_decay: float
) -> list[dict[str, Any]]:
    """Every trainable parameter exactly once: first those with weight decay, then the embedding rows without.

    Norms and biases decay, as in the official code.

    Raises:
        ValueError: nothing trains.
    """
    without = {id(parameter) for parameter in embedding_rows}
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]  # tied ones come once
    if not trainable:
        raise ValueError("nothing trains: the stage freezes every part; choose another `stage.name` or `stage.lora`")
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trainable if id(p) not in without], "weight_decay": weight_decay},
        {"params": [p for p in trainable if id(p) in without], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(
    model: torch.nn.Module,
    embedding_rows: Iterable[torch.nn.Parameter],
    settings: OptimizerSettings,
    matrices: Iterable[torch.nn.Parameter] = (),
) -> torch.optim.Optimizer:
    """The recipe's optimizer over the trainable parameters; AdamW is fused where PyTorch has a fused kernel.

    Args:
        model: its trainable parameters are taken.
        embedding_rows: never decayed.
        settings: of the optimizer.
        matrices: weights of layers, which ``muon`` treats as matrices.
    """
    groups = parameter_groups(model, embedding_rows, settings.weight_decay)
    fused = {p.device.type for p in model.parameters() if p.requires_grad} <= set(_FUSED_DEVICES)
    options: dict[str, Any] = {"lr": settings.lr, "betas": (settings.betas[0], settings.betas[1]), "eps": settings.eps}
    if settings.name == "adamw":
        return torch.optim.AdamW(groups, fused=fused, **options)
    by_muon = [parameter for parameter in matrices if parameter.requires_grad and parameter.ndim == 2]
    chosen = {id(parameter) for parameter in by_muon}
    others = [options | group | {"params": [p for p in group["params"] if id(p) not in chosen]} for group in groups]
    return MuonWithAdamW(
        {"params": by_muon, "lr": settings.matrix_lr, "weight_decay": settings.weight_decay},
        [group for group in others if group["params"]],
        fused=fused,
    )


class Schedule(LambdaLR):
    """A schedule whose plan may have changed between a checkpoint and the run that goes on from it."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a checkpoint stands, at the rate of this plan.

        The optimizer's state, which is restored first, holds the rate of the next step under the former plan: PyTorch
        would take that step with it and follow the new plan one step late.
        """
        super().load_state_dict(state_dict)
        self._last_lr = [
            base * factor(self.last_epoch) for base, factor in zip(self.base_lrs, self.lr_lambdas, strict=True)
        ]
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate


def build_schedule(optimizer: torch.optim.Optimizer, settings: OptimizerSettings, max_steps: int) -> Schedule:
    """The schedule, to be stepped once after every optimizer step."""
    return Schedule(optimizer, lambda step: learning_rate_factor(step, settings, max_steps))
