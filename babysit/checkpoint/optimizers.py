"""The state of an optimizer, by the names of its parameters.

torch saves it by the index of each parameter, and loads it by making state for *all* parameters
first. Neither fits parameters that have had no gradient yet, several modules, or parameters beside
the model. Here the names are paths in the user's state, and what is absent at the save is absent
after the load. Values keep their dtype and device: `Optimizer.load_state_dict` would cast them to
those of the parameter.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from babysit.checkpoint import values
from babysit.checkpoint.values import Path, Sizes, is_container, items_of, refs_of, text_of
from babysit.errors import StateMismatchError

Names = dict[int, Path]
"""Path in the user's state of each parameter, by `id`."""
_WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.")


def is_standard(optimizer: Optimizer) -> bool:
    """True if the optimizer keeps its state where torch's own do, not in a format of its own."""
    kind = type(optimizer)
    return (
        kind.state_dict is Optimizer.state_dict
        and kind.load_state_dict is Optimizer.load_state_dict
    )


def module_names(module: torch.nn.Module, path: Path) -> Iterator[tuple[int, Path]]:
    """The parameters of a module by `id`, named as without wrappers (DDP, compile)."""
    inner = [
        f"{name}." if name else ""
        for name, part in module.named_modules()
        if isinstance(part, DistributedDataParallel)
    ]
    for name, parameter in module.named_parameters():
        plain = name
        for prefix in sorted(inner, key=len, reverse=True):
            if plain.startswith(f"{prefix}module."):
                plain = prefix + plain.removeprefix(f"{prefix}module.")
        for wrapper in _WRAPPERS:
            plain = plain.replace(wrapper, "")
        yield id(parameter), (*path, plain)


def loose_names(value: Any, path: Path) -> Iterator[tuple[int, Path]]:
    """The tensors of a container by `id`."""
    if isinstance(value, torch.Tensor):
        yield id(value), path
    elif is_container(value):
        for key, item in items_of(value):
            yield from loose_names(item, (*path, key))


def require_parameters(optimizer: Optimizer, path: Path, known: Iterable[torch.Tensor]) -> None:
    """Refuse an optimizer some of whose parameters are not in the state.

    Raises:
        StateMismatchError: A parameter is in no part of the state.
    """
    places = {(tensor.data_ptr(), tensor.shape) for tensor in known if _is_allocated(tensor)}
    ids = {id(tensor) for tensor in known}
    for g, group in enumerate(optimizer.param_groups):
        for i, parameter in enumerate(group["params"]):
            place = (parameter.data_ptr(), parameter.shape) if _is_allocated(parameter) else None
            if id(parameter) not in ids and place not in places:
                raise StateMismatchError(
                    f"the optimizer {text_of(path)!r} updates a parameter that no part of the state"
                    f" holds (group {g}, parameter {i}, shape {tuple(parameter.shape)}): put the"
                    " module or the parameter and the optimizer both into the dict, and build the"
                    " optimizer after the module is sharded"
                )


def _is_allocated(tensor: torch.Tensor) -> bool:
    """True if the tensor has an address; a sparse or nested one in a copy of a module has none."""
    plain = not isinstance(tensor, DTensor) and type(tensor) in {torch.Tensor, torch.nn.Parameter}
    return plain and tensor.layout is torch.strided and not tensor.is_nested


def pack(optimizer: Optimizer, names: Names) -> dict[str, Any]:
    """The state as nested plain values and tensors."""
    groups = [
        {**group, "params": [_name(parameter, names, g, i) for i, parameter in enumerate(params)]}
        for g, group in enumerate(optimizer.param_groups)
        for params in [group["params"]]
    ]
    state = {
        name: optimizer.state[parameter]
        for parameter, name in _named(optimizer, names)
        if optimizer.state.get(parameter)
    }
    rest = {key: value for key, value in optimizer.state.items() if isinstance(key, str)}
    return {"groups": groups, "state": state, "rest": rest}


def _named(optimizer: Optimizer, names: Names) -> Iterator[tuple[torch.Tensor, Path]]:
    for g, group in enumerate(optimizer.param_groups):
        for i, parameter in enumerate(group["params"]):
            yield parameter, _name(parameter, names, g, i)


def _name(parameter: torch.Tensor, names: Names, group: int, index: int) -> Path:
    # A parameter inside an object that has a state of its own goes by its place.
    return names.get(id(parameter), (group, index))


def split(packed: dict[str, Any], path: Path, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Take what :func:`pack` returned apart; tensors are named `optimizer/state/<parameter>/…`."""
    inside = {
        name: values.split(value, (*path, "state", *name), tensors)
        for name, value in packed["state"].items()
    }
    rest = {key: packed[key] for key in ("groups", "rest")}
    return {**values.split(rest, path, tensors), "state": inside}


def require_same_groups(
    optimizer: Optimizer, path: Path, names: Names, saved: dict[str, Any]
) -> None:
    """Refuse to load other parameter groups than were saved.

    Raises:
        StateMismatchError: The groups differ.
    """
    here = [set(group["params"]) for group in pack(optimizer, names)["groups"]]
    there = [set(group["params"]) for group in saved["groups"]]
    if here == there:
        return
    what = f"{len(there)} groups of parameters were saved, the script has {len(here)}"
    for number, (mine, other) in enumerate(zip(here, there, strict=False)):
        if mine != other:
            differing = sorted(map(text_of, mine ^ other))[:3]
            what = f"group {number} has other parameters than were saved ({', '.join(differing)})"
            break
    raise StateMismatchError(
        f"the optimizer {text_of(path)!r} does not fit the checkpoint: {what}. Build the optimizer"
        " as it was at the save (with all its groups) before run.restore(state)"
    )


def targets(
    optimizer: Optimizer, path: Path, names: Names, saved: dict[str, Any], sizes: Sizes
) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors by name to load the saved state into: new ones, on the device that they had.

    Raises:
        StateMismatchError: A sharded value has not the shape of its parameter.
    """
    by_name = {name: parameter for parameter, name in _named(optimizer, names)}
    for (name, *keys), ref in refs_of(saved["state"]):
        parameter = by_name[name]
        size, dtype = sizes[ref.name]
        sharded = isinstance(parameter, DTensor)
        if not ref.sharded and not (sharded and parameter.shape == size):
            device = "cpu" if ref.on_cpu else parameter.device
            yield ref.name, torch.empty(size, dtype=dtype, device=device)
            continue
        present = optimizer.state.get(parameter, {}).get(keys[0])
        if isinstance(present, DTensor) and present.shape == size:
            yield ref.name, present
        elif parameter.shape == size:  # laid out as the parameter is now, at any world size
            yield ref.name, torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
        else:
            raise StateMismatchError(
                f"{ref.name!r} is sharded otherwise than its parameter, so it cannot be made for"
                f" {text_of(path)!r}: let the optimizer make its state before run.restore(state)"
            )
    for _, ref in refs_of([saved["groups"], saved["rest"]]):
        size, dtype = sizes[ref.name]
        yield ref.name, torch.empty(size, dtype=dtype)


def put_back(optimizer: Optimizer, names: Names, loaded: dict[str, Any]) -> None:
    """Give the optimizer its loaded state; parameters without any get none."""
    for group, saved in zip(optimizer.param_groups, loaded["groups"], strict=True):
        for key, value in saved.items():
            current = group.get(key)
            if key == "params":
                continue
            if isinstance(current, torch.Tensor) and isinstance(value, torch.Tensor):
                with torch.no_grad():
                    current.copy_(value)  # a scheduler may hold the tensor
            else:
                group[key] = value
    optimizer.state.clear()
    by_name = {name: parameter for parameter, name in _named(optimizer, names)}
    for name, value in loaded["state"].items():
        optimizer.state[by_name[name]] = value
    optimizer.state.update(loaded["rest"])
