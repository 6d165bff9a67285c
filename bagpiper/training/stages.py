"""Stages: which parameters train and which are frozen."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from bagpiper.model import Bagpiper
from bagpiper.recipe.settings import StageSettings


def apply_stage(model: Bagpiper, stage: StageSettings) -> None:
    """Set what trains, and every module's mode.

    | stage | LLM | text rows | new rows, adaptor, head | encoder | codec |
    |---|---|---|---|---|---|
    | warmup | frozen | frozen | train | as asked | frozen |
    | pretrain, sft | trains | train | train | as asked | frozen |
    | any with LoRA | LoRA only | frozen | train | as asked | frozen |

    New rows are those of specials and audio; the head holds the stream embeddings. Parts without a single trainable
    parameter stay in eval mode (``Bagpiper.train`` sees to it).

    Args:
        model: the model, LoRA already added if the stage has it.
        stage: of the recipe.
    """
    full = stage.lora is None and stage.name != "warmup"
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())  # weights in 4 bits are whole numbers, always frozen
    model.codec.requires_grad_(False)
    model.encoder.requires_grad_(stage.train_encoder)
    for name, parameter in model.llm.named_parameters():
        is_lora = stage.lora is not None and "lora_" in name
        parameter.requires_grad_(parameter.is_floating_point() and (full or is_lora))
    for rows in (model.input_rows, model.output_rows):
        rows.text.requires_grad_(full)
    model.train()


def make_masters(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Keep what trains in float32 at least: a checkpoint in bfloat16 is trained with float32 masters."""
    for parameter in parameters:
        if parameter.requires_grad and parameter.dtype.itemsize < torch.float32.itemsize:
            parameter.data = parameter.data.float()


def count_parameters(model: torch.nn.Module) -> tuple[int, int]:
    """(trainable, all) parameters."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)
