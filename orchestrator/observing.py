"""Between samples and the core: monitors and milestones of each run.

Turns streams into events when something changes.
"""

from __future__ import annotations

import datetime as dt
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from jobs.events import Event, Heartbeat, RankSamples, Report
from jobs.spec import RunSpec
from monitors.hang import HangSettings
from monitors.loss import LossSettings
from monitors.types import Beat, Finding, Sample
from monitors.watch import Watch, WatchSettings
from orchestrator.core.entities import Attempt
from orchestrator.core.events import FindingRaised, StepReached
from orchestrator.core.state import State

MakeEvent = Callable[..., Event]
"""Makes an event of a kind with the given fields, with an id, the time and an actor."""

STALE_HEARTBEAT_SECONDS = 3.0
"""Beats older than this say nothing about a hang: their agent is out of contact."""


def watch_settings(spec: RunSpec) -> WatchSettings:
    """The monitors' settings of a run."""
    spike, hang = spec.monitors.loss_spike, spec.monitors.hang
    return WatchSettings(
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


class RunObserver:
    """Everything the control plane derives from one run's samples and heartbeats.

    Rebuilt from stored samples.
    """

    def __init__(self, spec: RunSpec) -> None:
        self._watch = Watch(watch_settings(spec))
        self._heartbeats: dict[str, tuple[float, Heartbeat]] = {}
        self._blocked: tuple[int, float] = (0, 0.0)

    def rebuild(self, tail: Iterable[tuple[int, RankSamples]], live: Attempt) -> None:
        """Feed stored samples again; what was found in them is known already.

        The newest samples only: what blocked earlier steps of the attempt the core has counted.
        """
        self._blocked = live.number, live.blocked_seconds
        for attempt, columns in tail:
            samples = list(unpack(attempt, columns))
            self._watch.observe(samples)
            for sample in samples:
                if attempt == live.number and sample.step > live.step:
                    self._count_blocked(sample)

    def events(self, run: str, report: Report, state: State, make: MakeEvent) -> Iterator[Event]:
        """What the samples of a report mean to the core.

        Steps reached and findings, in their order.

        A finding comes before the step it was found at: steps after an onset make nothing good. A
        generator, since a milestone moves as the core handles the one before.
        """
        samples = [s for columns in report.samples for s in unpack(report.attempt, columns)]
        samples.sort(key=lambda sample: (sample.step, sample.rank))
        found = deque(
            (finding.detected_step, self._raised(run, finding, make))
            for finding in self._watch.observe(samples)
        )
        for sample in (s for s in samples if s.rank == 0):
            while found and found[0][0] <= sample.step:
                yield found.popleft()[1]
            blocked = self._count_blocked(sample)
            live = state.attempts.get(run)
            if live and live.number == sample.attempt and sample.step >= live.milestone:
                at = dt.datetime.fromtimestamp(sample.time, dt.UTC)
                yield make(
                    StepReached,
                    run=run,
                    attempt=sample.attempt,
                    step=sample.step,
                    at=at,
                    blocked_seconds=blocked,
                )
        for _, event in found:
            yield event

    @staticmethod
    def _raised(run: str, finding: Finding, make: MakeEvent) -> Event:
        actor = f"monitor:{finding.kind}"
        return make(FindingRaised, run=run, attempt=finding.attempt, finding=finding, actor=actor)

    def _count_blocked(self, sample: Sample) -> float:
        attempt, seconds = self._blocked
        seconds = (
            seconds + sample.blocked_seconds
            if attempt == sample.attempt
            else sample.blocked_seconds
        )
        self._blocked = (sample.attempt, seconds)
        return seconds

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
            )
            for worker in (seat.worker for seat in attempt.seats)
            for seen, heartbeat in [self._heartbeats.get(worker, (float("-inf"), None))]
            if heartbeat is not None
            and monotonic - seen <= STALE_HEARTBEAT_SECONDS
            and heartbeat.attempt == attempt.number
            for beat in heartbeat.beats
        ]
        return self._watch.tick(now.timestamp(), beats)


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
