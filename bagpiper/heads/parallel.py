"""The parallel head: every stream of the next row is predicted at once from one hidden state (spec sections 4.4, 5)."""

from __future__ import annotations

import torch
from torch import nn

from bagpiper.component import Head, Metrics
from bagpiper.heads.configs import ParallelConfig
from bagpiper.heads.streams import first_stream_loss, joint_logits, measure, pick
from bagpiper.ops.cross_entropy import linear_cross_entropy
from bagpiper.rows import TokenRows


class ParallelHead(Head):
    """Hidden states plus a learned embedding per stream, times the shared output rows.

    Attributes:
        streams: ``[S, H]``; row 0 is never used, so stream 0 sees the hidden state as it is.
    """

    config: ParallelConfig

    def __init__(
        self, config: ParallelConfig, *, width: int, num_streams: int, codebook_size: int | None = None
    ) -> None:
        """Build; the output rows are shared, so ``codebook_size`` does not matter here."""
        super().__init__(config)
        self.streams = nn.Parameter(torch.zeros(num_streams, width))

    def forward(
        self, hidden: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, rows: TokenRows
    ) -> tuple[torch.Tensor, Metrics]:
        """See ``Head.forward``.

        Stream 0 is normalised over the whole vocabulary, the others over the codec ids (all of them, or the stream's
        own).
        """
        metrics: Metrics = {}
        total, z_term = first_stream_loss(hidden, targets, weights, rows, self.config.chunk, metrics)
        z_terms = [z_term]
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
            measure(metrics, f"codebook{stream}", nll, correct)
        return losses

    def logits(
        self, hidden: torch.Tensor, rows: TokenRows, num_streams: int | None = None, ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See ``Head.logits``; no stream sees another, so ``ids`` are not looked at.

        With ``per_codebook`` the ids outside a stream's own codebook are meaningless and masked out by the decoder, as
        all but the modality's ids are anyway.
        """
        streams = torch.cat([torch.zeros_like(self.streams[:1]), self.streams[1:]])
        return joint_logits(hidden[:, None, :] + streams[:num_streams], rows)

    def blocks(self, num_streams: int) -> list[slice]:
        """One block."""
        return [slice(0, num_streams)]

    def start(self, hidden: torch.Tensor, rows: TokenRows, num_streams: int) -> torch.Tensor:
        """All logits of the row, ``[N, D, V]``."""
        return self.logits(hidden, rows, num_streams)

    def next_logits(
        self, state: torch.Tensor, streams: slice, candidates: torch.Tensor, ids: torch.Tensor | None
    ) -> torch.Tensor:
        """See ``Head.next_logits``; the block is the whole row."""
        return pick(state, candidates)
