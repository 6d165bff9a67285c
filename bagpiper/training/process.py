"""What a run sets in its process, and puts back."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.pytorch.utilities import rank_zero_only


def rank() -> int:
    """Number of this process; known from the environment before any process group exists."""
    return int(getattr(rank_zero_only, "rank", 0))


def is_main() -> bool:
    """Whether this process writes the run folder."""
    return rank() == 0


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """So many CPU threads inside the block; None leaves torch's choice."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Without Lightning's banners, and without its warning that frozen parts are in eval mode, which they must be."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*module\\(s\\) in eval mode at the start of training")
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def own_group() -> Iterator[None]:
    """End the process group that a run in the block makes, where it is gloo's; Lightning ends those of NCCL.

    Left to the exit of the process, gloo's threads at times abort it there (1 in 56 on two ranks), after all is done.
    """
    distributed = torch.distributed
    outer = distributed.is_available() and distributed.is_initialized()
    try:
        yield
    finally:
        made = distributed.is_available() and distributed.is_initialized() and not outer
        if made and distributed.get_backend() == "gloo":
            distributed.destroy_process_group()
