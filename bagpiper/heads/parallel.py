"""The parallel head: every stream of the next row is predicted at once from one hidden state (spec sections 4.4, 5)."""

from __future__ import annotations

import torch
from torch import nn

from bagpiper.component import Counted, Head, HeadLoss
from bagpiper.heads.configs import ParallelConfig
from bagpiper.heads.streams import first_stream_loss, joint_logits, pick
from bagpiper.ops.cross_entropy import TargetLoss, linear_cross_entropy
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
        total, counted = first_stream_loss(hidden, targets, weights, rows, self.config)
        if targets.shape[1] > 1:
            is_joint = self.config.audio_softmax == "joint"
            audio_loss = self._joint_loss if is_joint else self._loss_per_codebook
            further, of_streams = audio_loss(hidden, targets, weights, rows)
            total, counted = total + further, counted | of_streams
        return HeadLoss(total, counted)

    def _joint_loss(
        self, hidden: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, rows: TokenRows
    ) -> tuple[torch.Tensor, dict[str, Counted]]:
        """Streams after the first, over all codec ids: one product for all, with one gradient of the output rows."""
        local = targets[:, 1:] - rows.vocabulary.audio_start
        active = ((weights[:, 1:] > 0) & (local >= 0) & (local < len(rows.audio))).nonzero()
        places, streams = active[:, 0], active[:, 1] + 1
        states = hidden.index_select(0, places) + self.streams[streams]
        ids, wanted = targets[places, streams] - rows.vocabulary.audio_start, weights[places, streams]
        loss = self._cross_entropy(states, rows.audio, ids, wanted)
        counted = {}
        for stream in range(1, targets.shape[1]):
            own = streams == stream
            counted[f"codebook{stream}"] = Counted(places[own], stream, loss.nll[own], loss.correct[own])
        return loss.total, counted

    def _loss_per_codebook(
        self, hidden: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, rows: TokenRows
    ) -> tuple[torch.Tensor, dict[str, Counted]]:
        """Streams after the first, each over the ids of its own codebook."""
        total, counted = hidden.new_zeros(()), {}
        for stream in range(1, targets.shape[1]):
            block = rows.codebook(stream)
            local = targets[:, stream] - rows.vocabulary.audio_pad(stream)
            places = ((weights[:, stream] > 0) & (local >= 0) & (local < len(block))).nonzero()[:, 0]
            states = hidden.index_select(0, places) + self.streams[stream]
            loss = self._cross_entropy(states, block, local[places], weights[places, stream])
            total = total + loss.total
            counted[f"codebook{stream}"] = Counted(places, stream, loss.nll, loss.correct)
        return total, counted

    def _cross_entropy(
        self, states: torch.Tensor, block: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
    ) -> TargetLoss:
        return linear_cross_entropy(states, (block,), ids, weights, z_loss=self.config.z_loss, chunk=self.config.chunk)

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
