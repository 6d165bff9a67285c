"""Attention over packs and over a ragged cache, as one function that transformers' models call.

Examples of one pack never see each other. On CUDA with 16-bit tensors torch's own variable-length FlashAttention kernel
runs; elsewhere one causal SDPA call per example (a dense block mask costs 2 to 5 times more, and lets a NaN cross:
masked weights are zero, and zero times NaN is NaN).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F

from bagpiper.batch import Spans
from bagpiper.ops.precision import exactly

ATTENTION_NAME = "bagpiper"


def attend_packed(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spans: Spans, scale: float, dropout: float = 0.0
) -> torch.Tensor:
    """Causal attention inside every example of a pack.

    Args:
        query: ``[1, heads, T, D]``.
        key, value: ``[1, kv_heads, T, D]``.
        spans: the examples' borders; their lengths sum to T.
        scale: factor on the scores.
        dropout: probability on the attention weights.

    Returns:
        ``[1, heads, T, D]``.
    """
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16) and not dropout:
        return _varlen(query, key, value, spans, scale)
    if query.device.type == "cpu":
        # in bfloat16 products, which the CPU's attention kernel makes tile by tile, it takes 5 times longer
        return exactly(lambda q, k, v: _attend_one_by_one(q, k, v, spans, scale, dropout), query, key, value)
    return _attend_one_by_one(query, key, value, spans, scale, dropout)


def _attend_one_by_one(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spans: Spans, scale: float, dropout: float
) -> torch.Tensor:
    """One call per example."""
    grouped = query.shape[1] != key.shape[1]
    # split, not slices: the backward pass of every slice fills a tensor as long as the pack, which took 15 % of a
    # step of 28 examples
    queries, keys, values = (tensor.split(list(spans.lengths), dim=2) for tensor in (query, key, value))
    pieces = [
        F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, scale=scale, enable_gqa=grouped)
        for q, k, v in zip(queries, keys, values, strict=True)
    ]
    return torch.cat(pieces, dim=2)


def _varlen(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spans: Spans, scale: float) -> torch.Tensor:
    from torch.nn.attention import varlen

    varlen_attn: Callable[..., torch.Tensor] = varlen.varlen_attn  # type: ignore[assignment]

    # torch 2.11 takes is_causal, 2.13 a window; neither takes the other's keyword
    known = _varlen_keywords()
    options: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and "enable_gqa" in known:
        options["enable_gqa"] = True
    elif groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if "scale" in known:
        options["scale"] = scale
    else:
        query = query * (scale * query.shape[-1] ** 0.5)
    rows = [tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value)]
    mixed = varlen_attn(*rows, spans.cu_seqlens, spans.cu_seqlens, spans.max_length, spans.max_length, **options)
    return mixed.transpose(0, 1)[None]


@cache
def _varlen_keywords() -> frozenset[str]:
    """Names of what torch's kernel takes here; asked once, since it would cost more than the kernel of a short pack."""
    from torch.nn.attention.varlen import varlen_attn

    return frozenset(inspect.signature(varlen_attn).parameters)


def _attention_for_transformers(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    spans: Spans | None = None,
    visible: torch.Tensor | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """The form transformers' ``AttentionInterface`` calls: returns ``[B, T, heads, D]`` and no weights.

    ``spans`` or ``visible`` (bool ``[B, 1, L, keys]``, from the cache) come through the model's keyword arguments.
    """
    if attention_mask is not None or (spans is None) == (visible is None):
        raise AssertionError("attention is called with either the spans of a pack or the mask of a cache")
    if sliding_window is not None:
        raise ValueError("this LLM uses sliding-window attention, which packs do not support; choose another LLM")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if spans is not None:
        mixed = attend_packed(query, key, value, spans, scale, dropout)
    else:
        mixed = F.scaled_dot_product_attention(
            query, key, value, attn_mask=visible, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
        )
    return mixed.transpose(1, 2).contiguous(), None


def register_attention() -> str:
    """Make the function known to transformers (once) and return the name to put into a model's config."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION_NAME, _attention_for_transformers)
    return ATTENTION_NAME
