"""The checks that an LLM passes when it is built: nothing leaks in a pack, and nothing of it is lost.

An LLM with attention or state of its own (state-space layers, sliding windows, convolutions over time, ALiBi) would
train on packs without an error and learn from its neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from bagpiper.batch import Spans
from bagpiper.llms.cache import KeyValueCache

if TYPE_CHECKING:
    from bagpiper.llms.hf import HfBackbone

LENGTHS = (4, 5, 3)
VICTIM = 1
TOLERANCE = 1e-5
"""Largest deviation of an example from itself alone, as a share of the largest hidden value. Measured on
SmolLM2-135M in float32: 6e-7, against transformers' eager attention and against the cache."""


@dataclass(frozen=True)
class Reference:
    """What a whole causal LM answers: ids ``[1, L]`` and the logits ``[L, V]`` of transformers' own forward pass."""

    ids: torch.Tensor
    logits: torch.Tensor


def read_reference(causal_lm: Any) -> Reference:
    """Run a whole causal LM before it is taken apart."""
    vocab_size = causal_lm.get_input_embeddings().weight.shape[0]
    ids = (torch.arange(6) * 7919 + 11)[None] % vocab_size
    was_training = causal_lm.training
    with torch.no_grad():
        logits = causal_lm.eval()(input_ids=ids, use_cache=False).logits[0]
    causal_lm.train(was_training)
    return Reference(ids, logits)


def check_rows(backbone: HfBackbone, reference: Reference) -> None:
    """Refuse an LLM whose logits are more than output rows times the layers' answer to input rows.

    Raises:
        ValueError: embeddings or logits are scaled, capped or biased on the way.
    """
    rows_in, rows_out, tied = backbone.text_rows_in, backbone.text_rows_out, backbone.tied
    assert rows_in is not None
    length = reference.ids.shape[1]
    with torch.no_grad():
        hidden = _in_eval(backbone, rows_in[reference.ids[0]], (length,))
        logits = hidden @ (rows_in if tied or rows_out is None else rows_out).T
    if not _close(logits, reference.logits, 10 * TOLERANCE):
        raise ValueError(
            f"llm '{backbone.name}' does more with its embedding and output rows than look-up and product (scaling, "
            "capping or a bias), which would be lost here; choose another LLM"
        )


def check_isolation(backbone: HfBackbone) -> None:
    """Refuse an LLM whose packed examples are not isolated.

    Three short examples are packed; one is perturbed, then filled with NaN: outputs and input gradients of the others
    must stay equal bit for bit. Every example must equal itself alone, by transformers' own eager attention and by
    the cache.

    Raises:
        ValueError: the LLM fails; the message says where.
    """
    generator = torch.Generator(device="cpu").manual_seed(0)
    device = next(backbone.parameters()).device
    total = sum(LENGTHS)
    embeds, other, weights = (torch.randn(total, backbone.width, generator=generator).to(device) for _ in range(3))
    victim = slice(sum(LENGTHS[:VICTIM]), sum(LENGTHS[: VICTIM + 1]))
    others = torch.ones(total, dtype=torch.bool, device=device)
    others[victim] = False
    try:
        outputs, gradients = _outputs_and_gradients(backbone, embeds, weights)
        for what, value in (("changed", other[victim]), ("filled with NaN", torch.full_like(other[victim], torch.nan))):
            disturbed = embeds.clone()
            disturbed[victim] = value
            outputs_now, gradients_now = _outputs_and_gradients(backbone, disturbed, weights)
            same = torch.equal(outputs[others], outputs_now[others])
            if not (same and torch.equal(gradients[others], gradients_now[others])):
                raise _refusal(backbone, f"one example was {what} and its neighbours in the pack noticed")
        with torch.no_grad():
            for packed, alone in zip(outputs.split(LENGTHS), embeds.split(LENGTHS), strict=True):
                if not _close(packed, _eager(backbone, alone), TOLERANCE):
                    raise _refusal(backbone, "an example in a pack differs from itself alone in transformers")
                if not _close(packed, _cached(backbone, alone), TOLERANCE):
                    raise _refusal(backbone, "an example in a pack differs from itself decoded with a cache")
    except (TypeError, AssertionError, AttributeError, RuntimeError, IndexError, NotImplementedError) as error:
        raise _refusal(backbone, f"its layers do not call the attention they are given ({error})") from error


def _refusal(backbone: HfBackbone, reason: str) -> ValueError:
    return ValueError(f"llm '{backbone.name}' cannot be trained on packs: {reason}. Choose another LLM")


def _close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> bool:
    return bool((ours - theirs).abs().max() <= tolerance * theirs.abs().max())


def _in_eval(backbone: HfBackbone, embeds: torch.Tensor, lengths: tuple[int, ...]) -> torch.Tensor:
    """Hidden states ``[T, H]`` of a pack, without dropout."""
    bounds = torch.tensor([0, *lengths], device=embeds.device).cumsum(0).to(torch.int32)
    positions = torch.cat([torch.arange(length, device=embeds.device) for length in lengths])
    was_training = backbone.model.training
    backbone.model.eval()
    hidden = backbone(embeds[None], positions[None], spans=Spans(bounds, lengths))[0]
    backbone.model.train(was_training)
    return hidden


def _outputs_and_gradients(
    backbone: HfBackbone, embeds: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states of the pack, and the gradient of their weighted sum with respect to the input (only)."""
    with torch.enable_grad():
        leaf = embeds.clone().requires_grad_()
        hidden = _in_eval(backbone, leaf, LENGTHS)
        (gradient,) = torch.autograd.grad((hidden * weights).sum(), leaf)
    return hidden.detach(), gradient


def _eager(backbone: HfBackbone, embeds: torch.Tensor) -> torch.Tensor:
    """Hidden states of one example alone, with the attention that transformers spells out for this LLM."""
    config = backbone.model.config
    name, was_training = config._attn_implementation, backbone.model.training
    try:
        config._attn_implementation = "eager"
        backbone.model.eval()
        return backbone.model(inputs_embeds=embeds[None], use_cache=False).last_hidden_state[0]
    finally:
        config._attn_implementation = name
        backbone.model.train(was_training)


def _cached(backbone: HfBackbone, embeds: torch.Tensor) -> torch.Tensor:
    """Hidden states of one example alone, the last row in a second step."""
    cache = KeyValueCache(1, embeds.device, capacity=len(embeds))
    was_training = backbone.model.training
    backbone.model.eval()
    pieces = []
    for piece in (embeds[:-1], embeds[-1:]):
        positions = cache.begin(torch.tensor([len(piece)], device=embeds.device), len(piece))
        pieces.append(backbone(piece[None], positions, cache=cache)[0])
        cache.commit()
    backbone.model.train(was_training)
    return torch.cat(pieces)
