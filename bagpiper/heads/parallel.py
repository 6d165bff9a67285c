"""The parallel head: every stream of the next row is predicted at once from one hidden state (spec sections 4.4, 5)."""

from __future__ import annotations

import torch
from torch import nn

from bagpiper.component import Counted, Head, HeadLoss
from bagpiper.heads.configs import ParallelConfig
from bagpiper.heads.streams import first_stream_loss, joint_logits, pick
from bagpiper.ops.cross_entropy import linear_cross_entropy
from bagpiper.token_rows import TokenRows


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

    def forward(self, hidden: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, rows: TokenRows) -> HeadLoss:
        """See ``Head.forward``.

        Stream 0 is normalised over the whole vocabulary, the others over the codec ids (all of them, or the stream's
        own).
        """
        total, z_term, counted = first_stream_loss(hidden, targets, weights, rows, self.config.chunk)
        z_terms = [z_term]
        for stream in range(1, targets.shape[1]):
            loss, z_term, counted[f"codebook{stream}"] = self._audio_stream(stream, hidden, targets, weights, rows)
            total = total + loss
            z_terms.append(z_term)
        if self.config.z_loss:
            total = total + self.config.z_loss * torch.stack(z_terms).sum()
        return HeadLoss(total, counted)

    def _audio_stream(
        self, stream: int, hidden: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, rows: TokenRows
    ) -> tuple[torch.Tensor, torch.Tensor, Counted]:
        """Loss, z-term and targets of a stream after the first."""
        vocabulary = rows.vocabulary
        joint = self.config.audio_softmax == "joint"
        block = rows.audio if joint else rows.codebook(stream)
        local = targets[:, stream] - (vocabulary.audio_start if joint else vocabulary.audio_pad(stream))
        active = ((weights[:, stream] > 0) & (local >= 0) & (local < len(block))).nonzero()[:, 0]
        state = hidden.index_select(0, active) + self.streams[stream]
        nll, partition, correct = linear_cross_entropy(state, (block,), local[active], self.config.chunk)
        counted = Counted(active, stream, nll.detach(), correct)
        return (nll * weights[active, stream]).sum(), partition.square().sum(), counted

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
