"""What encoders, adaptors, LLMs, codecs and heads have in common."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any, NamedTuple, Protocol

import torch
from lightning import LightningModule
from torch import nn

from bagpiper.batch import Spans
from bagpiper.token_rows import TokenRows

Metrics = dict[str, torch.Tensor]
"""Name -> float32 ``[2]``: a sum and the count it is divided by."""


class Counted(NamedTuple):
    """The targets of one group (text, or a codebook) that a loss counts, one entry each. Nothing here has a gradient.

    Attributes:
        rows: int64 ``[n]``, which of the given rows.
        stream: the stream they stand in.
        nll: float32 ``[n]``, negative log-likelihood, not weighted.
        correct: bool ``[n]``, whether the target has the largest logit.
    """

    rows: torch.Tensor
    stream: int
    nll: torch.Tensor
    correct: torch.Tensor


class HeadLoss(NamedTuple):
    """What a head's forward pass gives; tuples, so that hooks of sharded modules find the tensors in them.

    Attributes:
        total: weighted sum of cross-entropies (scalar), z-loss included.
        counted: the targets it is made of, by group: ``text``, ``codebook0``, ``codebook1``...
    """

    total: torch.Tensor
    counted: dict[str, Counted]


def metrics_of(counted: Mapping[str, Counted]) -> Metrics:
    """Loss and accuracy of every group."""
    metrics: Metrics = {}
    for name, group in counted.items():
        count = torch.tensor(float(group.nll.numel()), device=group.nll.device)
        metrics[f"loss/{name}"] = torch.stack([group.nll.sum(), count])
        metrics[f"accuracy/{name}"] = torch.stack([group.correct.sum().float(), count])
    return metrics


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
    """Waveform -> states; each clip's states depend on its batch mates by rounding at most (1e-5 of the largest)."""

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


class KeysValues(Protocol):
    """What a backbone asks of the cache that decoding keeps: keys and values of the rows so far.

    Attributes:
        visible: bool ``[B, 1, L, keys]``, what each query of the running step may see.
    """

    visible: torch.Tensor | None

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write one layer's new keys and values ``[B, kv_heads, L, D]``; return all ``[B, kv_heads, keys, D]``."""


class Backbone(Component):
    """An LLM without its vocabulary matrices: embeddings in, hidden states after the final norm out.

    Its config is an ``LlmConfig``. Built with ``vocab_size``, rows of the text block of an LLM made from nothing. The
    rows of embedding and output matrix belong to the language (``token_rows``); a pretrained backbone hands its own
    over once.

    Attributes:
        width: hidden size.
        text_size: rows of the LLM's vocabulary matrices, which may exceed the tokenizer's length.
        tied: whether the LLM's input and output rows are one matrix.
        max_positions: rows that an example may have; None where there is no limit.
    """

    width: int
    text_size: int
    tied: bool
    max_positions: int | None = None

    @property
    def name(self) -> str:
        """For messages."""
        return type(self).__name__

    @property
    def body(self) -> nn.Module:
        """The module that holds the layers; its ``nn.Linear`` layers may take adaptors, or be kept in 4 bits."""
        raise NotImplementedError

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers in order: what is compiled, and recomputed, by itself."""
        raise NotImplementedError

    def forward(
        self,
        embeds: torch.Tensor,
        positions: torch.Tensor,
        *,
        spans: Spans | None = None,
        cache: KeysValues | None = None,
    ) -> torch.Tensor:
        """Run the layers, over a pack or over the next rows of a cache.

        Args:
            embeds: ``[B, L, H]``; B is 1 for a pack.
            positions: int64 ``[B, L]``, restarting at 0 in every example.
            spans: borders of the pack's examples, which never see each other.
            cache: keys and values so far, told of the rows to come.

        Returns:
            ``[B, L, H]`` after the final norm.
        """
        raise NotImplementedError

    def take_text_rows(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Hand pretrained rows ``[text_size, width]`` over; this component forgets them, so that they exist once.

        Returns:
            Input rows, and output rows (None if tied); (None, None) where there are no pretrained ones.
        """
        return None, None

    def gradient_checkpointing(self, enable: bool = True) -> None:
        """Recompute the layers in the backward pass instead of keeping their activations."""
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

    def forward(self, hidden: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, rows: TokenRows) -> HeadLoss:
        """Weighted sum of cross-entropies.

        Args:
            hidden: ``[N, H]``.
            targets: joint ids ``[N, S]`` of the rows that the states predict.
            weights: loss weights ``[N, S]``.
            rows: the output rows.
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
