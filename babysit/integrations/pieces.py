"""A rank's own pieces of a sharded model and its optimizers, as they lie in memory.

For FSDP and FSDP2 inside a framework that would gather the state, or write it with all ranks into
one directory. Nothing is gathered and no rank reads the files of another, so node memory serves as
well as the directory. Only as many ranks as saved the pieces can load them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule

from babysit.errors import StateMismatchError

_RANKS = "ranks"


def take(model: Any, optimizers: Sequence[Any], ranks: int) -> dict[str, Any]:
    """Copy the pieces of this rank; not a collective.

    Args:
        model: The sharded model.
        optimizers: Its optimizers, of torch.
        ranks: The number of ranks, which :func:`put` compares.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # an evaluation leaves whole parameters in place of the pieces
    return {
        _RANKS: ranks,
        "parameters": {name: _copy(each) for name, each in model.named_parameters()},
        "buffers": {name: _copy(each) for name, each in _buffers(model).items()},
        "optimizers": [_copied(optimizer.state_dict()) for optimizer in optimizers],
    }


def put(
    pieces: dict[str, Any], model: Any, optimizers: Sequence[Any], ranks: int, where: str
) -> None:
    """Put the pieces back where :func:`take` found them; `where` they come from is for messages.

    Raises:
        StateMismatchError: They are those of another number of ranks, or of another model.
    """
    if (saved := pieces[_RANKS]) != ranks:
        raise StateMismatchError(
            f"{where}: {saved} ranks saved their pieces of the sharded model, and this attempt has"
            f" {ranks}: give the run as many ranks as before"
        )
    parts = dict(model.named_parameters()), _buffers(model)
    for kind, found in zip(("parameters", "buffers"), parts, strict=True):
        if more := sorted(found.keys() - pieces[kind].keys()):
            raise StateMismatchError(f"{where} has no {kind[:-1]} {more[0]}, which the model has")
        for name, tensor in pieces[kind].items():
            own = _local(found[name]) if name in found else None
            if own is None or own.shape != tensor.shape:
                raise StateMismatchError(
                    f"{where}: the model has no {kind[:-1]} {name} of its size"
                )
            own.copy_(tensor)
    for optimizer, state in zip(optimizers, pieces["optimizers"], strict=True):
        optimizer.load_state_dict(_placed(state, optimizer))


def _buffers(model: Any) -> dict[str, Any]:
    """The buffers that torch itself would save: the others may grow with the inputs of a model."""
    passing = {
        id(module._buffers[name])  # noqa: SLF001  # as `state_dict` does
        for module in model.modules()
        for name in module._non_persistent_buffers_set  # noqa: SLF001
        if name in module._buffers  # noqa: SLF001
    }
    return {name: each for name, each in model.named_buffers() if id(each) not in passing}


def _placed(state: dict[str, Any], optimizer: Any) -> dict[str, Any]:
    """The state of an optimizer with pieces of DTensors where its parameters are DTensors."""
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    placed = {
        index: {key: _like(value, parameters[index]) for key, value in values.items()}
        for index, values in state["state"].items()
    }
    return state | {"state": placed}


def _like(value: Any, parameter: Any) -> Any:
    if not hasattr(parameter, "device_mesh") or not isinstance(value, torch.Tensor):
        return value
    if value.shape != parameter.to_local().shape:
        return value  # a count of steps
    from torch.distributed.tensor import DTensor  # noqa: PLC0415  # only FSDP2 has them

    return DTensor.from_local(
        value.to(parameter.device),
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def _local(tensor: Any) -> torch.Tensor:
    local: torch.Tensor = tensor.detach()
    if hasattr(local, "to_local"):
        local = local.to_local()
    return local


def _copy(tensor: Any) -> torch.Tensor:
    return _local(tensor).clone()  # a view would be saved with all of its storage


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return _copy(value)
    if isinstance(value, dict):
        return {key: _copied(each) for key, each in value.items()}
    return [_copied(each) for each in value] if isinstance(value, list) else value
