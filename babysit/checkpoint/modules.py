"""The state of a module, through `torch.distributed.checkpoint.state_dict`."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import set_model_state_dict

from babysit.checkpoint import flat_modules, values


def state_of(module: torch.nn.Module) -> dict[str, Any]:
    """The state of a module by name; the tensors are the module's own.

    A module without parameters and buffers, such as a loss function, is asked directly: torch takes
    an empty state for a mistake, and says so in a way that fails without a process group.
    """
    return flat_modules.model_state(module) if _has_tensors(module) else module.state_dict()


def load(module: torch.nn.Module, state: dict[str, Any]) -> None:
    """Hand a module its state.

    A buffer that cannot be written in place, such as an expanded mask, is replaced by a copy.

    Raises:
        RuntimeError: The module has other names, or refuses a value.
    """
    for owner in module.modules():
        for name, buffer in owner.named_buffers(recurse=False):
            if not values.is_written_in_place(buffer):
                setattr(owner, name, buffer.clone())
    if _has_tensors(module):
        set_model_state_dict(module, state)
    else:
        module.load_state_dict(state)


def _has_tensors(module: torch.nn.Module) -> bool:
    return any(True for _ in module.parameters()) or any(True for _ in module.buffers())
