"""Hooks on models and optimizers that divide the time of a step into its parts.

The problem: a rank that is slow in its forward pass is named only where the script says when that
pass begins and ends, and no script does.

The design: torch's own hooks say so. The forward pass of a model in training is between its two
hooks. At its end a hook is put on the tensors that it returned, which the backward pass meets
first; from there the autograd engine is asked to call back at its end. DistributedDataParallel
waits for its collectives in such a callback too, and ours are before and after it: what lies
between is waiting for other ranks. FSDP, DeepSpeed and loops of one's own wait through
`torch.distributed.Work.wait`, which is timed while a model is watched.

Limits: the time is that of the host. A GPU works on behind it, and its time counts in the part in
which the host waits for it; NCCL's collectives are waited for by the GPU, so the host sees no
waiting there. Collectives that wait inside of torch (DDP's broadcast of buffers, those of DTensor)
count as the part that they are in. A model that is compiled with its hooks inside is not measured.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from babysit.numbers import said
from babysit.step_times import Hooks, StepTimes
from babysit.wire import Part

_TENSORS = 8
"""Tensors of an output that get a hook, at most: the loss and the logits, say."""
_WRAPPERS = 4
"""Optimizers around torch's own, at most: accelerate's around DeepSpeed's, say."""


class Watch:
    """The hooks of one rank; they only read the clock, and a failure of theirs is only logged.

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
        self._watched: weakref.WeakSet[Any] = weakref.WeakSet()
        """Models and optimizers that have hooks."""
        self._model = 0
        """Id of the model whose forward pass began last: others may run inside it."""
        self._steps = False
        """True inside the step of an optimizer, whose closure may have all of the other parts."""
        self._threads: set[int] = set()
        """Threads that passes have run in; others save, load or talk beside the step."""
        self._on_gradient = self._hook(self._backward_begins)
        self.forward_begins = self._hook(self._forward_begins)
        """For adapters: call it with the model."""
        self.forward_ended = self._hook(self._output)
        """For adapters: call it with the output or the loss."""
        _Waits.install(self)

    def _hook(self, call: Callable[..., None]) -> _Hook:
        return _Hook(call, self._warn)

    def add(self, model: Any, optimizer: Any) -> Hooks:
        """Put hooks on a model (None: on none), and on one or several optimizers (None: on none).

        An object that has hooks already is passed over. An object that cannot have hooks is left
        out, with a warning.
        """
        several = optimizer if isinstance(optimizer, list | tuple) else (optimizer,)
        hooks = Hooks()
        try:
            if self._is_new(model, hooks):
                before = model.register_forward_pre_hook(self.forward_begins)
                hooks.handles.append(before)
                after = model.register_forward_hook(self._hook(self._forward_ended))
                hooks.handles.append(after)
            for each in map(_innermost, several):
                if self._is_new(each, hooks):
                    before = each.register_step_pre_hook(self._hook(self._optimizer_begins))
                    hooks.handles.append(before)
                    after = each.register_step_post_hook(self._hook(self._optimizer_ended))
                    hooks.handles.append(after)
        except Exception as error:  # noqa: BLE001 (the script's own objects; training must go on)
            self._warn(f"run.watch leaves a model or optimizer out: {said(error)}")
        return hooks

    def _is_new(self, watched: Any, hooks: Hooks) -> bool:
        """True if it has no hooks yet; it gets them now."""
        if watched is None or watched in self._watched:
            return False
        self._watched.add(watched)
        hooks.handles.append(_Forgotten(self._watched, watched))
        return True

    def _enter(self, part: Part) -> None:
        """Another part begins, unless the rank saves, restores or evaluates."""
        if self._times.part is not Part.PAUSED:
            self._times.enter(part)

    def _forward_begins(self, model: Any, *_: object) -> None:
        inside = self._times.part is Part.FORWARD and self._model != id(model)
        if model.training and torch.is_grad_enabled() and not inside:
            self._threads.add(threading.get_ident())
            self._model = id(model)
            self._asked = False  # also after a backward pass that failed
            self._enter(Part.FORWARD)

    def _forward_ended(self, model: Any, _arguments: object, output: object) -> None:
        if self._times.part is Part.FORWARD and self._model == id(model):
            self._output(output)

    def _output(self, output: object) -> None:
        """A forward pass has ended with this output; its tensors lead to the backward pass."""
        if self._times.part is Part.PAUSED:
            return
        tensors = list(itertools.islice(_differentiable(output), _TENSORS))
        for each in tensors:
            each.register_hook(self._on_gradient)
        self._times.enter(Part.BACKWARD if tensors else Part.OTHER)

    def _backward_begins(self, _gradient: object) -> None:
        if not self._asked:
            self._asked = True
            self._threads.add(threading.get_ident())
            self._enter(Part.BACKWARD)
            self._at_end(self._hook(self._backward_ended))

    def _backward_ended(self) -> None:
        """Every gradient of this rank is there. Callbacks that came after ours are called next."""
        self._enter(Part.WAIT)
        self._at_end(self._hook(self._waited))

    def _waited(self) -> None:
        self._asked = False
        self._enter(Part.OPTIMIZER if self._steps else Part.OTHER)

    def _optimizer_begins(self, *_: object) -> None:
        self._steps = True
        if self._times.part is not Part.FORWARD:  # which its closure goes on with
            self._enter(Part.OPTIMIZER)

    def _optimizer_ended(self, *_: object) -> None:
        self._steps = False
        self._enter(Part.OTHER)

    def waiting_begins(self) -> Part | None:
        """This thread begins to wait for a collective; the part to return to, None: to none."""
        before = self._times.part
        if before in {Part.PAUSED, Part.WAIT} or not self._watched:
            return None
        if threading.get_ident() not in self._threads:
            return None
        self._times.enter(Part.WAIT)
        return before

    def waiting_ended(self, before: Part | None) -> None:
        """The collective is complete."""
        if before is not None:
            self._enter(before)


class _Waits:
    """Has `Work.wait` of torch.distributed report its time to the newest watch of the process."""

    watch: weakref.ref[Watch] | None = None

    @classmethod
    def install(cls, watch: Watch) -> None:
        """Report to this watch from now on. Without such a method, no waiting is seen."""
        first, cls.watch = cls.watch is None, weakref.ref(watch)
        work = getattr(torch.distributed, "Work", None)
        if first and hasattr(work, "wait"):
            work.wait = cls.timed(work.wait)  # type: ignore[union-attr]

    @classmethod
    def timed(cls, wait: Callable[..., Any]) -> Callable[..., Any]:
        """The method, with its time counted as waiting."""

        @functools.wraps(wait)
        def timed(self: Any, *arguments: Any, **options: Any) -> Any:
            watch = None if torch.compiler.is_compiling() or cls.watch is None else cls.watch()
            if watch is None:
                return wait(self, *arguments, **options)
            before = watch.waiting_begins()
            try:
                return wait(self, *arguments, **options)
            finally:
                watch.waiting_ended(before)

        return timed


class _Forgotten:
    """Takes an object off the watched ones, as a handle of torch takes off a hook."""

    def __init__(self, watched: weakref.WeakSet[Any], each: Any) -> None:
        self._watched, self._each = watched, weakref.ref(each)

    def remove(self) -> None:
        """Let it be watched anew."""
        self._watched.discard(self._each())


class _Hook:
    """A hook that copies of its model do without, deep ones and pickled ones.

    Its owner cannot be copied, and steps do not run through a copy (of averaged weights, say).
    """

    def __init__(self, call: Callable[..., None], warn: Callable[[str], None]) -> None:
        self._call, self._warn = call, warn

    def __call__(self, *arguments: Any) -> None:
        if torch.compiler.is_compiling():  # to read the clock would break the graph in two
            return
        try:
            self._call(*arguments)
        except Exception as error:  # noqa: BLE001 (training must go on)
            self._warn(f"a hook of run.watch failed: {said(error)}")

    def __reduce__(self) -> tuple[Any, ...]:
        """In a copy, a function that does nothing, and that is there without babysit too."""
        return getattr, (contextlib.nullcontext(), "__exit__")


def _innermost(optimizer: Any) -> Any:
    """The optimizer of torch inside accelerate's and DeepSpeed's, which have no hooks."""
    for _ in range(_WRAPPERS):
        optimizer = getattr(optimizer, "optimizer", optimizer)
    return optimizer


def _differentiable(output: object) -> Iterator[Any]:
    """The tensors of an output from which a backward pass can begin.

    A parameter that a model returns is not among them: it would get one more hook in each step.
    """
    if isinstance(output, torch.Tensor):
        if output.requires_grad and not output.is_leaf:
            yield output
    elif isinstance(output, Mapping):
        for each in output.values():
            yield from _differentiable(each)
    elif isinstance(output, list | tuple):
        for each in output:
            yield from _differentiable(each)
    elif dataclasses.is_dataclass(output):
        yield from _differentiable(getattr(output, "__dict__", None))
