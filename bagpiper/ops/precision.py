"""Float32 as it is written, where a run multiplies matrices in less."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

MatmulPrecision = Literal["highest", "high", "medium"]


@contextmanager
def matmul_precision(precision: MatmulPrecision) -> Iterator[None]:
    """Set ``torch.set_float32_matmul_precision`` and put it back."""
    before, tf32 = current_precision(), torch.backends.cuda.matmul.allow_tf32
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        if torch.backends.cuda.matmul.allow_tf32 != tf32:
            torch.backends.cuda.matmul.allow_tf32 = tf32


def current_precision() -> MatmulPrecision:
    """What ``torch.set_float32_matmul_precision`` was set to; "highest" where TF32's own switch was used instead."""
    try:
        return torch.get_float32_matmul_precision()  # type: ignore[return-value]
    except RuntimeError:  # torch refuses to sum the two settings up
        return "highest"


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Outside autocast, with exact float32 products, and without TF32 convolutions, which CUDA uses by default.

    TF32 keeps 10 bits of mantissa and bfloat16 products 7: a clip would have other codes in another run, or on a GPU.
    """
    convolutions = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False), matmul_precision("highest"):
            yield
    finally:
        torch.backends.cudnn.allow_tf32 = convolutions


class _Exact(torch.autograd.Function):
    """Passes tensors on; products are exact from here on in the forward pass, and up to here in the backward pass."""

    @staticmethod
    def forward(ctx: Any, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.precision = current_precision()
        torch.set_float32_matmul_precision("highest")
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        torch.set_float32_matmul_precision(ctx.precision)
        return gradients


class _AsBefore(torch.autograd.Function):
    """The other end of ``_Exact``."""

    @staticmethod
    def forward(ctx: Any, precision: str, tensor: torch.Tensor) -> torch.Tensor:
        torch.set_float32_matmul_precision(precision)
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[None, torch.Tensor]:
        torch.set_float32_matmul_precision("highest")
        return None, gradient


def exactly(function: Any, *tensors: torch.Tensor) -> torch.Tensor:
    """``function(*tensors)`` with exact float32 products, in the forward and in the backward pass.

    Args:
        function: tensors -> one tensor.
        tensors: its arguments.
    """
    precision = current_precision()
    if precision == "highest":
        return function(*tensors)
    try:
        result = function(*_Exact.apply(*tensors))
    finally:
        torch.set_float32_matmul_precision(precision)
    return _AsBefore.apply(precision, result)
