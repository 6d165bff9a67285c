"""Adaptors: promised lengths, independence of clips, and what each one computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from bagpiper.adaptors.configs import ConvConfig, LinearConfig, MlpConfig
from bagpiper.registry import build

CONFIGS = [
    LinearConfig(),
    MlpConfig(stack=3, hidden=10),
    MlpConfig(),
    MlpConfig(output_rms=1.0),
    ConvConfig(),
    ConvConfig(kernel=5, stride=3),
]
WIDTH_IN, WIDTH_OUT = 6, 8


def adaptor(config: Any) -> Any:
    torch.manual_seed(0)
    return build("adaptor", config, width_in=WIDTH_IN, width_out=WIDTH_OUT)


@pytest.mark.parametrize("config", CONFIGS)
@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(0, 12), max_size=5))
def test_promise_of_num_frames(config: Any, lengths: list[int]) -> None:
    outputs = adaptor(config)([torch.randn(length, WIDTH_IN) for length in lengths])
    assert [tuple(output.shape) for output in outputs] == [(config.num_frames(n), WIDTH_OUT) for n in lengths]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("disturbance", [1.0, float("nan")])
def test_clips_are_independent(config: Any, disturbance: float) -> None:
    module = adaptor(config)
    clips = [torch.randn(length, WIDTH_IN) for length in (7, 4, 5)]
    disturbed = [clips[0], clips[1] + disturbance, clips[2]]
    results = []
    for batch in (clips, disturbed):
        leaves = [clip.clone().requires_grad_() for clip in batch]
        outputs = module(leaves)
        sum(output.pow(2).sum() for output in outputs).backward()
        results.append((outputs, [leaf.grad for leaf in leaves]))
    (outputs, gradients), (outputs_now, gradients_now) = results
    for index in (0, 2):
        assert torch.equal(outputs[index], outputs_now[index])
        assert torch.equal(gradients[index], gradients_now[index])
        torch.testing.assert_close(module([clips[index]])[0], outputs[index], rtol=0, atol=1e-5)
    assert not torch.equal(outputs[1], outputs_now[1])


def test_mlp_stacks_neighbours_and_pads_the_last_group_with_zeros() -> None:
    module = adaptor(MlpConfig(stack=2))
    states = torch.randn(3, WIDTH_IN)
    stacked = torch.stack([torch.cat([states[0], states[1]]), torch.cat([states[2], torch.zeros(WIDTH_IN)])])
    torch.testing.assert_close(module([states])[0], module.output(F.gelu(module.hidden(stacked))))


def test_every_state_reaches_the_output() -> None:
    for config in CONFIGS:
        states = torch.randn(11, WIDTH_IN, requires_grad=True)
        adaptor(config)([states])[0].pow(2).sum().backward()
        assert bool((states.grad.abs().sum(dim=1) > 0).all()), config


def test_impossible_configs_are_refused() -> None:
    with pytest.raises(ValueError, match="stride must be from 1 to kernel"):
        ConvConfig(kernel=2, stride=3)
    with pytest.raises(ValueError, match="stack must be at least 1"):
        MlpConfig(stack=0)
    with pytest.raises(ValueError, match="hidden must be at least 1"):
        MlpConfig(hidden=0)
