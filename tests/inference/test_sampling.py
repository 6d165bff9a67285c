from __future__ import annotations

import math

import pytest
import torch

from bagpiper.inference.sampling import Noise, draw, guide


def test_guidance_is_the_formula_on_raw_logits() -> None:
    logits = torch.randn(6, 4, 9, generator=torch.Generator().manual_seed(0))
    mixed = guide(logits, 3.0)
    torch.testing.assert_close(mixed, 3.0 * logits[:3] - 2.0 * logits[3:])
    torch.testing.assert_close(guide(logits, 1.0), logits[:3])


def test_temperature_zero_takes_the_most_probable() -> None:
    logits = torch.randn(5, 3, 50, generator=torch.Generator().manual_seed(1))
    drawn = draw(logits, torch.rand(5, 3).double(), temperature=0.0, top_k=20)
    assert torch.equal(drawn, logits.argmax(-1))


@pytest.mark.parametrize("top_k", [0, 4])
def test_draws_follow_the_softmax_of_the_kept_logits(top_k: int) -> None:
    temperature, count = 0.7, 40_000
    row = torch.randn(9, generator=torch.Generator().manual_seed(2))
    row[3] = -torch.inf
    uniforms = ((torch.arange(count) + 1.0).double() / count)[:, None]
    drawn = draw(row.expand(count, 1, 9), uniforms, temperature=temperature, top_k=top_k)
    kept = row.topk(top_k or 9)
    expected = torch.zeros(9).scatter(0, kept.indices, torch.softmax(kept.values / temperature, 0))
    found = torch.bincount(drawn[:, 0], minlength=9) / count
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert found[3] == 0


def test_the_ends_of_the_unit_interval_never_draw_a_forbidden_candidate() -> None:
    logits = torch.full((2, 1, 6), -torch.inf)
    logits[:, :, 2:4] = torch.tensor([1.0, 1.5])
    uniforms = torch.tensor([[2.0**-53], [1.0]], dtype=torch.float64)
    for top_k in (0, 3, 20):
        assert set(draw(logits, uniforms, temperature=0.8, top_k=top_k).flatten().tolist()) <= {2, 3}


def test_one_candidate_is_drawn_whatever_the_number() -> None:
    logits = torch.full((1, 2, 5), -torch.inf)
    logits[0, 0, 4] = logits[0, 1, 0] = -3e38
    assert draw(logits, torch.ones(1, 2).double(), temperature=0.1, top_k=20).tolist() == [[4, 0]]


def test_noise_depends_on_seed_segment_and_row_only() -> None:
    together = Noise([5, 6, 7], 1, 4)
    alone = Noise([6], 1, 4)
    other = Noise([6], 2, 4)
    for row in range(150):
        if row == 70:
            together.select(torch.tensor([1]))
        mine = together.row(row)[0 if row >= 70 else 1]
        assert torch.equal(mine, alone.row(row)[0])
        assert not torch.equal(mine, other.row(row)[0])
        assert mine.dtype == torch.float64
        assert 0 < mine.min() <= mine.max() <= 1


def test_noise_is_uniform() -> None:
    noise = Noise([0], 0, 8)
    values = torch.cat([noise.row(row) for row in range(640)]).flatten()
    assert abs(float(values.mean()) - 0.5) < 4 * math.sqrt(1 / 12 / len(values))
