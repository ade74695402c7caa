"""The run that `babysit.init()` returns: the public API of a training script."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar, Unpack

from babysit import collective, phase_scope, rng
from babysit.calls import Calls, numbers_of
from babysit.checkpoint import restore
from babysit.checkpoint.position import dumps
from babysit.checkpoint.saver import DirectoryState, Saved, Saver
from babysit.data import Feed, Position
from babysit.fingerprints import Fingerprints, Options
from babysit.measures import Change, Measures
from babysit.numbers import said
from babysit.phase_scope import PhaseScope
from babysit.reporter import Reporter
from babysit.ring import Record, wall_clock
from babysit.run_loader import Loader
from babysit.step_count import StepCount
from babysit.step_times import PART_OF, Hooks, StepTimes
from babysit.stop_agreement import StopAgreement
from babysit.wire import Candidate, Note, Part, Phase, Plan

Batch = TypeVar("Batch")

_END: Any = object()


class Run:
    """One rank's part of a run."""

    def __init__(self, plan: Plan, reporter: Reporter) -> None:
        self.plan = plan
        self.rank = plan.rank
        self.world_size = plan.world_size
        self.step = 0
        """The step being computed (inside `steps()`), or the last one; 0 before the first."""
        self.batch = 0
        """Number of the batch of that step."""
        self._ended = 0
        """The last completed step, as published to peers and the agent."""
        self._count = StepCount()
        self._measures = Measures(reporter)
        self._change = Change(reporter)
        self._reporter = reporter
        self._saver = Saver(plan, reporter)
        self._fingerprints = Fingerprints(plan, reporter)
        self._phase = Phase.STARTING
        self._times = StepTimes()
        self._stop = StopAgreement(lambda: reporter.stop_requested, alone=plan.world_size == 1)
        self._feed: Feed | None = None
        self._total: int | None = None
        self._calls = Calls()
        self.sync_gradients = True
        """True on the last batch of an optimizer step; always, without `steps(accumulate=…)`."""
        self._reported = time.perf_counter()
        self._blocked = 0.0
        reporter.note(Note.STARTED)
        self._enter(Phase.TRAINING)

    def steps(
        self,
        loader: Iterable[Batch],
        total: int | None = None,
        epochs: int | None = None,
        *,
        accumulate: int = 1,
    ) -> Iterator[tuple[int, Batch]]:
        """Yield `(step, batch)`, starting where the restored checkpoint ended.

        Steps count from 1. Quarantined batches are skipped on all ranks. :mod:`babysit.loaders`
        describes how each kind of loader resumes. A script may call it once per epoch or per
        stage: after a restore, calls that had ended yield nothing; see :meth:`epochs`. After a
        change of the world size, :mod:`babysit.global_order` deals the rest of the epoch out anew.

        Args:
            loader: Any iterable of batches.
            total: The last step of the run; None: no limit other than the epochs.
            epochs: Passes over the loader; None: as many as `total` needs, or one without `total`.
            accumulate: Batches per optimizer step. They have the same step; `run.sync_gradients`
                is true on the last one, and saves are due only there. A pass ends with a shorter
                step if batches are left over.

        Raises:
            EmptyLoaderError: A whole pass gave no batch.
        """
        numbers = numbers_of(sys._getframe(1).f_locals)  # noqa: SLF001  # the script's loop
        position, states = self._calls.begin(loader, self.batch, numbers)
        if position is None:
            self._calls.pass_over(self._reporter)
            return
        feed = Feed(loader, self.plan.skip_batches, position, beat=self._beat, before=self._feed)
        self._feed = feed
        feed.warn_of_limits(self._reporter)
        self._total = total
        epochs = 1 if epochs is None and total is None else epochs
        self._reported = time.perf_counter()
        self._reporter.note(Note.LOOPING, step=self.step)
        try:
            yield from _draw(self, feed, total, feed.groups(epochs, states, accumulate))
        except GeneratorExit:  # left by `break` or `return`; an exception looks the same from here
            self._ended, self.sync_gradients = self.step, True
            self._calls.end(feed)
            self._enter(Phase.FINISHED)  # which may take long, until another loop begins
            self._reporter.note(Note.LEFT, step=self.step)
            raise
        self._calls.end(feed)
        self.finish()

    def loader(self, loader: Iterable[Batch]) -> Loader[Batch]:
        """Wrap a loader for a loop that is not one of `steps()`: it goes on at the exact batch.

        Each `for` over it is one pass. After :meth:`restore`, passes that had ended give nothing;
        see :meth:`epochs`. It also has `state_dict()` and `load_state_dict()`, for a framework that
        saves its loaders and counts epochs itself; see :mod:`babysit.run_loader`. Quarantined
        batches are passed over on all ranks, so a pass may be shorter than `len()` says. It counts
        batches, not steps: give `step` to :meth:`report` and :meth:`checkpoint`.
        """
        return Loader(self, loader)

    def epochs(self, count: int) -> Iterator[int]:
        """Yield the numbers of the epochs from 0 on, starting in that of the restored checkpoint.

        For a script that calls `steps()` once per epoch, and what it does between must not repeat.
        """
        for epoch in range(self._calls.first, count):
            self._calls.start_at(epoch)
            yield epoch

    def report(
        self,
        loss: Any = None,
        *,
        grad_norm: Any = None,
        tokens: Any = None,
        learning_rate: Any = None,
        step: Any = None,
        metrics: Any = None,
        **named: Any,
    ) -> None:
        """Report a step: one record in shared memory. Never blocks and never raises.

        Every report is a sign of life. A value that is not a number is logged once and left out.

        Args:
            loss: A float, or a value that `float()` accepts (for a GPU tensor this synchronises);
                None: this rank has no loss for the step.
            grad_norm: Norm of the gradient before clipping; None: not reported.
            tokens: Tokens that this rank consumed in the step; None: not reported.
            learning_rate: Learning rate of the step; None: not reported.
            step: The step as the script counts it; None: that of `steps()`. A counter that goes
                back (one that restarts in each epoch) is continued.
            metrics: Other numbers by name, such as `{"accuracy": 0.9}`, to be stored and shown.
            named: Further metrics: `report(loss=…, accuracy=0.9)`. A rank may have 16 names.
        """
        if step is not None:
            self.step = self._counted(step)
        self._ended = max(self._ended, self.step)
        now = time.perf_counter()
        record = Record(
            self.step,
            self.batch,
            wall_clock(),
            self._measures.number("loss", loss, None),
            self._measures.number("grad_norm", grad_norm, -1.0) or 0.0,
            self._measures.number("tokens", tokens, 0.0) or 0.0,
            now - self._reported,
            self._blocked,
            self._measures.number("learning_rate", learning_rate, -1.0) or 0.0,
            self._change.until(self.step),
            self._measures.named(metrics, named) if metrics is not None or named else (),
        )
        self._times.publish(self._ended, self._reporter)
        self._reporter.record(record, self._phase)
        self._reported = now
        self._blocked = 0.0

    def expect(self, change: str, *, steps: Any = 200) -> None:
        """Announce a change of the loss: `run.expect("new data mix", steps=200)`. Never raises.

        For `steps`, the present one included, only a loss that is not finite is acted on; what the
        loss does then is learned as normal. Announce it before the first step of the change, on any
        rank that reports; on another rank, some reports earlier. `change` goes into the history.
        """
        self._change.announce(said(change), steps, max(self.step - 1, self._ended))

    def _counted(self, given: Any) -> int:
        """The step of the run that the script calls `given`."""
        return self._count.converted(given, self._ended, self.step, self._reporter.warn)

    def phase(self, name: str | Phase) -> PhaseScope:
        """Declare what the rank does now: `with run.phase("evaluate"): …`.

        The phase starts with the call; the end of a `with` block restores the previous one. Limits
        for hangs differ by phase. `forward`, `backward`, `optimizer` and `communicate` (waiting for
        other ranks) divide the time of a step, by which slow ranks are found. An unknown name
        changes nothing and is logged.
        """
        return phase_scope.begin(self, name)

    @property
    def should_stop(self) -> bool:
        """True if the script must save and exit: its node is needed or about to be drained.

        A collective if torch.distributed is initialised: the answers of all ranks are combined
        about once a second, so that all stop after the same step. Read it on every rank at the
        same place in the loop. Between the batches of one optimizer step it is false.
        """
        return self.sync_gradients and self._stop.ask()  # the former on all ranks alike

    def fingerprint(
        self, model: Any, optimizer: Any = None, **options: Unpack[Options]
    ) -> str | None:
        """Have replicas compared bit for bit: digests of the state, at some steps. Never raises.

        Call it in each step after `optimizer.step()`, at the same place on every rank. `optimizer`
        is one or several. Returns one digest of all parts, or None where none is due.
        """
        ready = self.sync_gradients  # else between the batches of one optimizer step
        at = (self.step, self.batch)
        return self._fingerprints.take(at, model, optimizer, options) if ready else None

    def watch(self, model: Any, optimizer: Any = None) -> Hooks:
        """Have hooks measure the parts of each step, by which slow ranks are found. Never raises.

        Call it once: the model as the loop calls it, one optimizer or several. `remove()` ends it.
        """
        return self._times.hooks(model, optimizer, self._reporter.warn)

    def restore(self, state: dict[str, Any] | DirectoryState) -> int:
        """Load the checkpoint that the control plane chose; returns its step (0: no checkpoint).

        Damaged candidates are skipped on all ranks alike, so this is a collective if
        torch.distributed is initialised. Random generators and the position in the data are
        restored too.

        Raises:
            NotDistributedError: There are several ranks and torch.distributed is not initialised.
            StateMismatchError: A sound checkpoint does not fit the state.
            NothingLoadedError: There are checkpoints, and none of them can be loaded.
        """
        begun = time.perf_counter()
        with self.phase(Phase.RESTORING):
            if not isinstance(state, DirectoryState):
                collective.require_process_group(self.world_size)
            self._saver.check(state)
            self.plan = restore.agreed(self.plan)
            choice = restore.choose(self.plan)
            if (candidate := choice.candidate) is not None:
                _resume(self, restore.load(state, candidate, self.rank), candidate)
            self._reporter.note(
                Note.RESTORED,
                step=self.step,
                checkpoint=candidate.id if candidate else "",
                seconds=time.perf_counter() - begun,
                rejected=list(choice.rejected),
            )
            choice.require(self.plan)
            self._saver.forget_after(self.step)
        for refused in choice.rejected:
            self._reporter.warn(f"skipping checkpoint {refused['id']}: {refused['reason']}")
        return self.step

    def checkpoint(
        self,
        state: dict[str, Any] | DirectoryState,
        *,
        step: int | None = None,
        now: bool = False,
    ) -> None:
        """Save the state after this step if a save is due. Call it last in the body of the loop.

        Training waits only for the copy out of its tensors, and for the previous save if that is
        still running. The last step of a run is always saved. A save that fails is noted, and
        training continues.

        Args:
            state: A dict or directory state, as for :meth:`restore`.
            step: The step; None: that of `steps()`.
            now: Save even if no save is due (for example before exiting). Between the batches of
                an optimizer step, the save waits for the last of them.

        Raises:
            StateMismatchError: The state is not a dict, or lacks the module of an optimizer.
        """
        step = self.step if step is None else self._counted(step)
        self._ended = max(self._ended, step)
        last = step == self._total
        tiers = self._saver.due(step, last=last, now=now)
        if not self.sync_gradients:
            if now:  # otherwise it is due at the end of the step too
                self._saver.defer(tiers, "between the batches of an optimizer step")
            return
        if not tiers:
            return
        if not last and self._saver.gradients_held(state):
            self._saver.defer(tiers, "while gradients are accumulated; accumulate=N counts steps")
            return
        begun = time.perf_counter()
        with self.phase(Phase.CHECKPOINTING):
            position = functools.partial(_position, self)
            self._saver.save(state, Saved(step, self.batch, position, tiers))
        self._blocked += time.perf_counter() - begun

    def flush(self) -> None:
        """Wait until all saves are written."""
        self._saver.wait()

    def finish(self) -> None:
        """Wait until all saves are written, and mark the run finished; `steps()` calls it too."""
        self._ended = self.step
        self.flush()
        self._enter(Phase.FINISHED)
        self._reporter.note(Note.FINISHED, step=self.step)

    def _enter(self, phase: Phase, part: Part | None = None) -> None:
        self._phase = phase
        self._times.enter(part or PART_OF[phase])
        self._times.publish(self._ended, self._reporter)
        self._beat()

    def _beat(self) -> None:
        """A sign of life."""
        self._reporter.progress(self._ended, self.batch, self._phase)


def _resume(run: Run, resumed: dict[str, Any], candidate: Candidate) -> None:
    """Go on as the checkpoint says: its step, batch, position in the data and random numbers."""
    run.step = run._ended = candidate.step  # noqa: SLF001  # a part of Run
    run.batch = resumed["batch"]
    restore.resized(resumed, candidate, run.plan, run._reporter.warn)  # noqa: SLF001
    run._count.resume(resumed.get("count"))  # noqa: SLF001
    run._calls.restore(resumed)  # noqa: SLF001
    rng.apply(resumed["rng"])


def _position(run: Run) -> bytes:
    feed, batch = run._feed, run.batch  # noqa: SLF001  # a part of Run
    position = feed.snapshot() if feed else Position(batch=batch)
    saved = {"batch": batch, "position": position, "rng": rng.capture()}
    return dumps(saved | {"calls": run._calls.saved(), "count": run._count.state})  # noqa: SLF001


def _draw(
    run: Run, feed: Feed, total: int | None, groups: Iterator[tuple[Any, bool]]
) -> Iterator[tuple[int, Any]]:
    """The steps of one call of `steps()`."""
    while total is None or run.step < total or not run.sync_gradients:
        # A draw is a sign of life by itself: many ranks of a run never report.
        if run.sync_gradients:
            run._ended = run.step  # noqa: SLF001  # a part of Run
        run._enter(Phase.LOADING)  # noqa: SLF001
        batch, complete = next(groups, (_END, True))
        if batch is _END:
            break
        run.step += run.sync_gradients
        run.sync_gradients = complete
        run.batch = feed.position.batch
        run._enter(Phase.TRAINING)  # noqa: SLF001
        yield run.step, batch
