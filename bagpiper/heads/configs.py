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
        chunk: rows whose logits exist at once; null takes as many as fit into 80 MB on a CPU, 512 MB elsewhere; 0 keeps
            all.
    """

    audio_softmax: Literal["joint", "per_codebook"] = "joint"
    z_loss: float = 0.0
    chunk: int | None = None


@dataclass
class DepthConfig:
    """A small transformer over the streams of one row, as in Moshi (arXiv:2410.00037) and CSM.

    Stream 0 is predicted from the LLM's state alone, every further stream from the state and the codes before it in the
    same row, over its own codebook's ids.

    Attributes:
        width: of the depth transformer.
        layers, heads: of the depth transformer.
        z_loss: weight of the squared log-partition term.
        chunk: rows that pass through the depth transformer, and whose logits exist, at once; null takes 1,024 (of
            stream 0 as ``parallel`` does), 0 keeps all.
    """

    width: int = 256
    layers: int = 3
    heads: int = 4
    z_loss: float = 0.0
    chunk: int | None = None

    def __post_init__(self) -> None:
        if self.layers < 1 or self.heads < 1 or self.width < 1 or self.width % self.heads:
            raise ValueError(
                "head depth: layers and heads must be at least 1, and width a multiple of heads; "
                f"got width {self.width}, layers {self.layers}, heads {self.heads}"
            )
