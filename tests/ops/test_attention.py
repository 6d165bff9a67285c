"""Examples of one pack never see each other, not even through a NaN."""

import pytest
import torch

from bagpiper.batch import Spans
from bagpiper.llms.cache import KeyValueCache
from bagpiper.ops.attention import attend_packed

LENGTHS = (5, 1, 7, 3)
TOTAL = sum(LENGTHS)


def spans_of(lengths):
    starts = torch.tensor([0, *lengths]).cumsum(0).int()
    return Spans(starts, tuple(lengths))


def tensors(heads=4, kv_heads=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(1, heads, TOTAL, 8, generator=generator)
    key, value = (torch.randn(1, kv_heads, TOTAL, 8, generator=generator) for _ in range(2))
    return [tensor.requires_grad_() for tensor in (query, key, value)]


def run(inputs):
    mixed = attend_packed(*inputs, spans_of(LENGTHS), scale=8**-0.5)
    weights = torch.linspace(-1, 1, mixed.numel()).reshape(mixed.shape)
    return mixed, torch.autograd.grad((mixed * weights).sum(), inputs)


@pytest.mark.parametrize("poison", [1e3, float("nan")])
def test_one_example_never_reaches_another(poison):
    """Bit for bit, at the same lengths, outputs and gradients."""
    clean, clean_gradients = run(tensors())
    inputs = tensors()
    with torch.no_grad():
        for tensor in inputs:
            tensor[:, :, 6:13] = poison
    dirty, dirty_gradients = run(inputs)
    others = [*range(6), *range(13, TOTAL)]
    assert torch.equal(clean[:, :, others], dirty[:, :, others])
    for before, after in zip(clean_gradients, dirty_gradients, strict=True):
        assert torch.equal(before[:, :, others], after[:, :, others])


def test_equals_a_dense_mask():
    query, key, value = tensors()
    owner = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    mask = (owner[:, None] == owner[None, :]) & torch.ones(TOTAL, TOTAL).tril().bool()
    wide_key, wide_value = key.repeat_interleave(2, 1), value.repeat_interleave(2, 1)
    scores = (query @ wide_key.transpose(-1, -2) * 0.3).masked_fill(~mask, float("-inf"))
    expected = scores.softmax(-1) @ wide_value
    assert torch.allclose(attend_packed(query, key, value, spans_of(LENGTHS), scale=0.3), expected, atol=1e-6)


def test_cache_is_ragged():
    """Rows of different lengths: what a query may see is its own row's past and itself."""
    cache = KeyValueCache(2, capacity=2)
    positions = cache.begin(torch.tensor([3, 1]), 3)
    assert positions.tolist() == [[0, 1, 2], [0, 1, 2]]
    key = torch.arange(6.0).reshape(2, 1, 3, 1)
    cache.update(key, key, 0)
    cache.commit()
    assert cache.lengths.tolist() == [3, 1]
    positions = cache.begin(torch.tensor([1, 1]), 1)
    assert positions.tolist() == [[3], [1]]
    keys, _ = cache.update(torch.full((2, 1, 1, 1), 9.0), torch.full((2, 1, 1, 1), 9.0), 0)
    assert keys[0, 0, cache.visible[0, 0, 0], 0].tolist() == [0, 1, 2, 9]
    assert keys[1, 0, cache.visible[1, 0, 0], 0].tolist() == [3, 9]  # the padding columns are overwritten or hidden
    cache.commit()
    doubled = KeyValueCache.concatenate(cache, cache.select(torch.tensor([1])))
    assert doubled.lengths.tolist() == [4, 2, 2]
