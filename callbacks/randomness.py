"""Random draws of the training step, keyed by (seed, micro-batch)."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer

from bagpiper.draws import derive_seed


class KeyedRandomness(Callback):
    """Seeds the generators of torch, numpy and python before every micro-batch.

    Dropout of micro-batch n of the stream is then a function of (seed, n) alone, whichever rank computes it: what
    validation, listening or logging drew from the global generators in between changes nothing, and a resumed run
    draws what the whole run would have drawn.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed for this micro-batch."""
        number = batch_idx * trainer.world_size + trainer.global_rank  # as the packs are dealt to the ranks
        seed = derive_seed(self.seed, "micro-batch", number)
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
