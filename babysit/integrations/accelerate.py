"""Hugging Face's accelerate.

    accelerator = Accelerator()
    watch(accelerator)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    for epoch in range(3):
        for batch in loader:
            ...

The loop stays as it is. The first pass over a prepared loader restores all that was prepared or
registered for checkpointing. Each optimizer step is reported with the loss given to `backward()`,
saved if a save is due, and followed by the end of the process if that was requested. The loader
goes on at the exact batch and passes over quarantined ones; after a restart, passes that had ended
give no batch, so what the script does between them is done again, unless it has
`for epoch in run.epochs(3)`. A pass with the model in evaluation, or without gradients, is left
alone. A script's own `load_state` is for a start without a checkpoint of the run.
"""

from __future__ import annotations

import functools
import sys
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.data_loader import DataLoaderDispatcher, DataLoaderShard

import babysit
from babysit.calls import numbers_of
from babysit.integrations.leaving import leave
from babysit.run import Run
from babysit.run_loader import Loader
from babysit.step_times import Hooks

_MARK = "_babysit"
_KEPT = 1024
"""Losses kept for a step: those of a loop without a prepared loader never become one."""
_END: Any = object()


def watch(accelerator: Accelerator, run: Run | None = None, *, parts: bool = True) -> Watch:
    """Watch what this accelerator prepares from now on; a second call changes nothing.

    Args:
        accelerator: The accelerator.
        run: The run; None: that of `babysit.init()`.
        parts: Measure the parts of each step with `run.watch`, in passes over a prepared loader.
    """
    found = vars(accelerator).get(_MARK)
    if found is None:
        found = Watch(accelerator, run or babysit.init(), parts=parts)
        vars(accelerator)[_MARK] = found
    watching: Watch = found
    return watching


def unwatch(accelerator: Accelerator) -> None:
    """Leave an accelerator alone again: another adapter watches its trainer."""
    watching = vars(accelerator).pop(_MARK, None)
    if watching is not None:
        watching.active = False


class Watch:
    """The run's part in the loop of one accelerator."""

    def __init__(self, accelerator: Accelerator, run: Run, *, parts: bool = True) -> None:
        self.run = run
        self.active = True
        self._parts = parts
        self._accelerator = accelerator
        self._state: Any = None
        """The state to save and restore; None: not restored yet."""
        self._step = 0
        self._stepped = False
        """An optimizer has made a step since the last report."""
        self._losses: deque[Any] = deque(maxlen=_KEPT)
        self._wrap("prepare_data_loader", self._mark)
        self._wrap("prepare_optimizer", self._count)
        skip = accelerator.skip_first_batches
        self._wrap("skip_first_batches", self._mark)
        skipping = accelerator.skip_first_batches

        def skipped(dataloader: Any, num_batches: int = 0) -> Any:
            """The place of the run is known; without one, the script's own counts."""
            known = self.active and self.run.plan.restore and _MARK in vars(dataloader)
            return dataloader if known else skipping(dataloader, num_batches)

        accelerator.skip_first_batches = functools.wraps(skip)(skipped)
        backward = accelerator.backward

        @functools.wraps(backward)
        def kept(loss: Any, **options: Any) -> None:
            backward(loss, **options)
            if self.active:
                self._keep(loss)

        accelerator.backward = kept

    def _wrap(self, name: str, use: Callable[[Any], Any]) -> None:
        method = getattr(self._accelerator, name)

        @functools.wraps(method)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            result = method(*args, **kwargs)
            return use(result) if self.active else result

        setattr(self._accelerator, name, wrapped)

    def _mark(self, loader: Any) -> Any:
        if isinstance(loader, DataLoaderShard | DataLoaderDispatcher):
            vars(loader)[_MARK] = _Passes(self, loader)
        return loader

    def _count(self, optimizer: Any) -> Any:
        step = optimizer.step

        @functools.wraps(step)
        def counted(*args: Any, **kwargs: Any) -> Any:
            result = step(*args, **kwargs)
            self._stepped |= bool(self._accelerator.sync_gradients)
            return result

        optimizer.step = counted
        return optimizer

    def _keep(self, loss: Any) -> None:
        self._losses.append(loss.detach() if hasattr(loss, "detach") else loss)
        if self._is_deepspeed and self._accelerator.sync_gradients:
            self._stepped = True  # the engine makes the step in `backward`

    @property
    def _is_deepspeed(self) -> bool:
        return str(self._accelerator.distributed_type).endswith("DEEPSPEED")

    @property
    def has_begun(self) -> bool:
        """True once a pass of training has begun: its steps are reported."""
        return self._state is not None

    @property
    def is_training(self) -> bool:
        """True if a pass over a loader that begins now is one of training."""
        models = self._accelerator._models  # noqa: SLF001
        return torch.is_grad_enabled() and (not models or any(m.training for m in models))

    def begin(self) -> None:
        """Restore, before the first pass; a collective.

        Raises:
            BabysitError: There are checkpoints, and none can be loaded.
        """
        if self._state is None:
            self._state = self._prepared()
            self._step = self.run.restore(self._state)

    def measure(self) -> list[Hooks]:
        """Have the parts of each step measured, until the hooks are removed."""
        accelerator = self._accelerator
        if not self._parts:
            return []
        optimizers = self.run.watch(None, accelerator._optimizers)  # noqa: SLF001
        return [optimizers, *map(self.run.watch, accelerator._models)]  # noqa: SLF001

    def _prepared(self) -> Any:
        """All that was prepared, as a state."""
        accelerator = self._accelerator
        parts = {
            "scheduler": accelerator._schedulers,  # noqa: SLF001
            "custom": accelerator._custom_objects,  # noqa: SLF001
        }
        if self._is_deepspeed:
            from babysit.integrations.deepspeed import EngineState  # noqa: PLC0415  # if it is used

            return EngineState(accelerator._models[0], _numbered(parts))  # noqa: SLF001
        optimizers = accelerator._optimizers  # noqa: SLF001
        if str(accelerator.distributed_type).endswith("FSDP"):
            # Sharded values load into parameters, which accelerate's wrapper hides.
            optimizers = [each.optimizer for each in optimizers]
        parts |= {
            "model": accelerator._models,  # noqa: SLF001
            "optimizer": optimizers,
            "scaler": [accelerator.scaler] if accelerator.scaler is not None else [],
        }
        return _numbered(parts)

    def end_step(self, *, left: bool = False) -> None:
        """The script has done with a batch: report and save the step, if that was its last one.

        A collective on several ranks, unless the loop was left.
        """
        if not self._stepped:
            return
        losses, self._stepped = [*self._losses], False
        self._losses.clear()
        self._step += 1
        loss = sum(losses) / len(losses) if losses else None
        self.run.report(step=self._step, loss=loss)
        if left:
            return
        stop = self.run.should_stop
        self.run.checkpoint(self._state, step=self._step, now=stop)
        if stop:
            leave(self.run)


def _numbered(parts: dict[str, Any]) -> dict[str, Any]:
    return {f"{name}-{i}": part for name, all_ in parts.items() for i, part in enumerate(all_)}


class _Passes:
    """The passes over one prepared loader."""

    def __init__(self, watching: Watch, loader: Any) -> None:
        self._watch = watching
        self._loader: Loader[Any] = Loader(watching.run, loader)
        self.inside = False
        """True while the loader itself is drawn from."""

    @property
    def is_open(self) -> bool:
        """True if the next pass is to be watched."""
        return self._watch.active and not self.inside

    def __call__(self, numbers: dict[str, int], plain: Callable[[], Any]) -> Iterator[Any]:
        """One pass; `plain` gives the loader's own iterator."""
        watching = self._watch
        if not watching.is_training:
            with watching.run.phase("evaluate"):
                yield from plain()
            return
        watching.begin()
        rest = self._loader.draw(numbers)
        measured = watching.measure()
        try:
            while (batch := self._next(rest)) is not _END:
                yield batch
                watching.end_step()
        except GeneratorExit:
            watching.end_step(left=True)
            raise
        finally:
            for hooks in measured:
                hooks.remove()
        watching.run.finish()

    def _next(self, rest: Iterator[Any]) -> Any:
        self.inside = True
        try:
            return next(rest, _END)
        finally:
            self.inside = False


def _install(kind: Any) -> None:
    """Let a marked loader be drawn from by its run; others are not touched."""
    original = kind.__iter__

    @functools.wraps(original)
    def drawn(self: Any) -> Any:
        passes = vars(self).get(_MARK)
        if passes is None or not passes.is_open:
            return original(self)
        numbers = numbers_of(sys._getframe(1).f_locals)  # noqa: SLF001  # the script's loop
        return passes(numbers, functools.partial(original, self))

    kind.__iter__ = drawn


_install(DataLoaderShard)
_install(DataLoaderDispatcher)
