"""Exact products inside a run that multiplies in less."""

import pytest
import torch

from bagpiper.ops.precision import exactly, full_precision, matmul_precision


@pytest.fixture
def seen(monkeypatch):
    """What precision was set whenever somebody looked."""
    return []


class Look(torch.autograd.Function):
    @staticmethod
    def forward(ctx, seen, name, tensor):
        ctx.seen, ctx.name = seen, name
        seen.append((f"forward {name}", torch.get_float32_matmul_precision()))
        return tensor.clone()

    @staticmethod
    def backward(ctx, gradient):
        ctx.seen.append((f"backward {ctx.name}", torch.get_float32_matmul_precision()))
        return None, None, gradient


def test_the_setting_is_put_back_even_after_an_error():
    with pytest.raises(KeyError), matmul_precision("medium"):
        assert torch.get_float32_matmul_precision() == "medium"
        raise KeyError
    assert torch.get_float32_matmul_precision() == "highest"


def test_exactly_covers_forward_and_backward_and_nothing_else(seen):
    q, k = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    with matmul_precision("medium"):
        first = Look.apply(seen, "before", q)
        inner = exactly(lambda a, b: Look.apply(seen, "inside", a * b), first, k)
        Look.apply(seen, "after", inner).sum().backward()
        assert torch.get_float32_matmul_precision() == "medium"
    assert seen == [
        ("forward before", "medium"),
        ("forward inside", "highest"),
        ("forward after", "medium"),
        ("backward after", "medium"),
        ("backward inside", "highest"),
        ("backward before", "medium"),
    ]
    assert torch.equal(q.grad, torch.ones(2))
    assert torch.equal(k.grad, torch.ones(2))


def test_an_error_inside_leaves_the_setting_as_it_was():
    def fail(tensor):
        raise KeyError

    with matmul_precision("medium"):
        with pytest.raises(KeyError):
            exactly(fail, torch.ones(2, requires_grad=True))
        assert torch.get_float32_matmul_precision() == "medium"


def test_products_are_exact_within_full_precision():
    """Codes and features must not depend on how a run multiplies: bfloat16 products err by 2e-3."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=generator) for _ in range(2))
    truth = a @ b
    with matmul_precision("medium"), torch.autocast("cpu", torch.bfloat16), full_precision(torch.device("cpu")):
        assert torch.equal(a @ b, truth)


def test_a_program_that_uses_the_switch_of_tf32_itself_keeps_it():
    """Torch then refuses to say what ``set_float32_matmul_precision`` was set to."""
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = True
        with full_precision(torch.device("cpu")):
            assert not torch.backends.cuda.matmul.allow_tf32
        assert torch.backends.cuda.matmul.allow_tf32
        assert torch.equal(exactly(torch.sin, torch.ones(1)), torch.ones(1).sin())
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
        torch.set_float32_matmul_precision("highest")
