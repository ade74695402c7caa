"""Finds gradients that a script accumulates by hand: they are not part of a checkpoint.

A save between two batches of one optimizer step would lose them. After a step, most scripts keep
the gradients until the next `zero_grad`; those have been used. So each optimizer's step is noted,
and a gradient counts as held if it has changed since.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from babysit.checkpoint import values

_Mark = tuple[int, int]
"""Address and version of a gradient."""


class HeldGradients:
    """Watches the optimizers of this process from its construction on."""

    def __init__(self) -> None:
        self._used: WeakKeyDictionary[Optimizer, _Mark | None] = WeakKeyDictionary()
        register_optimizer_step_post_hook(self._stepped)

    def _stepped(self, optimizer: Optimizer, *_: Any) -> None:
        self._used[optimizer] = _mark(_sample(optimizer))

    def __call__(self, state: dict[str, Any]) -> bool:
        """True if an optimizer of the state has gradients that it has not used.

        One parameter of each optimizer is looked at. An optimizer that never stepped in this
        process counts too, so a scaler that skips a step defers a save by that step.
        """
        optimizers = (x for x in values.leaves(state) if isinstance(x, Optimizer))
        return any(self._holds(optimizer) for optimizer in optimizers)

    def _holds(self, optimizer: Optimizer) -> bool:
        gradient = _sample(optimizer)
        if gradient is None or _mark(gradient) == self._used.get(optimizer):
            return False
        return bool(gradient.any())  # zeroed in place, it is not held


def _sample(optimizer: Optimizer) -> torch.Tensor | None:
    """The gradient of the first parameter that has one."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                gradient: torch.Tensor = parameter.grad
                return gradient
    return None


def _mark(gradient: torch.Tensor | None) -> _Mark | None:
    if gradient is None:
        return None
    local = gradient.to_local() if hasattr(gradient, "to_local") else gradient
    sparse = local.layout != torch.strided
    return (id(gradient) if sparse else local.data_ptr(), gradient._version)  # noqa: SLF001
