"""`babysit.auto()`: trainers get their adapter when they are made, without another line.

After the import of a framework, the constructor of its trainer is watched: transformers' Trainer
(trl's too), Lightning's, and accelerate's Accelerator get babysit's adapter, which also gives them
the checkpoint to go on from. A script that has none of these is watched by what it gives to W&B,
TensorBoard or MLflow; that shows its steps and losses, and saves nothing.

Nothing is imported that the script does not import itself, and nothing happens outside a run. A
failure in here is logged once, and the script goes on as without it.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

from babysit.auto_values import Counts, Values
from babysit.import_hooks import after_import
from babysit.wire import ENV_RANK_DIR

if TYPE_CHECKING:
    from babysit.run import Run

ENV_AUTO = "BABYSIT_AUTO"
_RUN = "BABYSIT_RUN"
"""Set by the agent, also for the process from which its ranks are forked."""

log = logging.getLogger("babysit")


def auto(*, parts: bool = True) -> None:
    """Watch the trainers that this script makes from now on.

    Call it first in the script, or set `BABYSIT_AUTO=1`. Outside a run it does nothing. Never
    raises. A second call changes nothing, but for `parts=False`.

    Args:
        parts: Have the adapters measure the parts of each step.
    """
    _Auto.parts = _Auto.parts and parts
    if _Auto.installed or not (os.environ.get(ENV_RANK_DIR) or os.environ.get(_RUN)):
        return
    _Auto.installed = True
    for name, hook in _HOOKS.items():
        after_import(name, hook)


class _Auto:
    """The part of a process: its run, and whether an adapter reports to it."""

    installed = False
    parts = True
    """False if the adapters are not to measure the parts of each step."""
    run: Run | None = None
    refused = False
    """True if this process is not a rank, or cannot join."""
    adapted = False
    """True if an adapter reports the steps: numbers given to loggers are not needed."""
    accelerated: Any = None
    """The watch over the last Accelerator, which reports once a loader of its own is drawn from."""
    values: Values | None = None
    complained: set[str] = set()  # noqa: RUF012  # of the process


def _complain(what: str, error: BaseException) -> None:
    if what not in _Auto.complained:
        _Auto.complained.add(what)
        log.warning("babysit.auto(): %s failed, and the script goes on without it: %r", what, error)


def _joined() -> Run | None:
    """The run of this process; None: it is not a rank."""
    if _Auto.run is None and not _Auto.refused and os.environ.get(ENV_RANK_DIR):
        from babysit.entry import init  # noqa: PLC0415  # not before it is needed

        try:
            run = init()
        except Exception as error:  # noqa: BLE001 (the script must go on)
            _complain("joining the run", error)
            _Auto.refused = True
            return None
        _Auto.refused = not run.plan.run  # a child of the rank, such as a worker of its loader
        _Auto.run = None if _Auto.refused else run
    return _Auto.run


def _after(owner: Any, name: str, use: Callable[..., None], what: str) -> None:
    """Call `use(self, *args, **kwargs)` after a method, while there is a run."""
    method = getattr(owner, name)

    @functools.wraps(method)
    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = method(self, *args, **kwargs)
        if _joined() is not None:
            try:
                use(self, *args, **kwargs)
            except Exception as error:  # noqa: BLE001 (the script must go on)
                _complain(what, error)
        return result

    setattr(owner, name, watched)


# --- trainers -----------------------------------------------------------------------------------


def _transformers(module: ModuleType) -> None:
    def made(trainer: Any, *_: Any, **__: Any) -> None:
        from babysit.integrations.transformers import BabysitCallback  # noqa: PLC0415

        if accelerate := vars(trainer).get("accelerator"):
            from babysit.integrations.accelerate import unwatch  # noqa: PLC0415

            unwatch(accelerate)
        callbacks = trainer.callback_handler.callbacks
        if not any(isinstance(each, BabysitCallback) for each in callbacks):
            trainer.add_callback(BabysitCallback(_joined(), parts=_Auto.parts))
        _Auto.adapted = True

    _after(module.Trainer, "__init__", made, "watching a Trainer")


def _accelerate(module: ModuleType) -> None:
    def made(accelerator: Any, *_: Any, **__: Any) -> None:
        from babysit.integrations.accelerate import watch  # noqa: PLC0415

        _Auto.accelerated = watch(accelerator, _joined(), parts=_Auto.parts)

    _after(module.Accelerator, "__init__", made, "watching an Accelerator")


def _lightning(module: ModuleType) -> None:
    def made(trainer: Any, *_: Any, **__: Any) -> None:
        from babysit.integrations.lightning import BabysitCallback  # noqa: PLC0415

        if not any(isinstance(each, BabysitCallback) for each in trainer.callbacks):
            trainer.callbacks.append(BabysitCallback(_joined(), parts=_Auto.parts))
        _Auto.adapted = True

    _after(module.Trainer, "__init__", made, "watching a Lightning Trainer")
    fit = module.Trainer.fit

    @functools.wraps(fit)
    def resumed(trainer: Any, *args: Any, **kwargs: Any) -> Any:
        # `resume_from` may raise, as it must: a start from step 0 would discard the checkpoints.
        watch = _lightnings(trainer) if _joined() is not None else None
        if watch is not None and (found := watch.resume_from):
            kwargs |= {"ckpt_path": found, "weights_only": False}
            args = args[:4]  # the model, the loaders and the data module come before the path
        return fit(trainer, *args, **kwargs)

    module.Trainer.fit = resumed


def _lightnings(trainer: Any) -> Any:
    kinds = "babysit.integrations.lightning"
    found = (each for each in trainer.callbacks if type(each).__module__ == kinds)
    return next(found, None)


# --- loggers ------------------------------------------------------------------------------------


def _take(values: dict[str, Any], step: Any, *, more: bool = False) -> None:
    run = _Auto.run
    if run is None or _Auto.adapted or (_Auto.accelerated and _Auto.accelerated.has_begun):
        return
    if _Auto.values is None:
        _Auto.values = Values(run)
    _Auto.values.take(values, step, more=more)


def _wandb(module: ModuleType) -> None:
    def logged(
        _run: Any, data: Any = None, step: Any = None, commit: Any = None, *_: Any, **__: Any
    ) -> None:
        if isinstance(data, dict):
            _take(data, step, more=commit is False)

    _after(module.Run, "log", logged, "reading W&B")


def _tensorboard(module: ModuleType) -> None:
    def added(
        _: Any, tag: Any, scalar_value: Any, global_step: Any = None, *__: Any, **___: Any
    ) -> None:
        _take({tag: scalar_value}, global_step)

    _after(module.SummaryWriter, "add_scalar", added, "reading TensorBoard")


def _mlflow(module: ModuleType) -> None:
    counts = Counts()  # MLflow itself puts 0 where a script gives no step

    # MLflow itself passes these by position and by name.
    def one(_: Any, run_id: Any, key: Any, value: Any, *more: Any, **named: Any) -> None:
        del run_id
        step = named.get("step", more[1] if len(more) > 1 else None)
        _take({key: value}, counts.step(key, step))

    def many(_: Any, run_id: Any, metrics: Any = (), **__: Any) -> None:
        del run_id
        for metric in metrics or ():
            _take({metric.key: metric.value}, counts.step(metric.key, metric.step))

    _after(module.MlflowClient, "log_metric", one, "reading MLflow")
    _after(module.MlflowClient, "log_batch", many, "reading MLflow")


_HOOKS: dict[str, Callable[[ModuleType], None]] = {
    "transformers.trainer": _transformers,
    "accelerate.accelerator": _accelerate,
    "lightning.pytorch.trainer.trainer": _lightning,
    "wandb.sdk.wandb_run": _wandb,
    "torch.utils.tensorboard.writer": _tensorboard,
    "tensorboardX.writer": _tensorboard,
    "mlflow.tracking.client": _mlflow,
}
