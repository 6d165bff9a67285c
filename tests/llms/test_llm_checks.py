"""The checks: LLMs that pass, LLMs that are refused, and the reason given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from rough import Rough
from torch import nn
from transformers import AutoModelForCausalLM

from bagpiper.batch import Spans
from bagpiper.llms.checks import check_isolation
from bagpiper.llms.configs import HfConfig
from bagpiper.llms.hf import HfBackbone
from bagpiper.llms.sources import config_from_fields

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4}


def build(fields: dict[str, Any]) -> HfBackbone:
    torch.manual_seed(0)
    return HfBackbone(HfConfig(config=fields), vocab_size=300)


@pytest.mark.parametrize(
    "fields",
    [
        {"model_type": "qwen3", "head_dim": 8, **SMALL},
        {"model_type": "llama", **SMALL},
        {"model_type": "qwen3_moe", **SMALL, **MOE},
        {"model_type": "olmo2", **SMALL},
        GPT2,  # learned positions, dropout by default
    ],
    ids=lambda fields: fields["model_type"],
)
def test_llms_that_pass(fields: dict[str, Any]) -> None:
    assert build(fields).width == 32


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"model_type": "mamba", "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}, "neighbours"),
        ({"model_type": "lfm2", **SMALL, "layer_types": ["conv", "full_attention"]}, "neighbours"),
        ({"model_type": "bloom", "hidden_size": 32, "n_layer": 2, "n_head": 4}, "neighbours"),
        ({"model_type": "mistral", **SMALL, "sliding_window": 8}, "sliding-window"),
        ({"model_type": "mpt", "d_model": 32, "n_layers": 2, "n_heads": 4}, "do not call the attention"),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else "",
)
def test_llms_with_state_or_attention_of_their_own_are_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        build(fields)


def test_experts_pass_where_groups_of_other_sizes_round_otherwise() -> None:
    """Held to every bit, the probe refused all of them on an AMD EPYC."""
    module = build({"model_type": "qwen3_moe", **SMALL, **MOE})
    with Rough():
        check_isolation(module, module.alone, exact=False)
        with pytest.raises(ValueError, match="its neighbours in the pack noticed"):
            check_isolation(module, module.alone)


class TimeMix(nn.Module):
    """A leak: every row hears the one before it, whatever example that belongs to."""

    def __init__(self, inner: nn.Module, factor: float) -> None:
        super().__init__()
        self.inner, self.factor = inner, factor

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.inner(hidden + self.factor * hidden.roll(1, dims=1))


@pytest.mark.parametrize("factor", [1.0, 1e-4, 0.0])
def test_the_smallest_leak_is_found_even_one_of_nan_times_zero(factor: float) -> None:
    module = build({"model_type": "llama", **SMALL})
    module.layers[1].mlp = TimeMix(module.layers[1].mlp, factor)
    what = "changed" if factor else "filled with NaN"
    with pytest.raises(ValueError, match=f"'llama' cannot be trained on packs: one example was {what}"):
        check_isolation(module, module.alone)


@pytest.mark.parametrize("factor", [1e-4, 0.0])
def test_a_leak_is_found_among_experts_too(factor: float) -> None:
    """Their rows are compared within rounding, but a NaN shows a leak of any size."""
    module = build({"model_type": "qwen3_moe", **SMALL, **MOE})
    module.layers[1].self_attn.o_proj = TimeMix(module.layers[1].self_attn.o_proj, factor)
    with pytest.raises(ValueError, match="one example was filled with NaN and its neighbours in the pack noticed"):
        check_isolation(module, module.alone, exact=False)


def test_positions_that_are_not_honoured_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    module = build({"model_type": "llama", **SMALL})
    for layer in module.layers:  # fresh weights attend almost evenly, wherever the rows are
        layer.self_attn.q_proj.weight.data *= 100.0
    rotary = module.model.rotary_emb.forward

    def running(hidden: torch.Tensor, position_ids: torch.Tensor) -> Any:
        # positions count on along the pack, and not evenly, or relative positions would hide it
        return rotary(hidden, position_ids=torch.arange(position_ids.shape[1])[None] ** 2)

    monkeypatch.setattr(module.model.rotary_emb, "forward", running)
    with pytest.raises(ValueError, match="an example in a pack differs from itself"):
        check_isolation(module, module.alone)


def test_attention_extras_that_would_be_lost_are_found() -> None:
    """Attention sinks, score capping: parts of an LLM's attention that reach the function as keywords."""
    module = build({"model_type": "llama", **SMALL})
    for layer in module.layers:
        layer.self_attn.scaling *= 0.5  # what both attentions are told
    check_isolation(module, module.alone)
    from transformers.models.llama import modeling_llama

    original = modeling_llama.eager_attention_forward

    def with_sink(module: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        output, weights = original(module, query, key, value, *args, **kwargs)
        return output * 0.9, weights

    modeling_llama.eager_attention_forward = with_sink
    try:
        with pytest.raises(ValueError, match="differs from itself alone in transformers"):
            check_isolation(module, module.alone)
    finally:
        modeling_llama.eager_attention_forward = original


@pytest.mark.parametrize(
    "fields",
    [
        {"model_type": "cohere", **SMALL, "logit_scale": 0.5},
        {"model_type": "granite", **SMALL, "logits_scaling": 3.0},
        {"model_type": "phi", **SMALL},  # a bias on the logits
    ],
    ids=lambda fields: fields["model_type"],
)
def test_pretrained_llms_that_do_more_with_their_rows_are_refused(tmp_path: Path, fields: dict[str, Any]) -> None:
    torch.manual_seed(0)
    causal_lm = AutoModelForCausalLM.from_config(config_from_fields(fields, 300))
    for parameter in causal_lm.parameters():
        parameter.data.normal_(0.0, 0.1)
    causal_lm.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="does more with its embedding and output rows"):
        HfBackbone(HfConfig(source=str(tmp_path)))


def test_training_mode_survives_the_checks() -> None:
    for fields in ({"model_type": "llama", **SMALL}, GPT2):
        module = build(fields)
        module.train()
        check_isolation(module, module.alone)
        assert all(child.training for child in module.modules())
        embeds = torch.randn(1, 3, 32)
        spans = Spans(torch.tensor([0, 3], dtype=torch.int32), (3,))
        assert module(embeds, torch.arange(3)[None], spans=spans).shape == (1, 3, 32)
        assert all(parameter.grad is None for parameter in module.parameters())
