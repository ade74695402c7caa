"""The run that `babysit.init()` returns: what a training script sees of us."""

from __future__ import annotations

import dataclasses
import pickle
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

from babysit import collective, rng
from babysit.checkpoint import restore
from babysit.checkpoint.saver import DirectoryState, Saved, Saver
from babysit.data import Feed, Position
from babysit.errors import NotDistributedError
from babysit.numbers import real, whole
from babysit.reporter import Reporter
from babysit.ring import Record, wall_clock
from babysit.step_count import StepCount
from babysit.wire import Note, Phase, Plan

Batch = TypeVar("Batch")

_END: Any = object()
_PHASES = {phase.value: phase for phase in Phase} | {
    "restore": Phase.RESTORING,
    "train": Phase.TRAINING,
    "checkpoint": Phase.CHECKPOINTING,
    "evaluate": Phase.EVALUATING,
}


class Run:
    """One rank's part of a run."""

    def __init__(self, plan: Plan, reporter: Reporter) -> None:
        self.plan = plan
        self.rank = plan.rank
        self.world_size = plan.world_size
        self.step = 0
        """The step being computed (inside `steps()`), or the last one."""
        self.batch = 0
        """Number of the batch of that step."""
        self._ended = 0
        """The last step that has ended: what peers and the agent are told."""
        self._count = StepCount()
        self._reporter = reporter
        self._saver = Saver(plan, reporter)
        self._phase = Phase.STARTING
        self._feed: Feed | None = None
        self._total: int | None = None
        self._resumed: dict[str, Any] | None = None
        self._reported = time.perf_counter()
        self._blocked = 0.0
        reporter.note(Note.STARTED)
        self._enter(Phase.TRAINING)

    # -- data ---------------------------------------------------------------------------------

    def steps(
        self, loader: Iterable[Batch], total: int | None = None, epochs: int | None = None
    ) -> Iterator[tuple[int, Batch]]:
        """Yield `(step, batch)`, from where the restored checkpoint left off.

        Steps count from 1. Quarantined batches are passed over on every rank alike. How a loader is
        resumed is told in :mod:`babysit.data`. With another world size, the position in batches
        per rank is kept.

        Args:
            loader: Gives batches; anything that can be iterated over.
            total: The last step; None: no end but that of the epochs.
            epochs: Passes over the loader; None: as many as `total` needs, or else one.

        Raises:
            EmptyLoaderError: A whole pass gave no batch.
        """
        resumed = self._resumed or {}
        position = resumed.get("position") or Position(batch=self.batch)
        self._feed = Feed(loader, self.plan.skip_batches, position, beat=self._beat)
        self._total = total
        if epochs is None and total is None:
            epochs = 1
        batches = self._feed.batches(epochs, resumed.get("rng"))
        self._reported = time.perf_counter()
        try:
            while total is None or self.step < total:
                # A draw is a sign of life by itself: many ranks of a run never report.
                self._ended = self.step
                self._enter(Phase.LOADING)
                batch = next(batches, _END)
                if batch is _END:
                    break
                self.step += 1
                self.batch = self._feed.position.batch
                self._enter(Phase.TRAINING)
                yield self.step, batch
        except GeneratorExit:  # the loop was left early (`break`, `return`): an end like any other
            self._ended = self.step
            self._reporter.note(Note.FINISHED, step=self.step)
            raise
        self.finish()

    # -- reporting ----------------------------------------------------------------------------

    def report(
        self,
        *,
        loss: Any = None,
        grad_norm: Any = None,
        tokens: Any = None,
        learning_rate: Any = None,
        step: Any = None,
    ) -> None:
        """Report a step: one record in shared memory. Never blocks and never raises.

        A report is a sign of life whatever it is given. A value that is not a number is warned of,
        once, and left out.

        Args:
            loss: A float, or what `float()` takes (a tensor on a GPU is waited for); None: this
                rank has no loss for the step.
            grad_norm: Norm of the gradient before clipping.
            tokens: Tokens this rank consumed in the step.
            learning_rate: As it was in this step.
            step: The step, counted by the script; by default that of `steps()`. A count that goes
                back (one that begins anew each epoch) is continued from where it was.
        """
        if step is not None:
            self.step = self._counted(step)
        self._ended = max(self._ended, self.step)
        now = time.perf_counter()
        record = Record(
            self.step,
            self.batch,
            wall_clock(),
            self._number("loss", loss, None),
            self._number("grad_norm", grad_norm, -1.0) or 0.0,
            self._number("tokens", tokens, 0.0) or 0.0,
            now - self._reported,
            self._blocked,
            self._number("learning_rate", learning_rate, -1.0) or 0.0,
        )
        self._reporter.record(record, self._phase)
        self._reported = now
        self._blocked = 0.0

    def _number(self, name: str, value: Any, absent: float | None) -> float | None:
        try:
            number = real(value)
        except Exception as error:  # noqa: BLE001 (the value's own code ran; training must go on)
            self._reporter.warn(
                f"report({name}=…) of a {type(value).__name__} is left out: {error}"
            )
            return absent
        return absent if number is None else number

    def _counted(self, given: Any) -> int:
        """The step of the run that the script calls `given`."""
        try:
            step, complaint = self._count.counted(whole(given), self._ended)
        except Exception as error:  # noqa: BLE001 (as above)
            self._reporter.warn(f"step={given!r} is not a step, so it is left out: {error}")
            return self.step
        if complaint:
            self._reporter.warn(complaint)
        return step

    def phase(self, name: str | Phase) -> PhaseScope:
        """Say what the rank does now: `with run.phase("evaluate"): …`.

        The phase holds from the call on; at the end of a `with` block the one before comes back. An
        unknown name changes nothing and is warned of.
        """
        before = self._phase
        phase = _PHASES.get(name)
        if phase is None:
            self._reporter.warn(f"unknown phase {name!r}; there are {', '.join(_PHASES)}")
            return PhaseScope(self, before)
        self._enter(phase)
        return PhaseScope(self, before)

    @property
    def should_stop(self) -> bool:
        """Whether to save and leave, because the node is about to go.

        A collective where torch.distributed is initialised: the ranks' answers are combined, so all
        leave after the same step. Look at it on every rank, at the same place in the loop.
        """
        asked = self._reporter.asked_to_stop
        if self.world_size == 1:
            return asked
        return collective.minimum(-int(asked))[0] < 0

    def fingerprint(self, model: Any) -> str:
        """Hash this rank's parameters and buffers, and note it.

        Replicas that hold the same (part of the) model must agree bit for bit; one that does not
        has computed wrongly.

        Returns:
            32 hex digits (blake2b).
        """
        from babysit.fingerprint import digest  # noqa: PLC0415  # imports torch

        value = digest(model)
        self._reporter.note(Note.FINGERPRINT, step=self.step, digest=value)
        return value

    # -- checkpoints --------------------------------------------------------------------------

    def restore(self, state: dict[str, Any] | DirectoryState) -> int:
        """Load the checkpoint the control plane chose; returns its step (0: from the beginning).

        Candidates that are damaged are passed over, on all ranks alike: a collective where
        torch.distributed is initialised. Generators and the place in the data come back too.

        Raises:
            NotDistributedError: There are several ranks and torch.distributed is not initialised.
            StateMismatchError: A sound checkpoint does not fit the state.
            NothingLoadedError: There are checkpoints, and none of them can be loaded.
        """
        begun = time.perf_counter()
        with self.phase(Phase.RESTORING):
            self._require_process_group(state)
            choice = restore.choose(self.plan)
            candidate = choice.candidate
            if candidate is not None:
                self._resumed = restore.load(state, candidate, self.rank)
                self.step = self._ended = candidate.step
                self.batch = self._resumed["batch"]
                rng.apply(self._resumed["rng"])
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
            self._reporter.warn(f"checkpoint {refused['id']} is passed over: {refused['reason']}")
        return self.step

    def checkpoint(
        self,
        state: dict[str, Any] | DirectoryState,
        *,
        step: int | None = None,
        now: bool = False,
    ) -> None:
        """Save the state after this step, if a save is due. Call it last in the loop's body.

        Training waits only for the copy out of its tensors (and for the save before it, should that
        still be under way). The run's last step is always saved. A save that fails is noted, and
        training goes on.

        Args:
            state: As for :meth:`restore`.
            step: The step; by default that of `steps()`.
            now: Save even if none is due (before leaving, say).
        """
        step = self.step if step is None else self._counted(step)
        self._ended = max(self._ended, step)
        tiers = self._saver.due(step, last=step == self._total, now=now)
        if not tiers:
            return
        begun = time.perf_counter()
        with self.phase(Phase.CHECKPOINTING):
            self._saver.save(state, Saved(step, self.batch, self._position(), tiers))
        self._blocked += time.perf_counter() - begun

    def flush(self) -> None:
        """Complete what is still being written."""
        self._saver.wait()

    def finish(self) -> None:
        """The work is done: complete what is still being written. `steps()` does so at its end."""
        self._ended = self.step
        self.flush()
        self._enter(Phase.FINISHED)
        self._reporter.note(Note.FINISHED, step=self.step)

    def _position(self) -> bytes:
        position = self._feed.snapshot() if self._feed else Position(batch=self.batch)
        return pickle.dumps({"batch": self.batch, "position": position, "rng": rng.capture()})

    def _require_process_group(self, state: Any) -> None:
        alone = self.world_size == 1 or isinstance(state, DirectoryState)
        if not alone and collective.process_group() is None:
            raise NotDistributedError(
                f"this run has {self.world_size} ranks, but torch.distributed is not initialised:"
                " call torch.distributed.init_process_group() before run.restore(state)"
            )

    def _enter(self, phase: Phase) -> None:
        self._phase = phase
        self._beat()

    def _beat(self) -> None:
        """A sign of life."""
        self._reporter.progress(self._ended, self.batch, self._phase)


@dataclasses.dataclass(frozen=True, slots=True)
class PhaseScope:
    """Brings the phase before back at the end of a `with` block."""

    run: Run
    before: Phase

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.run._enter(self.before)  # noqa: SLF001  # a part of Run
