"""The live state of a leading controller: the core's state, agent contact and recent samples.

All of it is in memory, and all of it can be loaded again: from what is stored and not over, and
from the newest samples of each live run. Contact with agents is not stored; a new leader counts
the silence of each agent from the moment it loads.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Iterable, Sequence

import structlog

from jobs.clock import Clock
from jobs.events import ChangeAnnounced, Event, Heartbeat, Report
from monitors.types import Pace
from orchestrator.controller.attention import AgentContact, Attention
from orchestrator.controller.database_trouble import DatabaseTrouble
from orchestrator.controller.event_factory import EventFactory
from orchestrator.controller.live_numbers import LiveNumbers
from orchestrator.controller.sample_buffer import SampleBuffer
from orchestrator.controller.sample_events import SampleEvents
from orchestrator.controller.sample_pipeline import RunSamplePipeline, may_end
from orchestrator.core.messages.reconciliation_events import RanksSeen
from orchestrator.core.model.entities import Entity, Run, Worker
from orchestrator.core.model.state import State
from orchestrator.core.policy import usage_history
from orchestrator.database.port import Snapshot, Store, WorkerSamples
from orchestrator.errors import DatabaseUnavailableError

_log = structlog.get_logger(__name__)
SAMPLES_TO_REBUILD = 1000
"""Stored samples of rank 0 that are fed to the monitors of a run when it is loaded."""
LOAD_RETRY_SECONDS = 0.5


class LiveState:
    """The core's state, the sequences and silence of agents, and a pipeline for each run.

    Only the queue's consumer changes the state and the sequences; everybody else reads. `state` is
    another object after each load: read it again rather than keep it.

    Attributes:
        state: What the core knows.
        sequences: Worker to the sequence of its last report that is stored.
        events: Makes the events that are derived from samples.
        attention: The time in which this server could listen; silence counts on it.
        contact: When each agent was last heard of.
        set_aside: Events that were set aside since this server started, by kind.
        unstored: Reports that the monitors have seen, and that are not stored yet.
        database: Why a transaction waits for the database, if one does.
        numbers: The newest numbers of live runs, for metrics.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        events: EventFactory,
        set_aside: Counter[str] | None = None,
        database: DatabaseTrouble | None = None,
    ) -> None:
        self.state = State()
        self.set_aside: Counter[str] = Counter() if set_aside is None else set_aside
        self.sequences: dict[str, int] = {}
        self.events = events
        self.unstored = SampleBuffer()
        self._store, self._clock = store, clock
        self._pipelines: dict[str, RunSamplePipeline] = {}
        self.numbers = LiveNumbers()
        self.database = database or DatabaseTrouble()
        self.attention = Attention(clock)
        self.contact = AgentContact(self.attention, clock)
        self._paces: dict[tuple[str, str], Pace] = {}
        """The known paces while runs are loaded; otherwise empty."""

    async def load(self) -> Snapshot:
        """Replace everything known by what is stored.

        Raises DatabaseUnavailableError; then some of it may be replaced already.
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
        self._pipelines = {}
        self.contact.restart(list(self.state.workers))
        self._paces = usage_history.known_paces(self.state)
        live = [run.id for run in self.state.live_runs() if run.id in self.state.attempts]
        tails = await self._store.sample_tails(live, count=SAMPLES_TO_REBUILD)
        for run in live:
            self.pipeline(run).rebuild(tails.get(run, ()), self.state.attempts[run])
            self.numbers.rebuild(run, tails.get(run, ()))
        self._paces = {}
        return snapshot

    async def load_when_possible(self, samples: Sequence[WorkerSamples]) -> None:
        """Load, however long it takes the database to come back.

        `samples` have been played and are not stored yet: they are fed to the new monitors, which
        would miss them otherwise.
        """
        while True:
            try:
                await self.load()
            except DatabaseUnavailableError as error:
                _log.warning("loading the state failed, will retry", error=str(error))
                await self._clock.sleep(LOAD_RETRY_SECONDS)
            else:
                break
        for each in samples:
            if (run := self.state.runs.get(each.run)) is None:
                continue
            try:
                self.pipeline(run.id).take_again(each.attempt, each.ranks, run.attempt)
            except Exception:  # noqa: BLE001 (it may be these samples that the monitors fail over)
                _log.exception("monitors failed, samples left out", run=each.run)

    async def recall(self, incident: str) -> None:
        """Have an incident in the state that has left it: incidents are judged in the morning.

        Raises NotFoundError or DatabaseUnavailableError.
        """
        if incident not in self.state.incidents:
            self.state.recall(await self._store.incident(incident))

    async def recall_run(self, run: str) -> None:
        """Have a run that has ended in the state, with its checkpoints, for one request about them.

        Raises NotFoundError or DatabaseUnavailableError.
        """
        if run not in self.state.runs:
            over = await self._store.run(run)
            self.state.recall_run(over, await self._store.checkpoints(run))

    def last_sequence(self, worker: str) -> int:
        """Sequence of the last report of a worker that is stored; 0: none is."""
        return self.sequences.get(worker, 0)

    def progress_events(self, event: Event) -> list[Event]:
        """Progress that the core must know before an event that may end attempts; often none.

        An announced change of the loss is passed on to the monitors here.
        """
        if isinstance(event, ChangeAnnounced) and event.run in self.state.runs:
            self.pipeline(event.run).expect(event)
        found = (
            self.pipeline(attempt.run).progress_event(attempt, self.events.make)
            for attempt in may_end(event, self.state)
        )
        return [event for event in found if event is not None]

    def sample_events(self, run: str, worker: str, report: Report) -> SampleEvents:
        """The core's events in the samples of a report, to be asked for one at a time."""
        events = SampleEvents(run, self.pipeline(run), report, self.events.make)
        entity = self.state.workers.get(worker)
        self.numbers.take(run, "" if entity is None else entity.node, report)
        return events

    def kept(self, samples: WorkerSamples) -> WorkerSamples:
        """The samples that are to be stored; all of them, where the run is not known any more."""
        if samples.run not in self.state.runs and samples.run not in self._pipelines:
            return samples
        return self.pipeline(samples.run).kept.of(samples)

    def forget(self, before: Iterable[Entity] = ()) -> list[str]:
        """Forget what is over, after it was stored; the ids of the workers among it.

        `before` is what the state has forgotten already, between the events of one transaction.
        """
        over = [*before, *self.state.forget()]
        ended = [entity.id for entity in over if isinstance(entity, Worker)]
        for worker in ended:
            self.contact.forget(worker)
            self.sequences.pop(worker, None)
        for entity in over:
            run = entity.id if isinstance(entity, Run) else getattr(entity, "run", "")
            if run not in self.state.runs:
                self._pipelines.pop(run, None)
                self.numbers.forget(run)
        return ended

    def pipeline(self, run: str) -> RunSamplePipeline:
        """The pipeline of a run in the state, made when first asked for."""
        if run not in self._pipelines:
            entity = self.state.runs[run]
            known = self._paces or usage_history.known_paces(self.state)
            pace = known.get((entity.name, entity.spec.project))
            self._pipelines[run] = RunSamplePipeline(entity.spec, pace, entity.learned)
        return self._pipelines[run]

    def ranks_seen(self, run: str) -> tuple[RanksSeen, ...]:
        """The ranks of a run as the agents in contact describe them."""
        return self.pipeline(run).seen(self.attention.now())

    def seconds_until(self, due: dt.datetime) -> float:
        """Seconds from now to a deadline; negative: it has passed."""
        return (due - self._clock.now()).total_seconds()

    def heartbeat(self, worker: str, heartbeat: Heartbeat) -> None:
        """Take a sign of life of a worker in the state.

        A heartbeat that waited for this server to read it is a sign of life like any other; but
        its ranks are not looked at for hangs until the server has caught up.
        """
        self.contact.heartbeat(worker, heartbeat.time)
        self.pipeline(self.state.workers[worker].run).heartbeat(
            worker, heartbeat, self.attention.now(), late=self.contact.late(worker)
        )
