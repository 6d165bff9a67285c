"""Parameters that are spread over ranks (FSDP2): the part that is here, and the whole where it is needed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.distributed.tensor import DTensor


def is_sharded(model: nn.Module) -> bool:
    """Whether parameters of a model are spread over ranks."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def local_of(tensor: torch.Tensor) -> torch.Tensor:
    """What of a tensor is on this rank, sharing its memory; a tensor that is not spread is itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def global_norm(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Norm of all tensors together (scalar, float32), of spread ones over all ranks and the same on each.

    Args:
        tensors: all spread in one way, or none.
    """
    norm = torch.nn.utils.get_total_norm([local_of(tensor) for tensor in tensors])
    if not any(isinstance(tensor, DTensor) for tensor in tensors):
        return norm
    squares = norm.double().square()
    torch.distributed.all_reduce(squares)
    return squares.sqrt().to(norm.dtype)


def whole_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict with whole tensors.

    Of a model that is spread, every rank has to call this; rank 0 gets all tensors in the memory of its CPU, the others
    none. They are put together one at a time.
    """
    if not is_sharded(model):
        return dict(model.state_dict())
    whole: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if torch.distributed.get_rank() == 0:
            whole[name] = full.cpu()
    return whole


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Inside the block every rank holds the whole parameters, so that one of them may compute alone.

    Where they are put together in bfloat16, what is computed is so under autocast, as in training.

    Every rank has to enter and leave it; it waits for the others at the end. A model that is not spread stays as it is,
    and nobody waits.
    """
    from torch.distributed.fsdp import FSDPModule

    units = [module for module in model.modules() if isinstance(module, FSDPModule)]
    if not units:
        yield
        return
    hooks = [(unit._forward_pre_hooks, unit._forward_hooks) for unit in units]
    for unit in units:
        unit.unshard()
        # FSDP2's own would note a forward pass that the other ranks know nothing of, and gather in another order later
        unit._forward_pre_hooks, unit._forward_hooks = OrderedDict(), OrderedDict()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    is_bf16 = any(parameter.dtype == torch.bfloat16 for parameter in trained)  # masters are float32
    try:
        with torch.autocast(trained[0].device.type, torch.bfloat16, enabled=is_bf16):
            yield
    finally:
        for unit, (before, after) in zip(units, hooks, strict=True):
            unit._forward_pre_hooks, unit._forward_hooks = before, after
        torch.distributed.barrier()
        for unit in units:
            unit.reshard()
