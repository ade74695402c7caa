"""Between samples and the core: monitors and milestones of each run.

Turns streams into events when something changes.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from jobs.events import Event, Heartbeat, RankExited, RankSamples, Report
from jobs.spec import RunSpec
from monitors.hang import HangSettings
from monitors.loss import LossSettings
from monitors.run_monitors import MonitorSettings, RunMonitors
from monitors.types import Beat, Finding, Sample
from orchestrator.core.messages.events import (
    FindingRaised,
    NodeChanged,
    RestartAsked,
    RollbackAsked,
    RunCancelled,
    RunReleased,
    StepReached,
    TimerFired,
    WorkerLost,
)
from orchestrator.core.messages.gang_events import GangFinished
from orchestrator.core.model.entities import Attempt
from orchestrator.core.model.state import State
from orchestrator.core.model.states import RUNNABLE_ATTEMPT_STATES

MakeEvent = Callable[..., Event]
"""Makes an event of a kind with the given fields, with an id, the time and an actor."""

STALE_HEARTBEAT_SECONDS = 3.0
"""Beats older than this say nothing about a hang: their agent is out of contact."""

_ENDS_ATTEMPTS = (
    FindingRaised,
    GangFinished,
    NodeChanged,
    RankExited,
    RestartAsked,
    RollbackAsked,
    RunCancelled,
    RunReleased,
    TimerFired,
    WorkerLost,
)


def may_end(event: Event, state: State) -> list[Attempt]:
    """The attempts that an event may end: the core must know before how far they have come.

    It hears of milestones only, and what is lost, blamed or gone back to goes by the steps between.
    """
    if not isinstance(event, _ENDS_ATTEMPTS):
        return []
    run = getattr(event, "run", None)
    runs = state.attempts if run is None else [run]
    attempts = (state.attempts.get(run) for run in runs)
    return [a for a in attempts if a is not None and a.state in RUNNABLE_ATTEMPT_STATES]


@dataclasses.dataclass(frozen=True, slots=True)
class Progress:
    """How far rank 0 of an attempt has come."""

    attempt: int = 0
    step: int = 0
    time: float = 0.0
    """When that step ended, Unix seconds."""
    blocked_seconds: float = 0.0
    """Seconds of the attempt in which saves blocked training, so far."""


def monitor_settings(spec: RunSpec) -> MonitorSettings:
    """The monitors' settings of a run."""
    spike, hang = spec.monitors.loss_spike, spec.monitors.hang
    return MonitorSettings(
        loss=LossSettings(
            threshold=spike.threshold,
            persistence=spike.persistence,
            warmup_steps=spike.warmup_steps,
        ),
        hang=HangSettings(
            after_seconds=None if hang.after == "auto" else hang.after,
            starting_seconds=hang.starting,
        ),
    )


class RunSamplePipeline:
    """Everything the control plane derives from one run's samples and heartbeats.

    Rebuilt from stored samples.
    """

    def __init__(self, spec: RunSpec) -> None:
        self._watch = RunMonitors(monitor_settings(spec))
        self._heartbeats: dict[str, tuple[float, Heartbeat]] = {}
        self._progress = Progress()

    def rebuild(self, tail: Iterable[tuple[int, RankSamples]], live: Attempt) -> None:
        """Feed stored samples again; what was found in them is known already.

        The newest samples only: what blocked earlier steps of the attempt the core has counted.
        """
        self._progress = Progress(live.number, live.step, 0.0, live.blocked_seconds)
        for attempt, columns in tail:
            samples = list(unpack(attempt, columns))
            self._watch.observe(samples)
            for sample in samples:
                if attempt == live.number and sample.step > live.step:
                    self._note(sample)

    def take_again(self, attempt: int, columns: Sequence[RankSamples]) -> None:
        """Samples that an observer before this one has made the meaning of: nothing is said again.

        They are of the turn in which a defect has cost us that observer, and not stored yet.
        """
        samples = _sorted(attempt, columns)
        self._watch.observe(samples)
        for sample in (s for s in samples if s.rank == 0):
            self._note(sample)

    def events(
        self, run: str, report: Report, state: Callable[[], State], make: MakeEvent
    ) -> Iterator[Event]:
        """What the samples of a report mean to the core.

        Steps reached and findings, in their order.

        A finding comes before the step it was found at: steps after an onset make nothing good. A
        generator, since a milestone moves as the core handles the one before. After a defect
        `state` gives another object.
        """
        samples = _sorted(report.attempt, report.samples)
        found = deque(
            (finding.detected_step, self._raised(run, finding, make))
            for finding in self._watch.observe(samples)
        )
        for sample in (s for s in samples if s.rank == 0):
            while found and found[0][0] <= sample.step:
                yield found.popleft()[1]
            progress = self._note(sample)
            live = state().attempts.get(run)
            if live and live.number == sample.attempt and sample.step >= live.milestone:
                yield _reached(run, progress, make)
        for _, event in found:
            yield event

    @staticmethod
    def _raised(run: str, finding: Finding, make: MakeEvent) -> Event:
        actor = f"monitor:{finding.kind}"
        return make(FindingRaised, run=run, attempt=finding.attempt, finding=finding, actor=actor)

    def progress_events(self, attempt: Attempt, make: MakeEvent) -> Iterator[Event]:
        """How far an attempt has come, where the core was not told yet."""
        now = self._progress
        further = now.step > attempt.step or now.blocked_seconds > attempt.blocked_seconds
        if now.attempt == attempt.number and further:
            yield _reached(attempt.run, now, make)

    def _note(self, sample: Sample) -> Progress:
        before, blocked = self._progress, sample.blocked_seconds
        if before.attempt == sample.attempt:
            blocked += before.blocked_seconds
        self._progress = Progress(sample.attempt, sample.step, sample.time, blocked)
        return self._progress

    def heartbeat(self, worker: str, heartbeat: Heartbeat, monotonic: float) -> None:
        """Remember what an agent said of its ranks."""
        self._heartbeats[worker] = (monotonic, heartbeat)

    def tick(self, attempt: Attempt, now: dt.datetime, monotonic: float) -> list[Finding]:
        """Look for a hang, by the beats of the agents in contact.

        Ranks that never called `babysit.init()` cannot be judged: their agents report no beats.
        """
        beats = [
            Beat(
                attempt=heartbeat.attempt,
                rank=beat.rank,
                step=beat.step,
                phase=beat.phase,
                beat=beat.beat,
                alive=beat.alive,
                moved=beat.moved,
            )
            for worker in (seat.worker for seat in attempt.seats)
            for seen, heartbeat in [self._heartbeats.get(worker, (float("-inf"), None))]
            if heartbeat is not None
            and monotonic - seen <= STALE_HEARTBEAT_SECONDS
            and heartbeat.attempt == attempt.number
            for beat in heartbeat.beats
        ]
        return self._watch.tick(now.timestamp(), beats)


def _reached(run: str, progress: Progress, make: MakeEvent) -> Event:
    return make(
        StepReached,
        run=run,
        attempt=progress.attempt,
        step=progress.step,
        at=dt.datetime.fromtimestamp(progress.time, dt.UTC),
        blocked_seconds=progress.blocked_seconds,
    )


def _sorted(attempt: int, ranks: Sequence[RankSamples]) -> list[Sample]:
    """The samples of several ranks, by step."""
    samples = [sample for columns in ranks for sample in unpack(attempt, columns)]
    return sorted(samples, key=lambda sample: (sample.step, sample.rank))


def unpack(attempt: int, columns: RankSamples) -> Iterator[Sample]:
    """Columns as samples."""
    for row in zip(
        columns.step,
        columns.batch,
        columns.time,
        columns.loss,
        columns.grad_norm,
        columns.tokens,
        columns.seconds,
        columns.blocked_seconds,
        columns.learning_rate,
        strict=True,
    ):
        step, batch, time, loss, grad_norm, tokens, seconds, blocked, rate = row
        yield Sample.model_construct(
            attempt=attempt,
            rank=columns.rank,
            step=step,
            batch=batch,
            time=time,
            loss=loss,
            grad_norm=grad_norm,
            tokens=tokens,
            seconds=seconds,
            blocked_seconds=blocked,
            learning_rate=rate,
        )
