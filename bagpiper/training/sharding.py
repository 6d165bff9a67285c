"""FSDP2: the model's parameters, gradients and optimizer state spread over all ranks.

Every layer of the LLM is a unit that is put together when it is needed, the encoder is one, and the rest is the
outermost: rows of both sides, which are needed first and last, the adaptor and the head, which reads the output rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from bagpiper.model import Bagpiper
from bagpiper.training.checkpoints import OPTIMIZER, read_state
from bagpiper.training.stages import make_masters


def shard(model: Bagpiper, *, bf16: bool) -> None:
    """Spread a model over all ranks, unit by unit, so that one unit at a time is whole on the device.

    The codec takes no part in training and stays whole.

    Args:
        model: whole, the same on every rank, ``takes_part`` set; its Trainer has the strategy ``Sharded``.
        bf16: put parameters together in bfloat16 and add gradients up in float32; masters stay float32.
    """
    assert model.device_mesh is not None
    mesh = model.device_mesh["data_parallel"]
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bf16 else None,
        reduce_dtype=torch.float32 if bf16 else None,
        cast_forward_inputs=False,  # autocast decides what is computed in bfloat16: waveforms are not
    )
    for unit in (*model.llm.layers, model.encoder):
        make_masters(unit.parameters())
        fully_shard(unit, mesh=mesh, mp_policy=policy)
    ignored = set(model.codec.parameters())
    make_masters(parameter for parameter in model.parameters() if parameter not in ignored)
    fully_shard(model, mesh=mesh, mp_policy=policy, ignored_params=ignored)


class Sharded(ModelParallelStrategy):
    """Lightning's strategy for FSDP2, over all ranks, with our checkpoints.

    Its own defaults split layers over the devices of a machine (tensor parallel), where models that know nothing of it
    train apart without an error; and its checkpoints hold the weights, which ``model/`` has already.
    """

    def __init__(self, world: int) -> None:
        """Args: world: number of ranks."""
        super().__init__(data_parallel_size=world, tensor_parallel_size=1)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Nothing: the weights are in ``model/``."""
        return {}

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The state by the names of the parameters, each rank its part."""
        optimizer = getattr(optimizer, "_optimizer", optimizer)  # Lightning's wrapper
        assert isinstance(self.model, nn.Module)
        return get_optimizer_state_dict(self.model, optimizer)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Write every rank's part of the optimizer's state beside ``state.pt``, which rank 0 writes."""
        import torch.distributed.checkpoint as dcp

        path = Path(self.broadcast(filepath))
        (state,) = checkpoint.pop("optimizer_states")
        dcp.save(state, checkpoint_id=path.parent / OPTIMIZER)
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, path)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read ``state.pt``, and of the optimizer's state what belongs to this rank.

        The state may have been written by another number of ranks, or whole by a run that was not spread.
        """
        import torch.distributed.checkpoint as dcp

        path = Path(checkpoint_path)
        (optimizer,) = self.optimizers
        assert isinstance(self.model, nn.Module)
        checkpoint = read_state(path)
        if (path.parent / OPTIMIZER).is_dir():
            state = get_optimizer_state_dict(self.model, optimizer)
            dcp.load(state, checkpoint_id=path.parent / OPTIMIZER)
            set_optimizer_state_dict(self.model, optimizer, state)
        else:
            state = _by_name(checkpoint["optimizer_states"][0], _names(self.model, optimizer))
            set_optimizer_state_dict(self.model, optimizer, state, options=StateDictOptions(full_state_dict=True))
        return {**checkpoint, "state_dict": {}}


def _names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of an optimizer's parameters in its own order, which numbers them."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def _by_name(state: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """An optimizer's state dict, which numbers parameters, by their names."""
    groups = [{**group, "params": [names[number] for number in group["params"]]} for group in state["param_groups"]]
    return {"state": {names[number]: own for number, own in state["state"].items()}, "param_groups": groups}
