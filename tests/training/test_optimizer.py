"""The optimizer and the schedule against spec section 7.1."""

import math
from itertools import pairwise

import pytest
import torch

from bagpiper.recipe.settings import OptimizerSettings
from bagpiper.training.muon import MuonWithAdamW
from bagpiper.training.optimizer import build_optimizer, build_schedule, learning_rate_factor, parameter_groups


def test_schedule_starts_at_zero_peaks_and_ends_at_the_floor():
    settings = OptimizerSettings(warmup_steps=10, min_lr_ratio=0.3, decay_end_step=110)
    factors = [learning_rate_factor(step, settings, max_steps=500) for step in range(200)]
    assert factors[0] == 0.0
    assert factors[5] == 0.5
    assert factors[10] == 1.0
    assert factors[60] == pytest.approx(0.3 + 0.7 * 0.5)
    assert factors[110] == 0.3
    assert factors[199] == 0.3
    assert all(a > b for a, b in pairwise(factors[10:111]))


def test_decay_ends_with_the_run_when_the_recipe_does_not_say():
    settings = OptimizerSettings(warmup_steps=0, min_lr_ratio=0.0)
    assert learning_rate_factor(50, settings, max_steps=100) == pytest.approx(0.5 * (1 + math.cos(math.pi / 2)))
    assert learning_rate_factor(100, settings, max_steps=100) == 0.0


def test_warm_up_longer_than_the_run_never_divides_by_zero():
    settings = OptimizerSettings(warmup_steps=100)
    assert learning_rate_factor(19, settings, max_steps=20) == pytest.approx(0.19)
    assert learning_rate_factor(100, settings, max_steps=20) == settings.min_lr_ratio


def test_floor_of_one_is_a_constant_rate_after_warm_up():
    settings = OptimizerSettings(warmup_steps=2, min_lr_ratio=1.0)
    assert {learning_rate_factor(step, settings, 50) for step in range(2, 80)} == {1.0}


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rows = torch.nn.Embedding(5, 4)
        self.body = torch.nn.Linear(4, 4)
        self.out = torch.nn.Linear(4, 5, bias=False)
        self.out.weight = self.rows.weight
        self.frozen = torch.nn.Linear(4, 4).requires_grad_(False)


def test_every_trainable_parameter_exactly_once_and_embedding_rows_do_not_decay():
    model = Tied()
    optimizer = build_optimizer(model, [model.rows.weight], OptimizerSettings(weight_decay=0.1))
    listed = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(listed) == sorted({id(p) for p in model.parameters() if p.requires_grad})
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay[id(model.rows.weight)] == 0.0
    assert decay[id(model.body.weight)] == decay[id(model.body.bias)] == 0.1
    assert optimizer.defaults["betas"] == (0.9, 0.95)


def test_first_step_has_learning_rate_zero():
    model = torch.nn.Linear(2, 2)
    settings = OptimizerSettings(lr=1.0, warmup_steps=2)
    optimizer = build_optimizer(model, [], settings)
    schedule = build_schedule(optimizer, settings, max_steps=10)
    before = model.weight.detach().clone()
    rates = []
    for _ in range(3):
        model(torch.ones(1, 2)).sum().backward()
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
        if len(rates) == 1:
            assert torch.equal(model.weight, before)
    assert rates == [0.0, 0.5, 1.0]
    assert not torch.equal(model.weight, before)


def test_nothing_to_train_is_an_error():
    with pytest.raises(ValueError, match="nothing trains"):
        parameter_groups(torch.nn.Linear(2, 2).requires_grad_(False), [], 0.0)


def _muon(seed: int = 0):
    torch.manual_seed(seed)
    model = Tied()
    settings = OptimizerSettings(name="muon", lr=0.01, matrix_lr=0.1, weight_decay=0.0, warmup_steps=0)
    return model, build_optimizer(model, [model.rows.weight], settings, [model.body.weight, model.frozen.weight])


def _step(model: Tied, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model.out(torch.tanh(model.body(model.rows(torch.arange(5))))).square().sum().backward()
    optimizer.step()


def test_muon_moves_a_matrix_in_every_direction_alike_and_adamw_has_the_rest():
    model, optimizer = _muon()
    listed = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(listed) == sorted({id(p) for p in model.parameters() if p.requires_grad})
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(model.body.weight)]
    before, rows = model.body.weight.detach().clone(), model.rows.weight.detach().clone()
    _step(model, optimizer)
    sizes = torch.linalg.svdvals(before - model.body.weight.detach()) / 0.1
    assert sizes.min() > 0.4  # a gradient's own singular values differ a hundredfold; Newton-Schulz leaves 0.7 to 1.2
    assert sizes.max() < 1.4
    assert (rows - model.rows.weight.detach()).abs().max() == pytest.approx(0.01, rel=1e-3)  # AdamW's first step is lr


def test_muon_follows_the_schedule_in_both_halves():
    _, optimizer = _muon()
    schedule = build_schedule(optimizer, OptimizerSettings(warmup_steps=4), max_steps=10)
    assert [group["lr"] for group in optimizer.param_groups] == [0.0] * len(optimizer.param_groups)
    optimizer.step()
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.025, 0.0025, 0.0025])


def test_muon_resumes_bit_for_bit():
    whole, optimizer = _muon()
    for _ in range(6):
        _step(whole, optimizer)
    model, optimizer = _muon()
    for _ in range(3):
        _step(model, optimizer)
    weights, state = model.state_dict(), optimizer.state_dict()
    again, optimizer = _muon(seed=1)
    again.load_state_dict(weights)
    optimizer.load_state_dict(state)
    for _ in range(3):
        _step(again, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def test_muon_steps_as_pytorchs_own_does():
    """Which iterates in bfloat16, one matrix after the other: directions agree to its rounding."""
    generator = torch.Generator().manual_seed(0)
    for shape in ((6, 6), (6, 10), (10, 6)):
        ours = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for _ in range(2)]
        theirs = [torch.nn.Parameter(parameter.detach().clone()) for parameter in ours]
        settings = {"lr": 0.1, "weight_decay": 0.1}
        pair = (
            MuonWithAdamW({"params": ours, **settings}, [{"params": [torch.nn.Parameter(torch.ones(1))]}], fused=False),
            torch.optim.Muon(theirs, **settings),
        )
        for _ in range(3):
            gradients = [torch.randn(shape, generator=generator) for _ in range(2)]
            for parameters, optimizer in zip((ours, theirs), pair, strict=True):
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.grad = gradient.clone()
                optimizer.step()
        for mine, reference in zip(ours, theirs, strict=True):
            assert (mine - reference).abs().max() < 0.02
