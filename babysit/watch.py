"""Hooks on models and optimizers that divide the time of a step into its parts.

The problem: a rank that is slow in its forward pass is named only where the script says when that
pass begins and ends, and no script does.

The design: torch's own hooks say so. The forward pass of a model in training is between its two
hooks. At its end a hook is put on the tensors that it returned, which the backward pass meets
first; from there the autograd engine is asked to call back at its end. DistributedDataParallel
waits for its collectives in such a callback too, and ours are before and after it: what lies
between is waiting for other ranks.

Limits: the time is that of the host. A GPU works on behind it, and its time counts in the part in
which the host waits for it. Other collectives (FSDP's gathers, a clipped norm) count as the part
that they are in. A model that is compiled with its hooks inside is not measured.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from babysit.numbers import said
from babysit.step_times import StepTimes
from babysit.wire import Part

_TENSORS = 8
"""Tensors of an output that get a hook, at most: the loss and the logits, say."""


class Watch:
    """The hooks of one rank; they only read the clock.

    Args:
        times: Where the parts are summed up.
        warn: Logs a sentence, once.
    """

    def __init__(self, times: StepTimes, warn: Callable[[str], None]) -> None:
        self._times, self._warn = times, warn
        # As FSDP asks for the end of a backward pass.
        self._at_end = torch.autograd.Variable._execution_engine.queue_callback  # noqa: SLF001
        self._asked = False
        """True while the engine is to call back at the end of a backward pass."""

    def add(self, model: Any, optimizer: Any) -> None:
        """Put hooks on a model, and on one or several optimizers (None: on none).

        What cannot have hooks is left out, with a warning.
        """
        several = optimizer if isinstance(optimizer, list | tuple) else (optimizer,)
        try:
            model.register_forward_pre_hook(_Hook(self._forward_begins))
            model.register_forward_hook(_Hook(self._forward_ended))
            for each in several:
                if each is not None:
                    # accelerate wraps an optimizer in one that has no hooks.
                    inner: Any = getattr(each, "optimizer", each)
                    inner.register_step_pre_hook(_Hook(self._optimizer_begins))
                    inner.register_step_post_hook(_Hook(self._optimizer_ended))
        except Exception as error:  # noqa: BLE001 (the script's own objects; training must go on)
            self._warn(f"run.watch leaves a model or optimizer out: {said(error)}")

    def _enter(self, part: Part) -> None:
        """Another part begins, unless the rank saves, restores or evaluates."""
        if self._times.part is not Part.PAUSED:
            self._times.enter(part)

    def _forward_begins(self, model: Any, *_: object) -> None:
        if model.training and torch.is_grad_enabled():
            self._asked = False  # also after a backward pass that failed
            self._enter(Part.FORWARD)

    def _forward_ended(self, _model: Any, _arguments: object, output: object) -> None:
        if self._times.part is not Part.FORWARD:
            return
        tensors = list(itertools.islice(_differentiable(output), _TENSORS))
        for each in tensors:
            each.register_hook(self._backward_begins)
        self._times.enter(Part.BACKWARD if tensors else Part.OTHER)

    def _backward_begins(self, _gradient: object) -> None:
        if not self._asked:
            self._asked = True
            self._enter(Part.BACKWARD)
            self._at_end(self._backward_ended)

    def _backward_ended(self) -> None:
        """Every gradient of this rank is there. Callbacks that came after ours are called next."""
        self._enter(Part.WAIT)
        self._at_end(self._waited)

    def _waited(self) -> None:
        self._asked = False
        self._enter(Part.OTHER)

    def _optimizer_begins(self, *_: object) -> None:
        self._enter(Part.OPTIMIZER)

    def _optimizer_ended(self, *_: object) -> None:
        self._enter(Part.OTHER)


class _Hook:
    """A hook that copies of its model do without, deep ones and pickled ones.

    Its owner cannot be copied, and steps do not run through a copy (of averaged weights, say).
    """

    def __init__(self, call: Callable[..., None]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> None:
        if not torch.compiler.is_compiling():  # to read the clock would break the graph in two
            self._call(*arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        """In a copy, a function that does nothing, and that is there without babysit too."""
        return getattr, (contextlib.nullcontext(), "__exit__")


def _differentiable(output: object) -> Iterator[Any]:
    """The tensors of an output from which a backward pass can begin."""
    if isinstance(output, torch.Tensor):
        if output.requires_grad:
            yield output
    elif isinstance(output, Mapping):
        for each in output.values():
            yield from _differentiable(each)
    elif isinstance(output, list | tuple):
        for each in output:
            yield from _differentiable(each)
