"""What a leading controller goes by: what is stored and not over, and what samples have told."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import structlog

from jobs.clock import Clock
from jobs.events import Event, Report
from orchestrator.controller.sample_pipeline import MakeEvent, RunSamplePipeline, may_end
from orchestrator.core.model.entities import Run, Worker
from orchestrator.core.model.state import State
from orchestrator.database.port import Snapshot, Store, WorkerSamples
from orchestrator.errors import DatabaseUnavailableError

_log = structlog.get_logger(__name__)
SAMPLES_TO_REBUILD = 1000
LOAD_RETRY_SECONDS = 0.5


class LiveState:
    """The core's state, the agents' sequences and silence, and an observer for each run."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self.state = State()
        self.sequences: dict[str, int] = {}
        """Worker → sequence of its last report that is stored."""
        self._store, self._clock = store, clock
        self._observers: dict[str, RunSamplePipeline] = {}
        self._contact: dict[str, float] = {}

    async def load(self) -> Snapshot:
        """Go by what is stored, and by nothing else.

        Raises DatabaseUnavailableError.
        """
        snapshot = await self._store.load()
        self.state = State(
            [
                *snapshot.runs,
                *snapshot.attempts,
                *snapshot.workers,
                *snapshot.nodes,
                *snapshot.checkpoints,
                *snapshot.incidents,
                *snapshot.queues,
                snapshot.fleet,
            ]
        )
        self.sequences = dict(snapshot.sequences)
        self._observers = {}
        self._contact = dict.fromkeys(self.state.workers, self._clock.monotonic())
        for run in self.state.live_runs():
            if (attempt := self.state.attempts.get(run.id)) is not None:
                tail = await self._store.sample_tail(run.id, count=SAMPLES_TO_REBUILD)
                self.observer(run.id).rebuild(tail, attempt)
        return snapshot

    async def load_when_possible(self, samples: WorkerSamples | None) -> None:
        """Load, however long it takes the database to come back.

        `samples` are about to be stored: the new monitors must have seen them too.
        """
        while True:
            try:
                await self.load()
            except DatabaseUnavailableError:
                await self._clock.sleep(LOAD_RETRY_SECONDS)
            else:
                break
        if samples is not None and samples.run in self.state.runs:
            try:
                self.observer(samples.run).take_again(samples.attempt, samples.ranks)
            except Exception:  # noqa: BLE001 (it may be these samples that the monitors fail over)
                _log.exception("samples that no monitor has seen", run=samples.run)

    def progress_events(self, event: Event, make: MakeEvent) -> Iterator[Event]:
        """How far the attempts have come that an event may end, as the core must know first."""
        for attempt in may_end(event, self.state):
            yield from self.observer(attempt.run).progress_events(attempt, make)

    def events_of_report(self, run: str, report: Report, make: MakeEvent) -> Iterator[Event]:
        """What a report means to the core: its samples, then its events, each after the news."""
        told = self.observer(run).events(run, report, lambda: self.state, make)
        return self.after_news(itertools.chain(told, report.events), make)

    def after_news(self, events: Iterable[Event], make: MakeEvent) -> Iterator[Event]:
        """Each of the events after the news that bear on it."""
        for event in events:
            yield from self.progress_events(event, make)
            yield event

    def drop(self) -> None:
        """Know nothing: another may lead now."""
        self.state = State()

    def forget(self) -> list[str]:
        """Forget what is over; the workers among it."""
        over = self.state.forget()
        ended = [entity.id for entity in over if isinstance(entity, Worker)]
        for worker in ended:
            self._contact.pop(worker, None)
            self.sequences.pop(worker, None)
        for entity in over:
            run = entity.id if isinstance(entity, Run) else getattr(entity, "run", "")
            if run not in self.state.runs:
                self._observers.pop(run, None)
        return ended

    def observer(self, run: str) -> RunSamplePipeline:
        """What watches one run."""
        if run not in self._observers:
            self._observers[run] = RunSamplePipeline(self.state.runs[run].spec)
        return self._observers[run]

    def heard_of(self, worker: str) -> None:
        """A sign of life."""
        self._contact[worker] = self._clock.monotonic()

    def silence(self, worker: str) -> float:
        """Seconds since a worker was last heard of; the first look at it counts as a word."""
        now = self._clock.monotonic()
        return now - self._contact.setdefault(worker, now)
