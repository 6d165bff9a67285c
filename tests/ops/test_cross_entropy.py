"""The loss whose gradients are made in its forward pass, against torch's own on all logits."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from bagpiper.ops import cross_entropy
from bagpiper.ops.cross_entropy import linear_cross_entropy


def plain(hidden, blocks, targets, weights, z_loss):
    """Loss, nll and correctness by way of all logits."""
    logits = torch.cat([F.linear(hidden, block) for block in blocks], dim=-1)
    nll = F.cross_entropy(logits, targets, reduction="none")
    total = (nll * weights).sum() + z_loss * logits.logsumexp(-1).square().sum()
    return total, nll, logits.argmax(-1) == targets


def case(rows, sizes, width=6, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def make(*shape):
        return torch.randn(*shape, dtype=dtype, generator=generator)

    hidden, blocks = make(rows, width).requires_grad_(), [make(size, width).requires_grad_() for size in sizes]
    targets = torch.randint(0, sum(sizes), (rows,), generator=generator)
    return hidden, blocks, targets, make(rows).abs()


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 12),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    chunk=st.one_of(st.none(), st.integers(0, 14)),
    z_loss=st.sampled_from([0.0, 0.01]),
    factor=st.floats(-2, 2),
)
def test_loss_and_gradients_equal_the_plain_ones(rows, sizes, chunk, z_loss, factor):
    hidden, blocks, targets, weights = case(rows, sizes)
    total, nll, correct = linear_cross_entropy(hidden, blocks, targets, weights, z_loss=z_loss, chunk=chunk)
    wanted, wanted_nll, wanted_correct = plain(hidden, blocks, targets, weights, z_loss)
    torch.testing.assert_close(total, wanted)
    torch.testing.assert_close(nll, wanted_nll)
    assert torch.equal(correct, wanted_correct)
    ours = torch.autograd.grad(total * factor, [hidden, *blocks])
    theirs = torch.autograd.grad(wanted * factor, [hidden, *blocks])
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_what_needs_no_gradient_gets_none_and_costs_none(monkeypatch):
    hidden, blocks, targets, weights = case(5, (3, 8, 4), dtype=torch.float32)
    blocks[1].requires_grad_(False)
    made = []
    original = cross_entropy._add_product
    monkeypatch.setattr(
        cross_entropy, "_add_product", lambda total, *a: made.append(total.shape) or original(total, *a)
    )
    loss = linear_cross_entropy(hidden, blocks, targets, weights)
    assert (8, 6) not in made and made.count((3, 6)) == 1
    loss.total.backward()
    assert blocks[1].grad is None and hidden.grad is not None and blocks[0].grad is not None
    made.clear()
    with torch.no_grad():
        linear_cross_entropy(hidden, blocks, targets, weights)
    assert not made, "in validation no gradient is made"


def test_bfloat16_products_under_autocast_and_sums_in_float32():
    hidden, blocks, targets, weights = case(40, (30, 200), width=32, dtype=torch.float32)
    wanted = plain(hidden, blocks, targets, weights, 0.0)[0]
    with torch.autocast("cpu", torch.bfloat16):
        total, nll, _ = linear_cross_entropy(hidden, blocks, targets, weights, chunk=7)
    assert total.dtype == nll.dtype == torch.float32
    torch.testing.assert_close(total, wanted, rtol=0.01, atol=0)
    ours = torch.autograd.grad(total, [hidden, *blocks])
    theirs = torch.autograd.grad(wanted, [hidden, *blocks])
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).abs().max() < 0.03 * other.abs().max()


def test_no_more_logits_than_a_chunk_exist(monkeypatch):
    """3,000 rows of 2,000 ids are 24 MB; with chunks of 16 no tensor of the loss is larger than its inputs."""
    hidden, blocks, targets, weights = case(3000, (500, 1500), width=8, dtype=torch.float32)
    largest = []
    original = torch.Tensor.new_empty

    def watch(tensor, shape, **options):
        largest.append(shape)
        return original(tensor, shape, **options)

    monkeypatch.setattr(torch.Tensor, "new_empty", watch)
    monkeypatch.setitem(cross_entropy.LOGITS_BYTES, "cpu", 16 * 2000 * 4)
    linear_cross_entropy(hidden, blocks, targets, weights).total.backward()
    assert max(rows for rows, _ in largest) == 16


def test_its_gradients_are_there_once():
    hidden, blocks, targets, weights = case(3, (4,))
    total = linear_cross_entropy(hidden, blocks, targets, weights).total
    total.backward(retain_graph=True)
    with pytest.raises(AssertionError, match="run its backward pass once"):
        total.backward()
