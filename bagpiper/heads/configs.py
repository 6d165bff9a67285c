"""Configs of the heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass
class ParallelConfig:
    """Shared output rows plus a learned embedding per stream, all streams predicted at once (spec section 4.4).

    Attributes:
        audio_softmax: ``joint`` normalises streams 1.. over all codec ids, as the official model does;
            ``per_codebook`` over the stream's own ids.
        z_loss: weight of the squared log-partition term.
        chunk: rows whose logits exist at once; 0 keeps all.
    """

    audio_softmax: Literal["joint", "per_codebook"] = "joint"
    z_loss: float = 0.0
    chunk: int = 1024
