"""The depth head: a small transformer over the streams of one row (Moshi, arXiv:2410.00037 section 3.4; CSM).

The parallel head draws the streams of a row without knowing what the others drew. Here stream 0 comes from the LLM's
state, and each further stream from the state and the codes before it in the same row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from bagpiper.component import Counted, Head, HeadLoss
from bagpiper.heads.configs import DepthConfig
from bagpiper.heads.streams import first_stream_loss, joint_logits, pick
from bagpiper.language.vocabulary import Vocabulary
from bagpiper.token_rows import INIT_STD, TokenRows

_CHUNK = 1024
"""Rows that pass through the transformer at once, unless the config says how many."""

KeysValues = tuple[torch.Tensor, torch.Tensor]
"""``[N, heads, L, D]`` each."""


class DepthLayer(nn.Module):
    """Causal attention over the streams, then a feed-forward layer, each with its norm before it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.feed_norm = nn.RMSNorm(width)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, states: torch.Tensor, past: KeysValues | None = None) -> tuple[torch.Tensor, KeysValues]:
        """Run a whole row, or its next stream.

        Args:
            states: ``[N, L, w]``; L is 1 if there is a past.
            past: keys and values of the streams before.

        Returns:
            ``[N, L, w]``, and the keys and values of all streams so far.
        """
        qkv = self.qkv(self.attention_norm(states)).unflatten(-1, (3, self.heads, -1))
        query, key, value = (part.transpose(1, 2) for part in qkv.unbind(2))
        if past is not None:
            assert states.shape[1] == 1, "one stream at a time"
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=past is None)
        states = states + self.out(mixed.transpose(1, 2).flatten(2))
        return states + self.down(F.gelu(self.up(self.feed_norm(states)))), (key, value)


@dataclass
class RowState:
    """Rows that are being drawn.

    Attributes:
        hidden: ``[N, H]``.
        rows: the output rows, for stream 0.
        projected: ``[N, w]``, what every further stream sees of the LLM.
        past: keys and values of each layer, so far.
    """

    hidden: torch.Tensor
    rows: TokenRows
    projected: torch.Tensor | None
    past: list[KeysValues | None]


class DepthHead(Head):
    """Stream 0 from the shared output rows, the others from a transformer over the streams with tables of its own.

    Position j of the transformer predicts stream j + 1; it sees the projected state and the code of stream j. The
    tables are per stream, so they also tell it where it is.

    Attributes:
        project: the LLM's width to the transformer's.
        codes: ``[(S - 1) * interval, w]``, what a code of streams 0 to S - 2 looks like.
        outputs: ``[S - 1, interval, w]``, output rows of streams 1 to S - 1: the stream's pad, then its codes.
    """

    config: DepthConfig

    def __init__(self, config: DepthConfig, *, width: int, num_streams: int, codebook_size: int) -> None:
        """Build.

        Args:
            config: sizes of the transformer.
            width: H, of the LLM.
            num_streams: S.
            codebook_size: codes of a codebook, without its pad.

        Raises:
            ValueError: there is one stream only.
        """
        super().__init__(config)
        if num_streams < 2:
            raise ValueError("head depth models the streams of a row among one another, but there is only one stream")
        self.interval = codebook_size + 1
        further = num_streams - 1
        self.project = nn.Linear(width, config.width, bias=False)
        # as large as the projected state at least: which code was drawn must not wash out (see rows.py)
        self.codes = nn.Parameter(torch.randn(further * self.interval, config.width))
        self.layers = nn.ModuleList(DepthLayer(config.width, config.heads) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width)
        self.outputs = nn.Parameter(torch.randn(further, self.interval, config.width) * INIT_STD)

    def forward(self, hidden: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, rows: TokenRows) -> HeadLoss:
        """See ``Head.forward``.

        Only rows with a target beyond stream 0 pass through the depth transformer: rows of text cost nothing here.
        """
        total, counted = first_stream_loss(hidden, targets, weights, rows, self.config)
        local = self._local(targets, rows.vocabulary)
        active = (weights[:, 1:] > 0) & (local[:, 1:] >= 0) & (local[:, 1:] < self.interval)
        spoken = active.any(-1).nonzero()[:, 0]
        active, wanted = active[spoken], weights[spoken, 1:]
        nll, partition, correct = self._nll(hidden.index_select(0, spoken), local[spoken].clamp(0, self.interval - 1))
        total = total + (nll * wanted)[active].sum()
        for stream in range(1, targets.shape[1]):
            chosen = active[:, stream - 1]
            counted[f"codebook{stream}"] = Counted(
                spoken[chosen], stream, nll.detach()[chosen, stream - 1], correct[chosen, stream - 1]
            )
        if self.config.z_loss:
            total = total + self.config.z_loss * partition[active].square().sum()
        return HeadLoss(total, counted)

    def _local(self, ids: torch.Tensor, vocabulary: Vocabulary) -> torch.Tensor:
        """Joint ids of the first streams ``[N, s]`` as places in their codebooks, the pad 0; outside it for others."""
        streams = torch.arange(ids.shape[1], device=ids.device)
        return ids - (vocabulary.audio_start + streams * self.interval)

    def _nll(self, hidden: torch.Tensor, local: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Negative log-likelihood, log-partition and correctness of streams 1.., each ``[N, S - 1]``."""
        size = _CHUNK if self.config.chunk is None else self.config.chunk or max(1, len(hidden))
        if len(hidden) <= size:
            return self._chunk_nll(hidden, local)
        parts = [
            checkpoint(
                self._chunk_nll,
                hidden[start : start + size],
                local[start : start + size],
                use_reentrant=False,
                preserve_rng_state=False,  # nothing is drawn at random here
            )
            for start in range(0, len(hidden), size)
        ]
        nll, partition, correct = zip(*parts, strict=True)
        return torch.cat(nll), torch.cat(partition), torch.cat(correct)

    def _chunk_nll(self, hidden: torch.Tensor, local: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logits = self._row_logits(hidden, local[:, :-1])
        partition = torch.logsumexp(logits, dim=-1)
        chosen = logits.gather(-1, local[:, 1:, None])[..., 0]
        with torch.no_grad():
            correct = logits.argmax(-1) == local[:, 1:]
        return partition - chosen, partition, correct

    def _row_logits(self, hidden: torch.Tensor, local: torch.Tensor) -> torch.Tensor:
        """Logits of streams 1.. over their own ids, float32 ``[N, S - 1, interval]``.

        Args:
            hidden: ``[N, H]``.
            local: places ``[N, S - 1]`` of the codes of streams 0 to S - 2.
        """
        states = self.project(hidden)[:, None] + self._embed(local, first=0)
        for layer in self.layers:
            states, _ = layer(states)
        return torch.einsum("nsw,svw->nsv", self.norm(states), self.outputs).float()

    def _embed(self, local: torch.Tensor, first: int) -> torch.Tensor:
        """Codes ``[N, L, w]`` of the streams from ``first`` on."""
        streams = torch.arange(first, first + local.shape[1], device=local.device)
        return F.embedding(local + streams * self.interval, self.codes)

    def logits(
        self, hidden: torch.Tensor, rows: TokenRows, num_streams: int | None = None, ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See ``Head.logits``; after stream 0 the ids outside a stream's codebook get minus infinity.

        Raises:
            ValueError: more than one stream is asked for without the ids of the row.
        """
        first = joint_logits(hidden[:, None], rows)
        if num_streams == 1:
            return first
        if ids is None:
            raise ValueError("head depth: the streams after the first depend on the row's ids; give them")
        local = self._local(ids, rows.vocabulary)[:, :-1].clamp(0, self.interval - 1)
        own = self._row_logits(hidden, local)
        spread = first.new_full((*own.shape[:2], first.shape[-1]), -torch.inf)
        for position in range(own.shape[1]):
            start = rows.vocabulary.audio_pad(position + 1)
            spread[:, position, start : start + self.interval] = own[:, position]
        return torch.cat([first, spread], dim=1)[:, :num_streams]

    def blocks(self, num_streams: int) -> list[slice]:
        """Every stream by itself."""
        return [slice(stream, stream + 1) for stream in range(num_streams)]

    def start(self, hidden: torch.Tensor, rows: TokenRows, num_streams: int) -> RowState:
        """Project the states, unless stream 0 is all that is drawn."""
        projected = self.project(hidden) if num_streams > 1 else None
        return RowState(hidden, rows, projected, [None] * len(self.layers))

    def next_logits(
        self, state: RowState, streams: slice, candidates: torch.Tensor, ids: torch.Tensor | None
    ) -> torch.Tensor:
        """See ``Head.next_logits``; END tokens, which only stream 0 can hold, get minus infinity in the others."""
        if ids is None:
            return pick(joint_logits(state.hidden[:, None], state.rows), candidates)
        assert state.projected is not None, "start() was told of one stream only"
        previous, vocabulary = streams.start - 1, state.rows.vocabulary
        # an END token in stream 0 has no place in its codebook; what follows it in the row is never used
        local = self._local(ids, vocabulary)[:, -1:].clamp(0, self.interval - 1)
        states = state.projected[:, None] + self._embed(local, first=previous)
        for number, layer in enumerate(self.layers):
            states, state.past[number] = layer(states, state.past[number])
        logits = F.linear(self.norm(states[:, 0]), self.outputs[previous]).float()
        places = candidates[0] - vocabulary.audio_pad(streams.start)
        outside = (places < 0) | (places >= self.interval)
        return logits[:, places.clamp(0, self.interval - 1)].masked_fill(outside, -torch.inf)[:, None]
