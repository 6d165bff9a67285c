"""The blocked, chunked loss against torch's own."""

import pytest
import torch
import torch.nn.functional as F

from bagpiper.ops.cross_entropy import linear_cross_entropy


@pytest.mark.parametrize("chunk", [0, 1, 3, 100])
def test_equals_the_plain_loss(chunk):
    torch.manual_seed(0)
    hidden = torch.randn(10, 6, requires_grad=True)
    blocks = [torch.randn(size, 6, requires_grad=True) for size in (3, 8, 5)]
    targets = torch.randint(0, 16, (10,))
    logits = hidden @ torch.cat(blocks).T
    expected = F.cross_entropy(logits, targets, reduction="none")
    nll, partition, correct = linear_cross_entropy(hidden, blocks, targets, chunk)
    assert torch.allclose(nll, expected, atol=1e-6)
    assert torch.allclose(partition, logits.logsumexp(-1), atol=1e-6)
    assert torch.equal(correct, logits.argmax(-1) == targets)
    weights = torch.linspace(0, 1, 10)
    ours = torch.autograd.grad((nll * weights).sum(), [hidden, *blocks])
    plain = torch.autograd.grad((expected * weights).sum(), [hidden, *blocks])
    for one, other in zip(ours, plain, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_nothing_to_predict():
    nll, _, _ = linear_cross_entropy(torch.zeros(0, 4), [torch.zeros(3, 4)], torch.zeros(0, dtype=torch.int64), 2)
    assert nll.sum() == 0
