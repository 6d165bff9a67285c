"""LoRA and NF4 on the backbone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from bagpiper.batch import Spans
from bagpiper.llms.configs import HfConfig, LoraSettings
from bagpiper.llms.hf import HfBackbone
from bagpiper.llms.lora import add_lora, merge_lora, quantize_nf4, set_compute_dtype

FIELDS: dict[str, Any] = {
    "model_type": "qwen3",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 128,
    "attention_bias": True,
}
PACK = (
    torch.randn(1, 9, 64, generator=torch.Generator().manual_seed(0)),
    torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]]),
    Spans(torch.tensor([0, 4, 9], dtype=torch.int32), (4, 5)),
)


@pytest.fixture(scope="module")
def plain() -> HfBackbone:
    torch.manual_seed(0)
    return HfBackbone(HfConfig(config=FIELDS), vocab_size=300).eval()


def run(module: HfBackbone) -> torch.Tensor:
    embeds, positions, spans = PACK
    return module(embeds, positions, spans=spans)


def adapted(plain: HfBackbone, **settings: Any) -> tuple[HfBackbone, list[str]]:
    module = copy.deepcopy(plain)
    torch.manual_seed(1)
    return module, add_lora(module, LoraSettings(rank=4, **settings))


def train_a_little(module: HfBackbone) -> None:
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=1.0)
    for _ in range(3):
        optimizer.zero_grad()
        (run(module) - 1.0).pow(2).mean().backward()
        optimizer.step()


def test_at_first_lora_changes_nothing(plain: HfBackbone) -> None:
    module, names = adapted(plain)
    assert torch.equal(run(module), run(plain))
    assert len(names) == 2 * 7 * 2  # A and B of seven layers in each of two blocks


@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_only_the_adaptors_train(plain: HfBackbone, quantize: str) -> None:
    module, names = adapted(plain, quantize=quantize)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    train_a_little(module)
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in names), name
    assert all(".lora_" in name for name in names)
    assert all(parameter.requires_grad == (name in names) for name, parameter in module.named_parameters())


@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_merged_equals_unmerged(plain: HfBackbone, quantize: str) -> None:
    module, _ = adapted(plain, quantize=quantize)
    untrained = run(module)
    train_a_little(module)
    trained = run(module)
    assert float((trained - untrained).detach().abs().max()) > 1e-2
    merge_lora(module)
    torch.testing.assert_close(run(module), trained, rtol=0, atol=1e-5)
    assert {name: tensor.shape for name, tensor in module.state_dict().items()} == {
        name: tensor.shape for name, tensor in plain.state_dict().items()
    }
    rebuilt = HfBackbone(module.portable_config(), vocab_size=300).eval()
    rebuilt.load_state_dict(module.state_dict())
    assert torch.equal(rebuilt(PACK[0], PACK[1], spans=PACK[2]), run(module))


@pytest.mark.parametrize("quantize", ["none", "nf4"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_state_dict_goes_into_a_new_backbone(plain: HfBackbone, quantize: str, device: str) -> None:
    """On the meta device too: a model folder is read without holding the weights twice."""
    module, _ = adapted(plain, quantize=quantize)
    train_a_little(module)
    with torch.device(device):
        fresh = HfBackbone(plain.portable_config(), vocab_size=300).eval()
        add_lora(fresh, LoraSettings(rank=4, quantize=quantize))
    if device == "meta":
        fresh.to_empty(device="cpu")
    fresh.load_state_dict(module.state_dict())
    fresh.reset_buffers()
    assert torch.equal(run(fresh), run(module))
    again = fresh.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in module.state_dict().items())


def test_nf4_is_close_and_takes_an_eighth_of_the_room(plain: HfBackbone) -> None:
    module = copy.deepcopy(plain)
    quantize_nf4(module)
    ours, full = run(module).detach(), run(plain).detach()
    assert 0.0 < float((ours - full).norm() / full.norm()) < 0.1
    weight = module.state_dict()["model.layers.0.mlp.up_proj.weight"]
    assert weight.dtype == torch.uint8 and weight.numel() == 64 * 128 // 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nf4_layers_stay_as_they_are_when_they_run(plain: HfBackbone, dtype: torch.dtype) -> None:
    """bitsandbytes repacks them on CPUs with AVX512-BF16, and what it saves afterwards is another weight.

    It also rounds their bias to what they compute in.
    """
    # several blocks of 64 in both directions
    fields = {**FIELDS, "hidden_size": 128, "intermediate_size": 192, "attention_bias": True}
    module = HfBackbone(HfConfig(config=fields), vocab_size=300).eval()
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    quantize_nf4(module)
    set_compute_dtype(module, dtype)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    embeds, positions, spans = PACK
    with torch.no_grad():
        first = module(embeds.repeat(1, 1, 128 // embeds.shape[-1]), positions, spans=spans)
        for name, value in module.state_dict().items():
            assert value.shape == before[name].shape and torch.equal(value, before[name]), name
        assert torch.equal(first, module(embeds.repeat(1, 1, 128 // embeds.shape[-1]), positions, spans=spans))


def test_nf4_takes_float_weights_and_reports_missing_ones(plain: HfBackbone) -> None:
    module, other = copy.deepcopy(plain), copy.deepcopy(plain)
    quantize_nf4(module)
    for parameter in other.model.parameters():
        parameter.data.normal_()
    quantize_nf4(other)
    other.load_state_dict(plain.state_dict())
    assert torch.equal(run(other), run(module))
    state = module.state_dict()
    for lost in ("weight", "absmax", "bias"):
        name = f"model.layers.0.self_attn.q_proj.{lost}"
        with pytest.raises(RuntimeError, match=name):
            other.load_state_dict({key: value for key, value in state.items() if key != name})


def test_targets_by_name(plain: HfBackbone) -> None:
    _, names = adapted(plain, targets=["q_proj", "v_proj"])
    assert {name.split(".")[-4] for name in names} == {"q_proj", "v_proj"} and len(names) == 8
    _, names = adapted(plain, targets=["layers.1.mlp.up_proj"])
    assert {name.rpartition(".lora_")[0] for name in names} == {"model.layers.1.mlp.up_proj"}


def test_wrong_settings_are_refused(plain: HfBackbone) -> None:
    with pytest.raises(ValueError, match=r"no linear layer 'q_porj'; allowed: all-linear, down_proj, .*q_proj"):
        adapted(plain, targets=["q_porj"])
    with pytest.raises(ValueError, match="targets is empty"):
        adapted(plain, targets=[])
    with pytest.raises(ValueError, match="rank must be at least 1"):
        add_lora(copy.deepcopy(plain), LoraSettings(rank=0))
    module, _ = adapted(plain)
    with pytest.raises(ValueError, match="already"):
        add_lora(module, LoraSettings(rank=4))


def test_lora_keeps_packs_isolated_and_survives_checkpointing(plain: HfBackbone) -> None:
    module, names = adapted(plain, quantize="nf4")
    train_a_little(module)
    embeds, positions, spans = PACK
    disturbed = embeds.clone()
    disturbed[:, 4:] = float("nan")
    assert torch.equal(module(embeds, positions, spans=spans)[:, :4], module(disturbed, positions, spans=spans)[:, :4])
    gradients = []
    module.train()
    for enable in (False, True):
        module.gradient_checkpointing(enable)
        module.zero_grad()
        run(module).pow(3).sum().backward()
        gradients.append([parameter.grad.clone() for parameter in module.parameters() if parameter.requires_grad])
    assert len(gradients[0]) == len(names)
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
