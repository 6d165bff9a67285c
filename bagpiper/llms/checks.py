"""The checks that an LLM passes when it is built: nothing leaks in a pack, and nothing of it is lost.

An LLM with attention or state of its own (state-space layers, sliding windows, convolutions over time, ALiBi) would
train on packs without an error and learn from its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from bagpiper.batch import Spans
from bagpiper.component import Backbone
from bagpiper.llms.cache import KeyValueCache

LENGTHS = (4, 5, 3)
VICTIM = 1
TOLERANCE = 1e-5
"""Largest deviation of an example from itself alone, as a share of the largest hidden value. Measured on
SmolLM2-135M in float32: 6e-7, against transformers' eager attention and against the cache."""
_TRIALS = 3
"""Packs of which an LLM with experts has to pass one: two experts may tie within rounding, and then another is chosen.
A leak shows in every one."""

Alone = Callable[[torch.Tensor], torch.Tensor]
"""Embeddings ``[L, H]`` of one example -> its hidden states ``[L, H]``, by code that is not ours."""


@dataclass(frozen=True)
class Reference:
    """What a whole causal LM answers: ids ``[1, L]`` and the logits ``[L, V]`` of transformers' own forward pass."""

    ids: torch.Tensor
    logits: torch.Tensor


def read_reference(causal_lm: Any) -> Reference:
    """Run a whole causal LM before it is taken apart."""
    vocab_size = causal_lm.get_input_embeddings().weight.shape[0]
    ids = (torch.arange(6) * 7919 + 11)[None] % vocab_size
    with _in_eval(causal_lm), torch.no_grad():
        logits = causal_lm(input_ids=ids, use_cache=False).logits[0]
    return Reference(ids, logits)


def check_rows(
    backbone: Backbone, reference: Reference, rows_in: torch.Tensor | None, rows_out: torch.Tensor | None
) -> None:
    """Refuse an LLM whose logits are more than output rows times the layers' answer to input rows.

    Args:
        backbone: the layers.
        reference: of the whole LLM.
        rows_in, rows_out: its rows ``[text_size, width]``; None for output rows that are tied.

    Raises:
        ValueError: embeddings or logits are scaled, capped or biased on the way.
    """
    assert rows_in is not None
    with _in_eval(backbone), torch.no_grad():
        hidden = _packed(backbone, rows_in[reference.ids[0]], (reference.ids.shape[1],))
        logits = hidden @ (rows_in if rows_out is None else rows_out).T
    if not _close(logits, reference.logits, 10 * TOLERANCE):
        raise ValueError(
            f"llm '{backbone.name}' does more with its embedding and output rows than look-up and product (scaling, "
            "capping or a bias), which would be lost here; choose another LLM"
        )


def check_isolation(backbone: Backbone, alone: Alone, *, exact: bool = True) -> None:
    """Refuse an LLM whose packed examples are not isolated.

    Three short examples are packed; one is changed, then filled with NaN: outputs and input gradients of the others
    must stay equal bit for bit. Where rows choose among experts, another choice makes other groups of rows, whose
    products round otherwise on some CPUs: there they must agree within rounding, and no NaN may cross, which shows a
    leak of any size. Every example must equal itself alone, by code that is not ours and by the cache, within rounding:
    products of other shapes round otherwise too.

    Args:
        backbone: the LLM.
        alone: runs one example by itself.
        exact: whether equal means bit for bit; False for LLMs with experts.

    Raises:
        ValueError: the LLM fails; the message says where.
    """
    fault = None
    for seed in range(1 if exact else _TRIALS):
        try:
            fault = _fault(backbone, alone, torch.equal if exact else _agree, seed)
        except (TypeError, AssertionError, AttributeError, RuntimeError, IndexError, NotImplementedError) as error:
            fault = f"its layers do not call the attention they are given ({error})"
        if fault is None:
            return
    raise ValueError(f"llm '{backbone.name}' cannot be trained on packs: {fault}. Choose another LLM")


def _fault(
    backbone: Backbone, alone: Alone, same: Callable[[torch.Tensor, torch.Tensor], bool], seed: int
) -> str | None:
    """What is wrong with an LLM on a pack of random embeddings, or None."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    device = next(backbone.parameters()).device
    total = sum(LENGTHS)
    embeds, other, weights = (torch.randn(total, backbone.width, generator=generator).to(device) for _ in range(3))
    victim = slice(sum(LENGTHS[:VICTIM]), sum(LENGTHS[: VICTIM + 1]))
    others = torch.ones(total, dtype=torch.bool, device=device)
    others[victim] = False
    with _in_eval(backbone):
        outputs, gradients = _outputs_and_gradients(backbone, embeds, weights)
        for what, now in (("changed", other[victim]), ("filled with NaN", torch.full_like(other[victim], torch.nan))):
            disturbed = embeds.clone()
            disturbed[victim] = now
            outputs_now, gradients_now = _outputs_and_gradients(backbone, disturbed, weights)
            if not (same(outputs[others], outputs_now[others]) and same(gradients[others], gradients_now[others])):
                return f"one example was {what} and its neighbours in the pack noticed"
        with torch.no_grad():
            for packed, example in zip(outputs.split(LENGTHS), embeds.split(LENGTHS), strict=True):
                if not _close(packed, alone(example), TOLERANCE):
                    return "an example in a pack differs from itself alone in transformers"
                if not _close(packed, _cached(backbone, example), TOLERANCE):
                    return "an example in a pack differs from itself decoded with a cache"
    return None


def _agree(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return _close(ours, theirs, TOLERANCE)


def _close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> bool:
    """Whether all differences are within ``tolerance`` of the largest value; a NaN is no difference within anything."""
    return bool((ours - theirs).abs().max() <= tolerance * theirs.abs().max())


@contextmanager
def _in_eval(model: torch.nn.Module) -> Iterator[None]:
    """Without dropout inside the block; afterwards every module is in its own mode again."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _packed(backbone: Backbone, embeds: torch.Tensor, lengths: tuple[int, ...]) -> torch.Tensor:
    """Hidden states ``[T, H]`` of a pack."""
    bounds = torch.tensor([0, *lengths], device=embeds.device).cumsum(0).to(torch.int32)
    positions = torch.cat([torch.arange(length, device=embeds.device) for length in lengths])
    return backbone(embeds[None], positions[None], spans=Spans(bounds, lengths))[0]


def _outputs_and_gradients(
    backbone: Backbone, embeds: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states of the pack, and the gradient of their weighted sum with respect to the input (only)."""
    with torch.enable_grad():
        leaf = embeds.clone().requires_grad_()
        hidden = _packed(backbone, leaf, LENGTHS)
        (gradient,) = torch.autograd.grad((hidden * weights).sum(), leaf)
    return hidden.detach(), gradient


def _cached(backbone: Backbone, embeds: torch.Tensor) -> torch.Tensor:
    """Hidden states ``[L, H]`` of one example alone, the last row in a second step."""
    cache = KeyValueCache(1, embeds.device, capacity=len(embeds))
    pieces = []
    for piece in (embeds[:-1], embeds[-1:]):
        positions = cache.begin(torch.tensor([len(piece)], device=embeds.device), len(piece))
        pieces.append(backbone(piece[None], positions, cache=cache)[0])
        cache.commit()
    return torch.cat(pieces)
