"""FSDP 1 (`FullyShardedDataParallel`), whose parameters are pieces of flat tensors.

torch gives the state of such a module by its original names, with a ShardedTensor for each, or with
a DTensor where the module has a device mesh. A DTensor can be saved as what it is, and be loaded by
another number of ranks; a ShardedTensor is restored only by running code. So modules get a mesh of
the process group that they have. Not covered: hybrid sharding, which needs a mesh of two groups and
says so at the first save.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy
from torch.distributed.fsdp._common_utils import _is_fsdp_flattened

_ONE_GROUP = {
    ShardingStrategy.FULL_SHARD,
    ShardingStrategy.SHARD_GRAD_OP,
    ShardingStrategy.NO_SHARD,  # of a single rank, too
}


def updates_pieces(optimizer: torch.optim.Optimizer) -> bool:
    """True if an optimizer's parameters are of FSDP 1, flat or under their original names."""
    groups = optimizer.param_groups
    return any(_is_fsdp_flattened(each) for group in groups for each in group["params"])


def model_state(module: torch.nn.Module) -> dict[str, Any]:
    """The state of any module; a collective with FSDP 1."""
    meshes: dict[int, DeviceMesh] = {}
    for each in FullyShardedDataParallel.fsdp_modules(module):
        if each._device_mesh is None and each.sharding_strategy in _ONE_GROUP:  # noqa: SLF001
            group: Any = each.process_group
            device = (each.compute_device or torch.device("cpu")).type
            if id(group) not in meshes:
                meshes[id(group)] = DeviceMesh.from_group(group, device)
            each._device_mesh = meshes[id(group)]  # noqa: SLF001  # torch has no public way
    return get_model_state_dict(module)


def optimizer_state(module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state of an optimizer of pieces, by the original names of the module; a collective.

    torch lets an optimizer without a state make a step to have one, which would count: the
    script's first step would be its second.
    """
    fresh = not optimizer.state
    found: dict[str, Any] = get_optimizer_state_dict(module, optimizer)
    if fresh:
        optimizer.state.clear()
    return found
