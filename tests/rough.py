"""``pytest --rough``: matrix products that round otherwise for every number of rows, on any machine.

So do real ones: on an AMD EPYC with AVX-512 a product of 1 to 3 rows and one of 4 and more differ by 2e-6, and so do
grouped products with other group sizes. What is promised bit for bit must hold here too, since equal shapes round
equally; the rest may promise equality within rounding only ("What rounding may do" in ``docs/architecture.md``).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_NAMES = ("mm", "addmm", "_addmm_activation", "bmm", "baddbmm", "addbmm", "mv", "addmv", "_grouped_mm", "_scaled_mm")
_IN_PLACE = ("addmm_", "baddbmm_", "addbmm_", "addmv_")
_PRODUCTS = {getattr(torch.ops.aten, name) for name in (*_NAMES, *_IN_PLACE)}

_SEED = 9
"""With it a choice that a test of decoding once laid within rounding fell otherwise in a batch on every CPU tried."""

WITHIN_ROUNDING = 1e-5
"""Largest promised difference between products of other shapes, as a share of the largest value; in float32."""


def check_within_rounding(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Whether results of other shapes of products agree as far as it is promised; infinities must be the same."""
    largest = float(expected.detach()[expected.isfinite()].abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=WITHIN_ROUNDING * largest)


class Rough(TorchDispatchMode):
    """Moves results of matrix products up by one unit in the last place in half of their columns.

    The number of rows decides which columns, so the rows of a batch are not all scaled alike. What is exactly zero
    stays so: no kernel rounds products of padding. Threads other than the one that enters this are not reached.
    """

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation; see the class."""
        kwargs = kwargs or {}
        if getattr(func, "namespace", None) == "aten":
            with self:  # in inference mode `linear` and `matmul` come as they are
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        if getattr(func, "overloadpacket", None) in _PRODUCTS and isinstance(result, torch.Tensor):
            for rows in _groups(result, args, kwargs):
                _move(rows)
        return result


def _groups(result: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """The parts of a result ``[..., rows, columns]`` that were computed by themselves."""
    offsets = kwargs.get("offs", args[2] if len(args) > 2 else None)
    if isinstance(offsets, torch.Tensor) and offsets.dtype == torch.int32 and result.ndim == 2 == args[0].ndim:
        bounds = [0, *offsets.tolist()]
        return [result[start:stop] for start, stop in pairwise(bounds)]
    return [result]


def _move(result: torch.Tensor) -> None:
    """Move ``[..., rows, columns]`` or, of a product with one vector, ``[rows]`` in place."""
    if not result.is_floating_point() or result.is_meta:
        return
    rows = len(result) if result.ndim == 1 else result.shape[-2]
    moved = result.isfinite() & (result != 0) & _columns(rows, result.shape[-1]).to(result.device)
    result.copy_(result.where(~moved, result.nextafter(torch.full_like(result, torch.inf))))


@lru_cache(maxsize=10000)
def _columns(rows: int, columns: int) -> torch.Tensor:
    """Which columns move: bool ``[columns]``, drawn by the number of rows."""
    generator = torch.Generator("cpu").manual_seed(_SEED + rows)
    return torch.randint(2, (columns,), generator=generator, device="cpu").bool()
