"""Conversion of a training state to tensors (which may be sharded) and other objects, and back.

The keys of the user's dict hold modules, optimizers, objects with `state_dict` and
`load_state_dict`, containers of tensors, or plain values. Modules and optimizers go through
`torch.distributed.checkpoint.state_dict`, so that FSDP2 and DDP give the same names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.stateful import Stateful
from torch.distributed.tensor import DTensor

from babysit.errors import StateMismatchError

Path = tuple[str | int, ...]
"""Keys from the outermost to the innermost container."""


@dataclasses.dataclass(slots=True)
class _Opaque:
    """The state of an unsharded object, saved as a whole, so its structure may change."""

    value: Any


def extract(state: dict[str, Any]) -> dict[str, Any]:
    """Replace modules, optimizers and stateful objects by their state.

    Raises:
        StateMismatchError: The state is not a dict, or lacks the module of an optimizer.
    """
    if not isinstance(state, dict):
        raise StateMismatchError(
            "a state is a dict, such as {'model': model, 'optimizer': optimizer}, or an object with"
            f" save(directory) and load(directory); this is a {type(state).__name__}"
        )
    return {key: _extracted(state, value) for key, value in state.items()}


def _extracted(state: dict[str, Any], value: Any) -> Any:
    if isinstance(value, torch.nn.Module):
        return get_model_state_dict(value)
    if isinstance(value, torch.optim.Optimizer):
        return get_optimizer_state_dict(_module_of(state, value), value)
    if isinstance(value, Stateful):
        inner = value.state_dict()
        sharded = any(isinstance(leaf, DTensor) for _, leaf in _leaves(inner, ()))
        return inner if sharded else _Opaque(inner)
    return value


def _module_of(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> torch.nn.Module:
    first = optimizer.param_groups[0]["params"][0]
    for value in state.values():
        if isinstance(value, torch.nn.Module) and any(first is p for p in value.parameters()):
            return value
    raise StateMismatchError(
        "the state has an optimizer but not the module whose parameters it updates; put both into"
        " the dict, and build the optimizer after the module is sharded"
    )


def flatten(extracted: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[Path, Any]]:
    """Split into tensors by name (`model/layers.0.weight`) and other values by path."""
    tensors: dict[str, torch.Tensor] = {}
    objects: dict[Path, Any] = {}
    for path, leaf in _leaves(extracted, ()):
        if isinstance(leaf, torch.Tensor):
            tensors["/".join(map(str, path))] = leaf
        else:
            objects[path] = leaf.value if isinstance(leaf, _Opaque) else leaf
    return tensors, objects


def _leaves(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    elif isinstance(value, list) and any(_holds_tensor(inner) for inner in value):
        for index, inner in enumerate(value):
            yield from _leaves(inner, (*path, index))
    else:
        yield path, value


def _holds_tensor(value: Any) -> bool:
    return any(isinstance(leaf, torch.Tensor) for _, leaf in _leaves(value, ()))


def apply(state: dict[str, Any], extracted: dict[str, Any], objects: dict[Path, Any]) -> None:
    """Insert loaded objects and hand the state back to its owners.

    Args:
        state: The user's dict; its plain values are replaced.
        extracted: The result of :func:`extract`, with its tensors already loaded.
        objects: The objects of :func:`flatten` from the save.

    Raises:
        StateMismatchError: The state has no place for an object.
    """
    for path, value in objects.items():
        try:
            _place(extracted, path, value)
        except (KeyError, IndexError, TypeError) as error:
            raise StateMismatchError(
                f"the checkpoint has {'/'.join(map(str, path))!r}, but the script's state does not;"
                " has the state dict changed?"
            ) from error
    for key, value in state.items():
        if isinstance(value, torch.nn.Module):
            set_model_state_dict(value, extracted[key])
        elif isinstance(value, torch.optim.Optimizer):
            set_optimizer_state_dict(_module_of(state, value), value, extracted[key])
        elif isinstance(value, Stateful):
            inner = extracted[key]
            value.load_state_dict(inner.value if isinstance(inner, _Opaque) else inner)
        else:
            state[key] = extracted[key]


def _place(extracted: dict[str, Any], path: Path, value: Any) -> None:
    target: Any = extracted
    for key in path[:-1]:
        target = target[key]
    current = target.get(path[-1]) if isinstance(target, dict) else None
    if isinstance(current, _Opaque):
        current.value = value
    elif target is extracted and path[-1] not in extracted:
        raise KeyError(path[-1])
    else:
        target[path[-1]] = value
