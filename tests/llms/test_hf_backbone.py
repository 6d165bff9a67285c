"""The backbone: packs, cache, rows, portable config, meta builds, gradient checkpointing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from bagpiper.batch import Spans
from bagpiper.llms.cache import KeyValueCache
from bagpiper.llms.configs import HfConfig
from bagpiper.llms.hf import HfBackbone
from bagpiper.llms.sources import config_from_fields
from bagpiper.recipe.registry import build

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
}
QWEN3 = {"model_type": "qwen3", "head_dim": 8, **SMALL}
LLAMA = {"model_type": "llama", **SMALL}
LLAMA3_ROPE = {
    **LLAMA,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}
YARN = {
    **QWEN3,
    "max_position_embeddings": 256,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}
LENGTHS = (4, 7, 1)


def backbone(fields: dict[str, Any] = QWEN3) -> HfBackbone:
    torch.manual_seed(0)
    return build("llm", HfConfig(config=fields), vocab_size=300)


def pack(lengths: tuple[int, ...] = LENGTHS) -> tuple[torch.Tensor, torch.Tensor, Spans]:
    generator = torch.Generator().manual_seed(1)
    embeds = torch.randn(1, sum(lengths), 32, generator=generator)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    bounds = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    return embeds, positions, Spans(bounds, lengths)


@pytest.mark.parametrize("fields", [QWEN3, LLAMA, LLAMA3_ROPE], ids=["qwen3", "llama", "llama3-rope"])
def test_a_pack_equals_transformers_on_each_example_alone(fields: dict[str, Any]) -> None:
    """The official code trains on packs with flash-attention only (spec section 3.5)."""
    module = backbone(fields).eval()
    plain = AutoModelForCausalLM.from_config(config_from_fields(fields, 300)).eval().model
    plain.load_state_dict(module.model.state_dict(), strict=False)
    embeds, positions, spans = pack()
    hidden = module(embeds, positions, spans=spans)
    assert hidden.shape == embeds.shape
    for example, ours in zip(embeds.split(LENGTHS, dim=1), hidden.split(LENGTHS, dim=1), strict=True):
        theirs = plain(inputs_embeds=example, use_cache=False).last_hidden_state
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_ragged_cache_equals_the_pack() -> None:
    module = backbone().eval()
    lengths = (4, 7)
    embeds, positions, spans = pack(lengths)
    with torch.no_grad():
        packed = module(embeds, positions, spans=spans)[0].split(lengths)
        rows = embeds[0].split(lengths)
        cache = KeyValueCache(2)
        prompts = torch.zeros(2, 5, 32)
        prompts[0, :3], prompts[1, :5] = rows[0][:3], rows[1][:5]
        where = cache.begin(torch.tensor([3, 5]), 5)
        first = module(prompts, where, cache=cache)
        cache.commit()
        torch.testing.assert_close(first[0, :3], packed[0][:3], rtol=0, atol=1e-5)
        torch.testing.assert_close(first[1, :5], packed[1][:5], rtol=0, atol=1e-5)
        where = cache.begin(torch.tensor([1, 1]), 1)
        step = module(torch.stack([rows[0][3:4], rows[1][5:6]]), where, cache=cache)
        torch.testing.assert_close(step[:, 0], torch.stack([packed[0][3], packed[1][5]]), rtol=0, atol=1e-5)


def test_the_vocabulary_matrices_are_gone() -> None:
    module = backbone()
    assert (module.text_size, module.width, module.tied) == (300, 32, False)
    assert all(300 not in parameter.shape for parameter in module.parameters())
    assert module.take_text_rows() == (None, None)
    assert len(module.layers) == 2


@pytest.mark.parametrize("tied", [True, False])
def test_a_folder_hands_its_rows_over_once(tmp_path: Path, tied: bool) -> None:
    torch.manual_seed(3)
    causal_lm = AutoModelForCausalLM.from_config(config_from_fields({**QWEN3, "tie_word_embeddings": tied}, 300)).eval()
    causal_lm.to(torch.bfloat16).save_pretrained(tmp_path)
    causal_lm.float()
    module = build("llm", HfConfig(source=str(tmp_path)))
    assert all(parameter.dtype == torch.float32 for parameter in module.parameters())
    rows_in, rows_out = module.take_text_rows()
    assert module.tied == tied and (rows_out is None) == tied
    assert module.take_text_rows() == (None, None)
    ids = torch.tensor([[5, 17, 299, 0, 8]])
    spans = Spans(torch.tensor([0, 5], dtype=torch.int32), (5,))
    with torch.no_grad():
        hidden = module.eval()(rows_in[ids], torch.arange(5)[None], spans=spans)
        logits = hidden @ (rows_in if tied else rows_out).T
        torch.testing.assert_close(logits, causal_lm(input_ids=ids).logits, rtol=0, atol=1e-5)


def test_vocab_size_must_match_the_source(tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(config_from_fields(QWEN3, 300)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has 300 text rows, not 299"):
        HfBackbone(HfConfig(source=str(tmp_path)), vocab_size=299)


def test_portable_config_rebuilds_without_the_folder(tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(config_from_fields(YARN, 300)).save_pretrained(tmp_path / "llm")
    module = HfBackbone(HfConfig(source=str(tmp_path / "llm"))).eval()
    portable = module.portable_config()
    assert portable.source is None
    assert str(tmp_path) not in json.dumps(portable.config)
    rebuilt = HfBackbone(portable, vocab_size=module.text_size).eval()
    rebuilt.load_state_dict(module.state_dict())
    embeds, positions, spans = pack()
    assert torch.equal(rebuilt(embeds, positions, spans=spans), module(embeds, positions, spans=spans))
    assert rebuilt.portable_config() == portable


@pytest.mark.parametrize("fields", [QWEN3, LLAMA3_ROPE, YARN], ids=["qwen3", "llama3-rope", "yarn"])
def test_meta_build_equals_normal_build_every_buffer_included(fields: dict[str, Any]) -> None:
    module = backbone(fields).eval()
    with torch.device("meta"):
        empty = HfBackbone(module.portable_config(), vocab_size=300).eval()
    assert all(tensor.is_meta for tensor in empty.parameters())
    empty.to_empty(device="cpu")
    for buffer in empty.buffers():
        buffer.fill_(float("nan"))
    empty.load_state_dict(module.state_dict())
    empty.reset_buffers()
    names = [name for name, _ in module.named_buffers()]
    assert {name.rpartition(".")[2] for name in names} == {"inv_freq", "original_inv_freq"}
    for (name, mine), (other, theirs) in zip(module.named_buffers(), empty.named_buffers(), strict=True):
        assert name == other and torch.equal(mine, theirs), name
    assert empty.model.rotary_emb.attention_scaling == module.model.rotary_emb.attention_scaling
    embeds, positions, spans = pack()
    assert torch.equal(empty(embeds, positions, spans=spans), module(embeds, positions, spans=spans))


def test_buffers_that_nobody_recomputes_are_refused() -> None:
    module = backbone()
    module.model.layers[0].register_buffer("table", torch.ones(3), persistent=False)
    with pytest.raises(ValueError, match=r"cannot recompute the buffer layers\.0\.table"):
        module.reset_buffers()


def test_resetting_buffers_leaves_weights_alone() -> None:
    module = backbone()
    before = {name: tensor.clone() for name, tensor in module.named_parameters()}
    module.reset_buffers()
    assert all(torch.equal(before[name], tensor) for name, tensor in module.named_parameters())


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    module = backbone().train()
    embeds, positions, spans = pack()
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    module.layers[0].self_attn.register_forward_hook(count)
    results = []
    for enable in (False, True, False):
        module.gradient_checkpointing(enable)
        module.zero_grad()
        calls = 0
        hidden = module(embeds, positions, spans=spans)
        hidden.pow(2).sum().backward()
        assert calls == (2 if enable else 1)
        results.append([hidden.detach(), *(parameter.grad.clone() for parameter in module.parameters())])
    for plain, recomputed in zip(results[0], results[1], strict=True):
        assert torch.equal(plain, recomputed)


def test_building_and_probing_leave_the_random_state_and_mode_alone() -> None:
    torch.manual_seed(5)
    with torch.random.fork_rng():
        reference = AutoModelForCausalLM.from_config(config_from_fields(QWEN3, 300))
        expected = torch.rand(3)
    module = HfBackbone(HfConfig(config=QWEN3), vocab_size=300)
    assert torch.equal(torch.rand(3), expected)
    assert all(
        torch.equal(mine, reference.model.state_dict()[name]) for name, mine in module.model.state_dict().items()
    )
    assert module.model.training == reference.training


def test_neither_source_nor_config_is_refused() -> None:
    with pytest.raises(ValueError, match="give 'source'"):
        HfBackbone(HfConfig(), vocab_size=300)


@pytest.mark.golden
def test_hidden_states_equal_the_official_code(golden: Path) -> None:
    """Official embeddings in, official hidden states out, all examples in one pack."""
    fields = json.loads((golden / "llm" / "config.json").read_text())
    for name in ("architectures", "dtype", "transformers_version"):
        del fields[name]
    module = HfBackbone(HfConfig(config=fields), vocab_size=fields["vocab_size"]).eval()
    weights = torch.load(golden / "espnet_tiny.pt", weights_only=True)["module"]
    prefixes = ("model.layers.", "model.norm.")
    module.load_state_dict({name: tensor for name, tensor in weights.items() if name.startswith(prefixes)})
    recorded = np.load(golden / "forward.npz")
    names = [name.removesuffix("/hidden") for name in recorded.files if name.endswith("/hidden")]
    embeds = [torch.from_numpy(recorded[f"{name}/inputs_embeds"]) for name in names]
    lengths = tuple(len(example) for example in embeds)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    spans = Spans(torch.tensor([0, *lengths]).cumsum(0).to(torch.int32), lengths)
    with torch.no_grad():
        hidden = module(torch.cat(embeds)[None], positions, spans=spans)[0]
    assert names
    for name, ours in zip(names, hidden.split(lengths), strict=True):
        torch.testing.assert_close(ours, torch.from_numpy(recorded[f"{name}/hidden"]), rtol=0, atol=1e-4)
