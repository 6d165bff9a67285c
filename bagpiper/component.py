"""What encoders, adaptors, LLMs, codecs and heads have in common."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from lightning import LightningModule

if TYPE_CHECKING:
    from bagpiper.rows import TokenRows

Metrics = dict[str, torch.Tensor]
"""Name -> float32 ``[2]``: a sum and the count it is divided by."""


class Component(LightningModule):
    """A part of the model: a LightningModule by type, a plain module by behaviour.

    A component returns tensors and never talks to Lightning: no ``self.log``, no hooks, no ``self.trainer`` (in child
    modules these raise or are never called). It can be built on the meta device; ``reset_buffers`` then recomputes
    every buffer that no checkpoint carries.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def portable_config(self) -> Any:
        """A config that builds this component with random weights and needs no file, hub name or network."""
        return self.config

    def reset_buffers(self) -> None:
        """Compute the non-persistent buffers on the device of the parameters, after a build on the meta device."""


class Encoder(Component):
    """Waveform -> states; each clip's states do not depend on its batch mates."""

    def forward(self, waves: list[torch.Tensor]) -> list[torch.Tensor]:
        """Encode clips.

        Args:
            waves: float32 ``[N_i]`` each, at ``config.sample_rate``.

        Returns:
            ``[config.num_frames(N_i), config.width]`` each.
        """
        raise NotImplementedError

    def calibrate(self, waves: Iterable[torch.Tensor]) -> None:
        """Look at training clips ``[N_i]`` before the first step; encoders that come with weights need not."""


class Adaptor(Component):
    """Encoder states -> LLM embeddings; built with ``width_in`` and ``width_out``."""

    def forward(self, states: list[torch.Tensor]) -> list[torch.Tensor]:
        """Adapt the states of clips.

        Args:
            states: ``[F_i, width_in]`` each.

        Returns:
            ``[config.num_frames(F_i), width_out]`` each.
        """
        raise NotImplementedError


class Codec(Component):
    """Waveform <-> codes. Always frozen, always in eval mode, always float32 outside autocast."""

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Codec:
        """Follow the model to its device but never to its precision: bfloat16 codebooks would give other codes."""

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            result = fn(tensor)
            return result if result.dtype == tensor.dtype else tensor.to(result.device)

        return super()._apply(moved, recurse)

    def identity(self) -> dict[str, Any]:
        """The settings that decide which codes a waveform gets and what they mean."""
        return asdict(self.portable_config())

    def weights_hash(self, tensors: Mapping[str, torch.Tensor] | None = None) -> str:
        """SHA-256 over class, ``identity`` and every saved tensor: two codecs with one hash speak the same codes.

        Args:
            tensors: values by name, for a codec on the meta device; None takes the codec's own.
        """
        digest = hashlib.sha256(f"{type(self).__name__} {json.dumps(self.identity(), sort_keys=True)}".encode())
        for name, own in sorted(self.state_dict().items()):
            tensor = own if tensors is None else tensors[name].to(own.dtype)
            array = tensor.detach().cpu().contiguous().numpy()
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()

    def train(self, mode: bool = True) -> Codec:
        """Stay in eval mode: the official code's dropout inside the codec changes 80 % of the target codes."""
        return super().train(False)

    def encode(self, waves: list[torch.Tensor]) -> list[torch.Tensor]:
        """Codes of clips, each as if it were alone.

        Args:
            waves: float32 ``[N_i]`` each, at ``config.sample_rate``.

        Returns:
            int64 ``[config.num_frames(N_i), K]`` each.
        """
        raise NotImplementedError

    def decode(self, codes: list[torch.Tensor]) -> list[torch.Tensor]:
        """Waveforms of codes.

        Args:
            codes: int64 ``[T_i, K]`` each.

        Returns:
            float32 ``[config.num_samples(T_i)]`` each.
        """
        raise NotImplementedError


class Head(Component):
    """LLM hidden states -> the streams of the next row, and the loss.

    Built with ``width`` (the LLM's), ``num_streams`` and ``codebook_size``.

    A row is drawn block by block: ``blocks`` says which streams are drawn together, ``start`` begins the rows of a
    batch, ``next_logits`` gives the distributions of a block once the blocks before it are settled.
    """

    def forward(
        self, hidden: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, rows: TokenRows
    ) -> tuple[torch.Tensor, Metrics]:
        """Weighted sum of cross-entropies.

        Args:
            hidden: ``[N, H]``.
            targets: joint ids ``[N, S]`` of the rows that the states predict.
            weights: loss weights ``[N, S]``.
            rows: the output rows.

        Returns:
            the loss (a plain sum, z-loss included) and metrics per group of targets.
        """
        raise NotImplementedError

    def logits(
        self, hidden: torch.Tensor, rows: TokenRows, num_streams: int | None = None, ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Raw logits over the joint vocabulary, float32, by the same computation as the loss.

        Args:
            hidden: ``[N, H]``.
            rows: the output rows.
            num_streams: how many streams, from the first; None means all. Text needs one.
            ids: joint ids ``[N, S]`` of the rows that the states predict, for heads whose streams see those before.

        Returns:
            ``[N, S, V]``.
        """
        raise NotImplementedError

    def blocks(self, num_streams: int) -> list[slice]:
        """The first ``num_streams`` streams as blocks that are drawn one after another, stream 0 in the first."""
        raise NotImplementedError

    def start(self, hidden: torch.Tensor, rows: TokenRows, num_streams: int) -> Any:
        """Begin the rows that states ``[N, H]`` predict; what is returned goes to ``next_logits``."""
        raise NotImplementedError

    def next_logits(
        self, state: Any, streams: slice, candidates: torch.Tensor, ids: torch.Tensor | None
    ) -> torch.Tensor:
        """Logits of a block, float32.

        Args:
            state: of ``start``; every block of ``blocks`` is asked for once, in order.
            streams: the block.
            candidates: joint ids ``[D, C]`` that its streams choose from.
            ids: joint ids of the streams before the block, ``[N, streams.start]``; None for the first block.

        Returns:
            ``[N, D, C]``.
        """
        raise NotImplementedError
