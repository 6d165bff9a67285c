"""Adaptors: promised lengths, independence of clips, and what each one computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from isolation import DISTURBANCES, check_isolation
from rough import check_within_rounding

from bagpiper.adaptors.configs import ConvConfig, LinearConfig, MlpConfig, QformerConfig
from bagpiper.recipe.registry import build

CONFIGS = [
    LinearConfig(),
    MlpConfig(stack=3, hidden=10),
    MlpConfig(),
    MlpConfig(output_rms=1.0),
    ConvConfig(),
    ConvConfig(kernel=5, stride=3),
    QformerConfig(window=3, queries=2, heads=2),
    QformerConfig(window=4, queries=1, width=12, heads=3, layers=1, output_rms=1.0),
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
@pytest.mark.parametrize("disturbance", DISTURBANCES)
def test_clips_are_independent(config: Any, disturbance: float) -> None:
    check_isolation(adaptor(config), [torch.randn(length, WIDTH_IN) for length in (7, 4, 5)], 1, disturbance)


def test_mlp_stacks_neighbours_and_pads_the_last_group_with_zeros() -> None:
    module = adaptor(MlpConfig(stack=2))
    states = torch.randn(3, WIDTH_IN)
    stacked = torch.stack([torch.cat([states[0], states[1]]), torch.cat([states[2], torch.zeros(WIDTH_IN)])])
    torch.testing.assert_close(module([states])[0], module.output(F.gelu(module.hidden(stacked))))


def test_qformer_sees_one_window_at_a_time_and_tells_its_states_apart() -> None:
    module = adaptor(QformerConfig(window=4, queries=2, heads=2))
    states = torch.randn(10, WIDTH_IN)
    whole = module([states])[0]
    pieces = module([states[:4], states[4:8], states[8:]])
    check_within_rounding(whole, torch.cat(pieces))
    assert not torch.allclose(module([states[:4].flip(0)])[0], pieces[0], atol=1e-4)
    assert not torch.allclose(pieces[0][0], pieces[0][1], atol=1e-4)


def test_qformer_does_not_take_padding_for_states() -> None:
    """A clip that ends inside a window has its own embeddings, not those of the clip with zeros after it."""
    module = adaptor(QformerConfig(window=4, queries=2, heads=2))
    states = torch.randn(3, WIDTH_IN)
    padded = torch.cat([states, torch.zeros(1, WIDTH_IN)])
    assert not torch.allclose(module([states])[0], module([padded])[0], atol=1e-4)


@pytest.mark.parametrize("config", [MlpConfig(output_rms=0.7), QformerConfig(heads=2, output_rms=0.7)])
def test_output_rms_is_where_the_size_of_an_embedding_starts(config: Any) -> None:
    (embeddings,) = adaptor(config)([torch.randn(9, WIDTH_IN)])
    assert embeddings.pow(2).mean(1).sqrt().tolist() == pytest.approx([0.7] * len(embeddings), rel=1e-3)


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
    with pytest.raises(ValueError, match="window must be at least 1"):
        QformerConfig(window=0)
    with pytest.raises(ValueError, match="width \\(6\\) must be a multiple of heads \\(4\\)"):
        adaptor(QformerConfig())
