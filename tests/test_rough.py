from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from rough import Rough
from torch.utils._python_dispatch import _disable_current_modes

WEIGHT = torch.arange(64 * 64).view(64, 64) % 5 - 2.0


@pytest.fixture(autouse=True)
def only_once() -> Iterator[None]:
    """``--rough`` would move everything a second time."""
    with _disable_current_modes():
        yield


def whole(*shape: int) -> torch.Tensor:
    """Small whole numbers, whose products no machine rounds."""
    return torch.arange(1, 1 + torch.Size(shape).numel()).view(shape) % 7 - 3.0


def check_moved(found: torch.Tensor, exact: torch.Tensor) -> None:
    """Some, not all, lie one unit in the last place higher; zeros stay."""
    up = exact.nextafter(torch.full_like(exact, torch.inf))
    assert ((found == exact) | (found == up)).all()
    assert (found == exact).any() and (found == up).any()
    assert (found[exact == 0] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_products_of_other_numbers_of_rows_differ_by_one_unit_in_the_last_place(dtype: torch.dtype) -> None:
    rows, weight = whole(5, 64).to(dtype), WEIGHT.to(dtype)
    with Rough():
        three, again, five = rows[:3].mm(weight), rows[:3].mm(weight), rows.mm(weight)
    assert torch.equal(three, again)
    check_moved(three.maximum(five[:3]), three.minimum(five[:3]))


@pytest.mark.parametrize("inference", [True, False])
def test_every_kind_of_product_is_moved(inference: bool) -> None:
    rows, bias, out = whole(6, 64), whole(64), torch.empty(6, 64)
    groups = {"offs": torch.tensor([2, 6], dtype=torch.int32)}
    with torch.inference_mode(inference):
        exact = rows @ WEIGHT
        with Rough():
            check_moved(rows @ WEIGHT, exact)
            check_moved(rows.view(2, 3, 64) @ WEIGHT, exact.view(2, 3, 64))
            check_moved(F.linear(rows, WEIGHT.T, bias), exact + bias)
            check_moved(F.linear(rows.view(2, 3, 64), WEIGHT.T), exact.view(2, 3, 64))
            check_moved(torch.baddbmm(exact, rows[None], WEIGHT[None])[0], 2 * exact)
            check_moved(torch.einsum("bij,bjk->bik", rows[None], WEIGHT[None])[0], exact)
            check_moved(torch.mm(rows, WEIGHT, out=out), exact)
            check_moved(exact.clone().addmm_(rows, WEIGHT), 2 * exact)
            grouped = F.grouped_mm(rows, torch.stack([WEIGHT, WEIGHT]), **groups)
            assert torch.equal(grouped, torch.cat([rows[:2] @ WEIGHT, rows[2:] @ WEIGHT]))
            check_moved(WEIGHT.T.mv(rows[0]), exact[0])


def test_products_of_the_backward_pass_are_moved() -> None:
    rows = whole(6, 64).requires_grad_()
    with Rough():
        (rows @ WEIGHT).backward(torch.ones(6, 64))
    assert rows.grad is not None
    check_moved(rows.grad, torch.ones(6, 64) @ WEIGHT.T)
