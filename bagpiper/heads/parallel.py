"""The parallel head: every stream of the next row is predicted at once from one hidden state (spec sections 4.4, 5)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from bagpiper.component import Component
from bagpiper.heads.configs import ParallelConfig
from bagpiper.ops.cross_entropy import linear_cross_entropy
from bagpiper.rows import TokenRows
from bagpiper.vocabulary import PAD

Metrics = dict[str, torch.Tensor]
"""Name -> float32 ``[2]``: a sum and the count it is divided by."""


class ParallelHead(Component):
    """Hidden states plus a learned embedding per stream, times the shared output rows.

    Attributes:
        streams: ``[S, H]``; row 0 is never used, so stream 0 sees the hidden state as it is.
    """

    config: ParallelConfig

    def __init__(self, config: ParallelConfig, *, width: int, num_streams: int) -> None:
        super().__init__(config)
        self.streams = nn.Parameter(torch.zeros(num_streams, width))

    def forward(
        self, hidden: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, rows: TokenRows
    ) -> tuple[torch.Tensor, Metrics]:
        """Weighted sum of cross-entropies.

        Stream 0 is normalised over the whole vocabulary, the others over the codec ids (all of them, or the stream's
        own). A target id 0 in stream 0 is never trained on, as in the official code.

        Args:
            hidden: ``[N, H]``.
            targets: joint ids ``[N, S]``.
            weights: loss weights ``[N, S]``.
            rows: the output rows.

        Returns:
            the loss (a plain sum, z-loss included) and metrics per group of targets.
        """
        metrics: Metrics = {}
        blocks = (rows.special, rows.text, rows.audio)
        active = (weights[:, 0] > 0) & (targets[:, 0] != PAD)
        ids = targets[active, 0]
        nll, partition, correct = linear_cross_entropy(hidden[active], blocks, ids, self.config.chunk)
        total = (nll * weights[active, 0]).sum()
        z_terms = [partition.square().sum()]
        is_audio = ids >= rows.vocabulary.audio_start
        _measure(metrics, "text", nll[~is_audio], correct[~is_audio])
        _measure(metrics, "codebook0", nll[is_audio], correct[is_audio])
        for stream_loss, z_term in self._audio_streams(hidden, targets, weights, rows, metrics):
            total = total + stream_loss
            z_terms.append(z_term)
        if self.config.z_loss:
            total = total + self.config.z_loss * torch.stack(z_terms).sum()
        return total, metrics

    def _audio_streams(
        self, hidden: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, rows: TokenRows, metrics: Metrics
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Loss and z-term of every stream after the first."""
        vocabulary = rows.vocabulary
        losses = []
        for stream in range(1, targets.shape[1]):
            joint = self.config.audio_softmax == "joint"
            first_id = vocabulary.audio_start if joint else vocabulary.audio_pad(stream)
            block = rows.audio if joint else rows.codebook(stream)
            local = targets[:, stream] - first_id
            active = (weights[:, stream] > 0) & (local >= 0) & (local < len(block))
            state = hidden[active] + self.streams[stream]
            nll, partition, correct = linear_cross_entropy(state, (block,), local[active], self.config.chunk)
            losses.append(((nll * weights[active, stream]).sum(), partition.square().sum()))
            _measure(metrics, f"codebook{stream}", nll, correct)
        return losses

    def logits(self, hidden: torch.Tensor, rows: TokenRows, num_streams: int | None = None) -> torch.Tensor:
        """Raw logits over the joint vocabulary, float32.

        Args:
            hidden: ``[N, H]``.
            rows: the output rows.
            num_streams: how many streams, from the first; None means all. Text needs one.

        Returns:
            ``[N, S, V]``. With ``per_codebook`` the ids outside a stream's own codebook are meaningless and masked
            out by the decoder, as all but the modality's ids are anyway.
        """
        streams = torch.cat([torch.zeros_like(self.streams[:1]), self.streams[1:]])
        states = hidden[:, None, :] + streams[:num_streams]
        blocks = (rows.special, rows.text, rows.audio)
        return torch.cat([F.linear(states, block) for block in blocks], dim=-1).float()


def _measure(metrics: Metrics, name: str, nll: torch.Tensor, correct: torch.Tensor) -> None:
    count = torch.tensor(float(nll.numel()), device=nll.device)
    metrics[f"loss/{name}"] = torch.stack([nll.detach().sum(), count])
    metrics[f"accuracy/{name}"] = torch.stack([correct.sum().float(), count])
