"""Between the samples of a run and the core: monitors, progress, and milestones.

The problem: ranks report samples many times a second, and the core must decide on few events.

The design: each run has a pipeline, which feeds its monitors and remembers how far rank 0 has
come. It tells the core of a step only at the *milestone* that the core has asked for, and before
an event that may end the attempt. The core moves the milestone as it handles a step, so the events
of a report are asked for one at a time, each with the attempt as it is then (`SampleEvents`).

Limits: a pipeline lives in memory. A new leader rebuilds it from the newest stored samples.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from babysit.wire import Phase
from jobs.engine_events import EngineFailed
from jobs.events import ChangeAnnounced, Event, Heartbeat, RankExited, RankSamples, Report
from jobs.spec import RunSpec
from jobs.spec_slowdowns import slowdown_settings
from monitors.hang import HangSettings
from monitors.loss import LossSettings
from monitors.loss_memory import LossMemory
from monitors.run_monitors import MonitorSettings, RunMonitors
from monitors.stragglers import StragglerSettings
from monitors.types import Beat, Finding, Pace, Sample
from orchestrator.controller.kept_samples import KeptSamples
from orchestrator.controller.sample_columns import (
    fingerprints_of,
    shards_of,
    sort_samples,
    unpack,
)
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
from orchestrator.core.messages.reconciliation_events import RanksSeen
from orchestrator.core.model.entities import Attempt
from orchestrator.core.model.state import State
from orchestrator.core.model.states import RUNNABLE_ATTEMPT_STATES

MakeEvent = Callable[..., Event]
"""Makes an event of a kind with the given fields, with an id, the time and an actor."""

STALE_HEARTBEAT_SECONDS = 3.0
"""Heartbeats older than this are ignored: the agent is out of contact, not its ranks hung."""

_ENDS_ATTEMPTS = (
    EngineFailed,  # which ends those of its engine
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
    """Live attempts that an event may end: the core must know their progress before the event.

    The core hears of milestones only, but lost work, blame and the checkpoint to load depend on the
    steps in between. An event without a run (of a node) may end any attempt.
    """
    if not isinstance(event, _ENDS_ATTEMPTS):
        return []
    run = getattr(event, "run", None)
    runs = state.attempts if run is None else [run]
    attempts = (state.attempts.get(run) for run in runs)
    return [a for a in attempts if a is not None and a.state in RUNNABLE_ATTEMPT_STATES]


@dataclasses.dataclass(frozen=True, slots=True)
class Progress:
    """How far an attempt has come: the furthest of its ranks, since not every rank reports."""

    attempt: int = 0
    step: int = 0
    time: float = 0.0
    """When that step ended, Unix seconds."""
    blocked_seconds: float = 0.0
    """Seconds of the attempt in which saves blocked training, so far."""
    first_step: int = 0
    """The first step that a rank ended in the attempt; 0: not known."""

    def begun_at(self, step: int) -> Progress:
        """With a first step of a rank; 0: it is not known."""
        known = [first for first in (self.first_step, step) if first]
        return dataclasses.replace(self, first_step=min(known, default=0))


def monitor_settings(spec: RunSpec) -> MonitorSettings:
    """The monitors' settings of a run."""
    spike, hang, slow = spec.monitors.loss_spike, spec.monitors.hang, spec.monitors.straggler
    return MonitorSettings(
        loss=LossSettings(
            threshold=spike.threshold,
            persistence=spike.persistence,
            warmup_steps=spike.warmup_steps,
            direction=spike.direction,
            drift=spike.drift,
        ),
        hang=HangSettings(
            after_seconds=None if hang.after == "auto" else hang.after,
            starting_seconds=hang.starting,
        ),
        straggler=StragglerSettings(
            threshold=slow.threshold, steps=slow.steps, after_seconds=slow.after
        ),
        slowdowns=slowdown_settings(
            spec.monitors.data_stall,
            spec.monitors.checkpoint_stall,
            spec.monitors.startup_stall,
            spec.monitors.throughput_drop,
        ),
    )


class _Heard(NamedTuple):
    """The newest heartbeat of an agent, as the monitors read it."""

    at: float
    attempt: int
    beats: list[Beat]


def _beats_of(heartbeat: Heartbeat) -> list[Beat]:
    """The beats of a heartbeat, made once as it comes: looks for hangs are more frequent."""
    attempt = heartbeat.attempt
    return [
        Beat(attempt, b.rank, b.step, b.phase, b.beat, b.alive, b.moved, b.printed, b.parts)
        for b in heartbeat.beats
    ]


class RunSamplePipeline:
    """Everything the control plane derives from one run's samples and heartbeats."""

    def __init__(self, spec: RunSpec, known: Pace | None = None, learned: str = "") -> None:
        memory = LossMemory.read(learned)
        self._monitors = RunMonitors(monitor_settings(spec), known, memory)
        self._is_elastic = spec.resources.min_nodes != spec.resources.max_nodes
        self._told_learned = memory.rises, memory.replicas
        """The knowledge of the monitors that the core has."""
        self._told = known or Pace()
        """The pace that the core knows."""
        self._heartbeats: dict[str, _Heard] = {}
        self._progress = Progress()
        self._speaker = 0
        """The lowest rank of the attempt that reports."""
        self.kept = KeptSamples()
        """Which ranks' samples are stored."""

    def rebuild(self, tail: Iterable[tuple[int, RankSamples]], live: Attempt) -> None:
        """Feed stored samples (the newest, of rank 0) to monitors that have seen nothing.

        Findings are dropped: they were raised when the samples first came. Seconds that saves
        blocked before the tail are taken from the attempt, where the core has counted them.
        """
        self._progress = Progress(live.number, live.step, 0.0, live.blocked_seconds)
        for attempt, columns in tail:
            samples = list(unpack(attempt, columns))
            self.kept.hear(attempt, [columns])
            self._monitors.observe(samples)
            if attempt == live.number or not self._is_elastic:  # else it is not known
                self._monitors.has_ranks(live.world_size)
            for sample in samples:
                if attempt == live.number and sample.step > live.step:
                    self.note(sample)

    def take_again(self, attempt: int, columns: Sequence[RankSamples], newest: int) -> None:
        """Feed samples whose events another pipeline has made already; no event comes of it.

        For the report during which the core failed: the state was loaded again, this pipeline is
        new, and the samples are not in the database yet. `newest` is the newest attempt that the
        state knows.
        """
        samples = sort_samples(attempt, columns)
        if attempt <= newest:
            self.kept.hear(attempt, columns)
        self.observe(samples)
        for sample in samples:
            self.note(sample)

    def observe(self, samples: Sequence[Sample]) -> list[Finding]:
        """Feed samples to the monitors, sorted by step; the findings, in order of detection."""
        return self._monitors.observe(samples)

    def compare(self, report: Report) -> list[Finding]:
        """Feed the fingerprints and the saves of a report to the monitors; the findings."""
        found = self._monitors.compare(report.attempt, fingerprints_of(report))
        return found + self._monitors.saved(shards_of(report))

    def progress_event(self, attempt: Attempt, make: MakeEvent) -> Event | None:
        """How far an attempt has come; None: the core knows already."""
        now = self._progress
        further = now.step > attempt.step or now.blocked_seconds > attempt.blocked_seconds
        if now.attempt == attempt.number and further:
            return make(StepReached, run=attempt.run, attempt=now.attempt, **self.fields(now))
        return None

    def beyond(self, attempt: Attempt) -> dict[str, Any] | None:
        """Fields of StepReached where an attempt is at or past its milestone; else None."""
        now = self._progress
        if now.attempt != attempt.number or now.step < attempt.milestone:
            return None
        return self.fields(now)

    def fields(self, progress: Progress) -> dict[str, Any]:
        """Fields of StepReached besides the run and the attempt: the core learns them now."""
        fields = {
            "step": progress.step,
            "at": dt.datetime.fromtimestamp(progress.time, dt.UTC),
            "blocked_seconds": progress.blocked_seconds,
            "first_step": progress.first_step,
        }
        pace = self._monitors.pace
        if _longer(pace, self._told):
            self._told = pace
            fields["pace"] = pace
        learned = self._monitors.learned
        if (learned.rises, learned.replicas) != self._told_learned:
            self._told_learned = learned.rises, learned.replicas
            fields["learned"] = learned.text()
        return fields

    def expect(self, announced: ChangeAnnounced) -> None:
        """A script announced a change: for ranks that report, their samples say so themselves."""
        self._monitors.expect(announced.attempt, announced.step, announced.until_step)

    def note(self, sample: Sample) -> Progress:
        """Remember a step of a rank; the progress of its attempt with it.

        Saves block all ranks alike: their seconds are those of one rank, the lowest that reports.
        """
        before = self._progress
        if before.attempt != sample.attempt:
            before, self._speaker = Progress(sample.attempt), sample.rank
        self._speaker = min(self._speaker, sample.rank)
        blocked = before.blocked_seconds
        if sample.rank == self._speaker:
            blocked += sample.blocked_seconds
        step, time = max((before.step, before.time), (sample.step, sample.time))
        now = Progress(sample.attempt, step, time, blocked, before.first_step)
        self._progress = now.begun_at(sample.step)
        return self._progress

    def heartbeat(
        self, worker: str, heartbeat: Heartbeat, monotonic: float, *, late: bool = False
    ) -> None:
        """Remember the newest heartbeat of an agent, heard at `monotonic` seconds.

        Its ranks' steps are progress too: ranks that draw batches need not report. A `late` one
        says nothing of now: its ranks count as out of contact.
        """
        if late:
            self._heartbeats.pop(worker, None)
        else:
            self._heartbeats[worker] = _Heard(monotonic, heartbeat.attempt, _beats_of(heartbeat))
        now = self._progress
        furthest = max((beat.step for beat in heartbeat.beats), default=0)
        if heartbeat.attempt == now.attempt and furthest <= now.step:
            return
        for beat in heartbeat.beats:
            before = now if heartbeat.attempt == now.attempt else Progress(heartbeat.attempt)
            if heartbeat.attempt >= now.attempt and beat.step > before.step:
                now = dataclasses.replace(before, step=beat.step, time=beat.beat)
                now = now.begun_at(beat.first_step)
        self._progress = now

    def seen(self, monotonic: float) -> tuple[RanksSeen, ...]:
        """The ranks in the newest heartbeats of agents in contact."""
        return tuple(
            RanksSeen(
                worker=worker,
                attempt=heard.attempt,
                ranks=tuple(beat.rank for beat in heard.beats),
                dead=tuple(beat.rank for beat in heard.beats if not beat.alive),
                moved=tuple(b.rank for b in heard.beats if b.alive and b.moved and not b.printed),
            )
            for worker, heard in self._heartbeats.items()
            if monotonic - heard.at <= STALE_HEARTBEAT_SECONDS
        )

    def joined(self, attempt: Attempt, monotonic: float) -> Mapping[str, tuple[int, ...]]:
        """The ranks of an attempt that are past `babysit.init()` by their heartbeats, by worker.

        A script that does not report has the phase of its start, or beats read from its output.
        """
        found = dict[str, tuple[int, ...]]()
        for worker, beats in self._in_contact(attempt, monotonic).items():
            there = [each for each in beats if each.alive and not each.printed]
            if ranks := tuple(each.rank for each in there if each.phase != Phase.STARTING):
                found[worker] = ranks
        return found

    def _in_contact(self, attempt: Attempt, monotonic: float) -> dict[str, list[Beat]]:
        """The beats of an attempt by worker, of agents in contact."""
        return {
            seat.worker: heard.beats
            for seat in attempt.seats
            if (heard := self._heartbeats.get(seat.worker)) is not None
            and monotonic - heard.at <= STALE_HEARTBEAT_SECONDS
            and heard.attempt == attempt.number
        }

    def first_step(self, attempt: int) -> int:
        """The first step that a rank ended in an attempt; 0: not known."""
        return self._progress.first_step if self._progress.attempt == attempt else 0

    def tick(self, attempt: Attempt, now: dt.datetime, monotonic: float) -> list[Finding]:
        """Findings of hangs, stragglers and slowdowns, by the heartbeats of agents in contact.

        `monotonic` is the time in which the server listened: neither a jump of the wall clock nor
        a server that was behind counts as silence.
        """
        heard = self._in_contact(attempt, monotonic).values()
        beats = [beat for each in heard for beat in each]
        nodes = {rank: seat.node for seat in attempt.seats for rank in seat.ranks}
        return self._monitors.tick(monotonic, beats, wall=now.timestamp(), nodes=nodes)

    @property
    def moved_again(self) -> bool:
        """True if at the last tick ranks that had been found silent moved again."""
        return self._monitors.moved_again


_NEWS_FACTOR = 1.2
"""A pause that is longer than the known one by this factor is worth an entry in the journal."""


def _longer(pace: Pace, known: Pace) -> bool:
    return any(seconds > _NEWS_FACTOR * getattr(known, name) for name, seconds in pace)
