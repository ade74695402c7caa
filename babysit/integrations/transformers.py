"""Hugging Face's Trainer, and those that derive from it (trl).

    trainer = Trainer(..., callbacks=[BabysitCallback()])
    trainer.train()

Every optimizer step is reported, with its own loss, whatever `logging_steps` says. Saves follow the
run's own policy, in both tiers, on one device and with DDP, FSDP or DeepSpeed; with other sharded
states the Trainer saves to its `output_dir` when the policy says so, and those files are taken
over. `train()` goes on from the run's checkpoint by itself; `resume_from` has its path for scripts
that pass it on. The loader that the Trainer makes is a `run.loader()`: it goes on at the exact
batch, and quarantined batches are passed over. When asked to leave, the process ends after the
save, so that the rest of the script does not run on half a model. A failure in here is logged, and
training goes on.

Not restored: what a trainer keeps outside its checkpoints, such as completions that GRPO has
generated for later steps.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import transformers.trainer as trainer_module
from transformers import Trainer, TrainerCallback

import babysit
from babysit import collective
from babysit.integrations.leaving import leave
from babysit.integrations.trainer_files import TrainerFiles
from babysit.numbers import said
from babysit.run import Run
from babysit.run_loader import Loader
from babysit.step_times import Hooks

_SHOWN_APART = {"loss", "grad_norm", "learning_rate", "epoch"}


def _quiet(method: Callable[..., None]) -> Callable[..., None]:
    """Let a failure of babysit's own be logged once, and training go on."""

    @functools.wraps(method)
    def guarded(self: BabysitCallback, *args: Any, **kwargs: Any) -> None:
        try:
            method(self, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 (training must go on)
            self.run._reporter.warn(  # noqa: SLF001  # a part of babysit
                f"{method.__name__} of the Trainer's callback failed: {said(error)}"
            )

    return guarded


class BabysitCallback(TrainerCallback):  # type: ignore[misc,unused-ignore]  # untyped base
    """Reports steps, saves when a save is due, resumes, and leaves when requested."""

    def __init__(self, run: Run | None = None, *, parts: bool = True) -> None:
        """Join the run.

        Args:
            run: The run; None: that of `babysit.init()`.
            parts: Measure the parts of each step with `run.watch`, while the Trainer trains.
        """
        self.run = run or babysit.init()
        self._parts = parts
        self._hooks = Hooks()
        self._files = TrainerFiles()
        self._restored = False
        self._loader: Loader[Any] | None = None
        self._losses: list[Any] = []
        """The losses of the batches of this step, as yet unread."""
        self._due: dict[str, Any] | None = None
        """The report of the step that has just ended, as yet unsent."""
        self._leaving = False
        self._last = 0
        """The Trainer's last step."""
        self._resumed = False
        """True once a call of `train()` has got the checkpoint: a later one begins anew."""

    @property
    def resume_from(self) -> str | None:
        """Directory of the checkpoint to resume from; None: start from the beginning.

        Raises:
            BabysitError: There are checkpoints, and none can be loaded.
        """
        if not self._restored:
            self._restored = True
            self.run.restore(self._files)
        return str(self._files.found) if self._files.found else None

    def resume_once(self) -> str | None:
        """The checkpoint for a call of `train()`; None: there is none, or another call has it."""
        first, self._resumed = not self._resumed, True
        return self.resume_from if first else None

    @_quiet
    def attach(self, trainer: Any) -> None:
        """Watch the parts that a callback does not see: losses, loader, the end of each step."""
        if self._files.trainer is trainer:
            return
        self._files.attach(trainer)
        self._wrap(trainer, "training_step", self._keep_loss)
        self._wrap(trainer, "get_train_dataloader", self._own_loader)
        ends = trainer._maybe_log_save_evaluate  # noqa: SLF001

        @functools.wraps(ends)
        def end_step(*args: Any, **kwargs: Any) -> Any:
            given = dict(zip(("tr_loss", "grad_norm"), args, strict=False)) | kwargs
            self._step(given)
            result = ends(*args, **kwargs)
            self._save()
            if self._leaving:
                leave(self.run)
            return result

        trainer._maybe_log_save_evaluate = end_step  # noqa: SLF001
        evaluate = trainer.evaluate

        @functools.wraps(evaluate)
        def evaluated(*args: Any, **kwargs: Any) -> Any:
            with self.run.phase("evaluate"):  # its first batch is before any event
                return evaluate(*args, **kwargs)

        trainer.evaluate = evaluated

    @staticmethod
    def _wrap(trainer: Any, name: str, use: Callable[[Any], Any]) -> None:
        method = getattr(trainer, name)

        @functools.wraps(method)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            return use(method(*args, **kwargs))

        setattr(trainer, name, wrapped)

    def _keep_loss(self, loss: Any) -> Any:
        self._losses.append(loss)
        return loss

    def _own_loader(self, loader: Any) -> Any:
        self._loader = Loader(self.run, loader, framework=True, joins=True)
        return self._loader

    @property
    def _state(self) -> Any:
        return self._files.trainer.state

    @_quiet
    def _step(self, given: dict[str, Any]) -> None:
        """An optimizer step has ended; the Trainer says so at the end of an epoch again."""
        losses, self._losses = self._losses, []
        if self._state.global_step == self._last or not losses:
            return
        self._last = self._state.global_step
        self._due = {
            "step": self._state.global_step,
            "loss": sum(losses),
            "grad_norm": given.get("grad_norm"),
            "learning_rate": given.get("learning_rate"),
        }
        if not self._files.trainer.control.should_log:
            self._report()

    def _report(self, metrics: dict[str, Any] | None = None) -> None:
        due, self._due = self._due, None
        if due is not None:
            self.run.report(**due, metrics=metrics)

    @_quiet
    def _save(self) -> None:
        """Save if a save is due, and see whether this rank must leave; a collective."""
        self._report()
        trainer, run = self._files.trainer, self.run
        if not self._files.by_rank:
            return  # see `on_step_end`
        step, control = self._state.global_step, trainer.control
        asked = run.should_stop and step < self._state.max_steps
        if step:
            run.checkpoint(self._files, step=step, now=asked or control.should_training_stop)
        self._leaving = asked

    # --- events ---------------------------------------------------------------------------------

    @_quiet
    def on_train_begin(self, args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Take over the Trainer's numbers."""
        run = self.run
        self._last = state.global_step
        self._files.trainer_args = args
        run._total = state.max_steps  # noqa: SLF001
        if args.world_size != run.world_size:
            run._reporter.warn(  # noqa: SLF001
                f"the Trainer has {args.world_size} ranks, and the run {run.world_size}: each"
                " trains alone"
            )
        if self._loader is None:
            run._reporter.warn(  # noqa: SLF001
                "the Trainer's loader is not known here: quarantined batches are not passed over"
            )
        elif state.global_step and not self._files.found:
            self._start_at(args, state)
        if self._parts and (trainer := self._files.trainer) is not None:
            self._hooks = run.watch(trainer.model_wrapped, trainer.optimizer)

    def _start_at(self, args: Any, state: Any) -> None:
        """The script itself goes on from a checkpoint: its batches count as drawn."""
        if self._loader is None:
            return
        length, group = len(self._loader), args.gradient_accumulation_steps
        epoch, steps = divmod(state.global_step, max(1, -(-length // group)))
        offset = 0 if args.ignore_data_skip else steps * group
        self._loader.start_at(epoch, offset, batch=epoch * length + offset)

    @_quiet
    def on_log(self, _args: Any, _state: Any, _control: Any, logs: Any = None, **_: Any) -> None:
        """Report the step, with what else is logged about it."""
        self._report({n: v for n, v in (logs or {}).items() if n not in _SHOWN_APART})

    @_quiet
    def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
        """Have the Trainer save, where ranks cannot do so by themselves; a collective."""
        run, step = self.run, state.global_step
        run.phase("train")
        if self._files.by_rank:
            return
        if self._files.trainer is None:
            run.report(step=step)
        last = step >= state.max_steps
        due = run._saver.due(step, last=last, now=False)  # noqa: SLF001
        asked, agreed = collective.minimum(-int(run._reporter.stop_requested), int(bool(due)))  # noqa: SLF001
        self._leaving = asked < 0 and not last
        control.should_save |= self._leaving or bool(agreed)
        control.should_training_stop |= self._leaving

    @_quiet
    def on_save(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Register the checkpoint that the Trainer had to write itself, and has just written."""
        if self._files.by_rank:
            return  # it is the user's own
        collective.minimum(0)  # wait for all ranks' files
        written = self._files.written(state.global_step)
        self.run.checkpoint(written, step=state.global_step, now=True)

    @_quiet
    def on_prediction_step(self, _args: Any, _state: Any, _control: Any, **_: Any) -> None:
        """Enter the phase of evaluation."""
        self._report()
        self.run.phase("evaluate")

    @_quiet
    def on_evaluate(self, _args: Any, _state: Any, _control: Any, **_: Any) -> None:
        """Return to the phase of training."""
        self.run.phase("train")

    @_quiet
    def on_epoch_end(self, _args: Any, _state: Any, control: Any, **_: Any) -> None:
        """An epoch that is cut short is not gone on with."""
        if control.should_epoch_stop and self._loader is not None:
            self._loader.leave()

    def on_train_end(self, _args: Any, _state: Any, _control: Any, **_: Any) -> None:
        """Wait until the last save is written; leave if the Trainer was stopped for that."""
        self._hooks.remove()
        if self._leaving:
            leave(self.run)
        self.run.finish()


def _watch_of(trainer: Any) -> BabysitCallback | None:
    callbacks = trainer.callback_handler.callbacks
    return next((each for each in callbacks if isinstance(each, BabysitCallback)), None)


def _install() -> None:
    """Let every Trainer look for the callback when it trains; others are not touched."""
    train, skip = Trainer.train, trainer_module.skip_first_batches

    @functools.wraps(train)
    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        watch = _watch_of(self)
        if watch is not None and "trial" not in kwargs:
            watch.attach(self)
            if (found := watch.resume_once()) is not None:
                args, kwargs = args[1:], {**kwargs, "resume_from_checkpoint": found}
        return train(self, *args, **kwargs)

    @functools.wraps(skip)
    def skipped(dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        return dataloader if isinstance(dataloader, Loader) else skip(dataloader, *args, **kwargs)

    Trainer.train, trainer_module.skip_first_batches = watched, skipped


_install()
