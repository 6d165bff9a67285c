"""The model: embed -> LLM -> head. A reader can see the whole forward pass here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from lightning import LightningModule

from bagpiper.batch import Batch
from bagpiper.component import Adaptor, Backbone, Codec, Component, Counted, Encoder, Head, Metrics, metrics_of
from bagpiper.errors import Diverged
from bagpiper.language.conversation import Template
from bagpiper.language.patterns import get_pattern
from bagpiper.language.vocabulary import Vocabulary
from bagpiper.llms.cache import KeyValueCache
from bagpiper.meter import Meter
from bagpiper.ops.kernel_caches import limit_kernel_caches
from bagpiper.ops.shards import global_norm, local_of
from bagpiper.recipe import registry
from bagpiper.recipe.settings import ModelSettings
from bagpiper.token_rows import FROM_NOTHING_STD, INIT_STD, TokenRows

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from bagpiper.llms.tokenizer import TextTokenizer

PARTS = ("encoder", "adaptor", "llm", "codec", "head")


class Loss(NamedTuple):
    """A micro-batch's loss.

    Attributes:
        total: weighted sum of cross-entropies (scalar); divide by the step's target frames.
        metrics: name -> ``[sum, count]``.
        counted: the targets by group; ``rows`` are those of the pack.
    """

    total: torch.Tensor
    metrics: Metrics
    counted: dict[str, Counted]


class Bagpiper(LightningModule):
    """One language model that hears and speaks.

    Attributes:
        settings: what it was built from.
        vocabulary, tokenizer, template: its language.
        encoder, adaptor, llm, codec, head: its parts.
        input_rows, output_rows: rows of the vocabulary; ``tied`` says whether they share the text block.
        frame_dropout: share of target audio frames that are hidden from the input while training; the run sets it.
        make_optimizer: set by the run; gives what ``configure_optimizers`` returns.
        spread: set by the run where parameters are to be spread over ranks; does it.
        takes_part: whether every forward pass goes through every part, as it must with several ranks: they wait for
            this one's gradients, and for its share of parameters that are spread, even if its pack has no clip to hear.
        meter: sums of the training metrics since somebody last took them.
    """

    encoder: Encoder
    adaptor: Adaptor
    llm: Backbone
    codec: Codec
    head: Head

    def __init__(
        self,
        settings: ModelSettings,
        tokenizer: TextTokenizer,
        *,
        encoder: Encoder,
        adaptor: Adaptor,
        llm: Backbone,
        codec: Codec,
        head: Head,
    ) -> None:
        super().__init__()
        limit_kernel_caches()
        self.settings = settings
        self.tokenizer = tokenizer
        self.encoder, self.adaptor, self.llm, self.codec, self.head = encoder, adaptor, llm, codec, head
        self.vocabulary = Vocabulary(
            text_size=llm.text_size,
            num_codebooks=settings.codec.num_codebooks,
            codebook_size=settings.codec.codebook_size,
            text_zero_is_pad=settings.text_zero_is_pad,
        )
        if tokenizer.size > llm.text_size:
            raise ValueError(
                f"the tokenizer has {tokenizer.size} ids, but the LLM '{llm.name}' only {llm.text_size} text rows: ids "
                "beyond them would be those of codes; give the LLM the tokenizer that it was trained with"
            )
        rows_in, rows_out = llm.take_text_rows()
        std = FROM_NOTHING_STD if rows_in is None and not llm.tied else INIT_STD
        self.input_rows = TokenRows(self.vocabulary, llm.width, rows_in, std)
        self.output_rows = TokenRows(self.vocabulary, llm.width, self.input_rows.text if llm.tied else rows_out)
        self.tied = llm.tied
        self.template = Template(
            vocabulary=self.vocabulary,
            pattern=get_pattern(settings.pattern),
            encode_text=tokenizer.encode,
            stream_weights=stream_weights(settings),
        )
        self.frame_dropout = 0.0
        self.make_optimizer: Callable[[Bagpiper], Any] | None = None
        self.spread: Callable[[Bagpiper], None] | None = None
        self.takes_part = False
        self.meter = Meter()
        self._window: list[tuple[Batch, Loss]] = []

    @classmethod
    def build(
        cls,
        settings: ModelSettings,
        tokenizer: TextTokenizer,
        *,
        codec: Codec | None = None,
        text_size: int | None = None,
    ) -> Bagpiper:
        """Build every part from its config.

        Args:
            settings: the parts and how they fit.
            tokenizer: of the LLM's text.
            codec: one that exists already (just fitted, say); None builds it from ``settings.codec``.
            text_size: rows of the text block of an LLM without a source; None takes the tokenizer's length.
        """
        if settings.llm.source is None and text_size is None:
            text_size = tokenizer.size
        llm = registry.build("llm", settings.llm, vocab_size=text_size)
        encoder = registry.build("encoder", settings.encoder)
        adaptor = registry.build("adaptor", settings.adaptor, width_in=settings.encoder.width, width_out=llm.width)
        num_streams = get_pattern(settings.pattern).streams(settings.codec.num_codebooks)
        head = registry.build(
            "head",
            settings.head,
            width=llm.width,
            num_streams=num_streams,
            codebook_size=settings.codec.codebook_size,
        )
        codec = codec if codec is not None else registry.build("codec", settings.codec)
        codec.requires_grad_(False)
        return cls(settings, tokenizer, encoder=encoder, adaptor=adaptor, llm=llm, codec=codec, head=head)

    @property
    def parts(self) -> dict[str, Component]:
        """The five parts by kind."""
        return {name: getattr(self, name) for name in PARTS}

    def fingerprint(self, codec: Mapping[str, torch.Tensor] | None = None) -> str:
        """Hash of what the ids mean: layout, tokenizer, codec weights, pattern, stream weights.

        Args:
            codec: state dict in place of the codec's own, which may have no weights yet.
        """
        return self.vocabulary.fingerprint(
            tokenizer=self.tokenizer.hash(),
            codec=self.codec.weights_hash(codec),
            pattern=self.settings.pattern,
            stream_weights=self.template.stream_weights,
        )

    def reset_buffers(self) -> None:
        """Recompute buffers that no checkpoint carries, after a build on the meta device."""
        for part in self.parts.values():
            part.reset_buffers()

    def tie(self) -> None:
        """Share the text rows of both sides again where the LLM ties them; leaving the meta device unties them."""
        if self.tied:
            self.output_rows.text = self.input_rows.text

    # -- the forward pass ---------------------------------------------------------------------------------------

    def hear(self, waves: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Encoder and adaptor: waveforms ``[N_i]`` -> embeddings ``[F_i, H]``."""
        return self.adaptor(self.encoder(list(waves))) if waves else []

    def embed_rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Embeddings ``[..., H]`` of token rows ``[..., S]``."""
        return self.input_rows(ids)

    def embed(self, ids: torch.Tensor, slots: Sequence[tuple[int, int]], waves: Sequence[torch.Tensor]) -> torch.Tensor:
        """Embeddings of a pack ``[T, H]``: token rows, with the slots replaced by what is heard.

        Args:
            ids: ``[T, S]``.
            slots: first row and number of rows of each clip.
            waves: ``[N_i]`` for each slot.

        Raises:
            ValueError: a clip gives another number of embeddings than its slot has rows.
        """
        embeds = self.embed_rows(ids)
        heard = self.hear(waves)
        if not heard:
            return embeds + self._nothing_heard(embeds) if self.takes_part else embeds
        for (_, length), states in zip(slots, heard, strict=True):
            if len(states) != length:
                raise ValueError(f"a clip gave {len(states)} embeddings for a slot of {length} rows")
        rows = torch.cat([torch.arange(start, start + length) for start, length in slots]).to(ids.device)
        return embeds.index_copy(0, rows, torch.cat(heard).to(embeds.dtype))

    def _nothing_heard(self, embeds: torch.Tensor) -> torch.Tensor:
        """A zero (scalar) that encoder and adaptor have been asked for, with a second of silence; nothing is drawn."""
        dtype = torch.promote_types(embeds.dtype, torch.float32)
        silence = torch.zeros(self.settings.encoder.sample_rate, dtype=dtype, device=embeds.device)
        with torch.random.fork_rng(devices=[embeds.device] if embeds.is_cuda else []):
            return 0.0 * torch.cat(self.hear([silence])).sum()

    def hidden_states(self, batch: Batch) -> torch.Tensor:
        """The LLM's states ``[T, H]`` of a pack; those of row t predict row t + 1."""
        embeds = self.embed(batch.ids, batch.slots, batch.waves)
        if self.training and self.frame_dropout:
            embeds = self._hide_frames(embeds, batch)
        return self.llm(embeds[None], batch.positions[None], spans=batch.spans)[0]

    def _hide_frames(self, embeds: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Put zeros in the place of some target audio frames: ``[T, H]``."""
        is_target = (batch.ids[:, 0] >= self.vocabulary.audio_start) & (batch.weights[:, 0] > 0)
        hidden = is_target & (torch.rand(len(batch), device=embeds.device) < self.frame_dropout)
        return embeds.masked_fill(hidden[:, None], 0.0)

    def forward(self, batch: Batch) -> Loss:
        """Loss of a pack: row t predicts row t + 1 of the same example."""
        hidden = self.hidden_states(batch)
        # the first row of every example has weight 0, so nothing is predicted across a border
        rows = batch.weights[1:].any(-1).nonzero()[:, 0] + 1
        states = hidden.index_select(0, rows - 1)
        total, counted = self.head(states, batch.ids[rows], batch.weights[rows], self.output_rows)
        if self.takes_part:  # text has no use for the embeddings of the other streams
            total = total + 0.0 * sum(parameter.sum() for parameter in self.head.parameters())
        metrics = metrics_of(counted)
        metrics["loss"] = torch.stack(
            [total.detach().float(), torch.tensor(float(batch.num_targets), device=total.device)]
        )
        in_pack = {name: group._replace(rows=rows[group.rows]) for name, group in counted.items()}
        return Loss(total, metrics, in_pack)

    def logits(
        self, hidden: torch.Tensor, num_streams: int | None = None, ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Raw logits ``[N, S, V]`` (float32) of states ``[N, H]``, see ``Head.logits``."""
        return self.head.logits(hidden, self.output_rows, num_streams, ids)

    def extend(self, cache: KeyValueCache, embeds: torch.Tensor, new_lengths: torch.Tensor) -> torch.Tensor:
        """Run rows through the LLM and remember them.

        Args:
            cache: what came before; grows by ``new_lengths``.
            embeds: ``[B, L, H]``, padded on the right.
            new_lengths: int64 ``[B]``, real rows of each.

        Returns:
            hidden states ``[B, L, H]``.
        """
        positions = cache.begin(new_lengths, embeds.shape[1])
        hidden = self.llm(embeds, positions, cache=cache)
        cache.commit()
        return hidden

    # -- Lightning ----------------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> Bagpiper:
        """Training mode for parts that train; frozen parts stay in eval mode (dropout off, statistics fixed)."""
        super().train(mode)
        for part in self.parts.values():
            if not any(parameter.requires_grad for parameter in part.parameters()):
                part.eval()
        return self

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """The plain sum; ``on_before_optimizer_step`` divides the gradients."""
        loss = self(batch)
        self._window.append((batch, loss._replace(total=loss.total.detach())))
        self.meter.add(loss.metrics)
        return loss.total

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, torch.Tensor]:
        """Metrics of a pack; no dropout of any kind, no condition dropped."""
        return self(batch).metrics

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Divide the gradients, once and before clipping, by the target frames of the whole step.

        Lightning has divided every micro-batch by ``accumulate_grad_batches`` and averaged over ranks; both are undone,
        so that one rank with N micro-batches equals N ranks with one, and a short last window counts as it should.
        """
        targets = torch.tensor(float(sum(batch.num_targets for batch, _ in self._window)), device=self.device)
        bad = torch.stack([~loss.total.isfinite() for _, loss in self._window]).sum()
        clips = torch.full_like(targets, sum(len(batch.waves) for batch, _ in self._window))
        sums = torch.stack([targets, bad.to(targets), clips])
        world = 1
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
            world = torch.distributed.get_world_size()
        if self.takes_part and not bool(sums[2]):  # a zero gradient would move them on; one rank has none here
            for parameter in (*self.encoder.parameters(), *self.adaptor.parameters()):
                parameter.grad = None
        factor = self.trainer.accumulate_grad_batches * world / sums[0].clamp(min=1.0)
        # a loss that is not finite makes every gradient NaN, on every rank, so that all of them stop at the norm
        factor = torch.where(sums[1] > 0, torch.nan, factor)
        torch._foreach_mul_([local_of(p.grad) for p in self.parameters() if p.grad is not None], factor)

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip by the global norm (null: not at all); the norm before clipping is a metric.

        Raises:
            Diverged: the norm, or a loss of the step, is not finite; the step is not taken.
        """
        window, self._window = self._window, []
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        norm = global_norm(gradients)
        if not bool(norm.isfinite()):
            raise Diverged(f"step {self.trainer.global_step + 1} is not taken: {_blame(window)}")
        if gradient_clip_val:
            factor = (gradient_clip_val / (norm + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_([local_of(gradient) for gradient in gradients], factor)
        self.meter.add({"gradient_norm": torch.stack([norm.detach().float(), torch.ones_like(norm)])})

    def configure_model(self) -> None:
        """Spread the parameters over ranks, if the run has set how."""
        if self.spread is not None:
            self.spread(self)

    def configure_optimizers(self) -> Any:
        """What the run has set."""
        if self.make_optimizer is None:
            raise ValueError("set model.make_optimizer before training (bagpiper.run does)")
        return self.make_optimizer(self)


def stream_weights(settings: ModelSettings) -> tuple[float, ...]:
    """Loss weight of each codebook: the recipe's, or 1/K so that a frame counts like a text token."""
    count = settings.codec.num_codebooks
    return tuple(settings.stream_weights) if settings.stream_weights else (1.0 / count,) * count


def _blame(window: Sequence[tuple[Batch, Loss]]) -> str:
    """What of a step is not finite, and in which examples."""
    names: list[str] = []
    for batch, loss in window:
        rows = torch.cat([group.rows[~group.nll.isfinite()] for group in loss.counted.values()])
        if len(rows):
            names += batch.examples_of(rows)
        elif not bool(loss.total.isfinite()):
            names += batch.keys
    if names:
        return f"the loss of these examples is not finite: {_listed(names)}"
    keys = [key for batch, _ in window for key in batch.keys]
    return f"its gradient is not finite, though the losses on this rank are; its examples: {_listed(keys)}"


def _listed(names: Sequence[str], limit: int = 20) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
