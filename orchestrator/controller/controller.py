"""The controller.

Takes events, has the core decide, writes state, journal and outbox in one transaction, then acts.

One server leads; its epoch guards every write. Turns are taken one at a time. A turn that cannot
be written yet (the database is
away) is held until it can, and nothing is carried out or acknowledged before; a leader that was
deposed drops everything.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import structlog
from ulid import ULID

from jobs.clock import Clock
from jobs.events import Event, Heartbeat, Report
from monitors.types import Finding
from orchestrator.alerts.log import LogNotifier
from orchestrator.alerts.port import Notifier
from orchestrator.clusters.port import AgentAccess, Cluster
from orchestrator.controller.background_loops import BackgroundLoops, cancel
from orchestrator.controller.dispatcher import AgentLink, OutboxDispatcher
from orchestrator.controller.leader_election import ControllerSettings, LeaderElector
from orchestrator.controller.live_state import LiveState
from orchestrator.controller.report_batcher import ReportBatcher, samples_of
from orchestrator.controller.sample_pipeline import RunSamplePipeline
from orchestrator.controller.transaction import Events, TransactionRecord, commit_when_possible
from orchestrator.controller.turn_queue import TurnQueue
from orchestrator.core.messages.events import (
    FindingRaised,
    IncidentChanged,
    RunSubmitted,
    SchedulingPassDue,
    WorkerLost,
    WorkerRegained,
)
from orchestrator.core.messages.instructions import Instruction
from orchestrator.core.model.state import State
from orchestrator.core.model.states import WorkerState
from orchestrator.database.port import Batch, Store, WorkerSamples
from orchestrator.errors import (
    ConflictError,
    InternalError,
    InvalidError,
    LeadershipLostError,
    NotFoundError,
    NotLeaderError,
)

T = TypeVar("T")
_log = structlog.get_logger(__name__)


def fresh_id() -> str:
    """An id that nobody has had before; ids sort by time.

    Who sets `Controller.new_id` to something that repeats can have a story told again.
    """
    return str(ULID())


class Controller:
    """One control plane. Implements what the API and the agent gateway need."""

    def __init__(
        self,
        store: Store,
        cluster: Cluster,
        clock: Clock,
        *,
        settings: ControllerSettings,
        agent_access: Callable[[str, str], AgentAccess],
        notifier: Notifier | None = None,
    ) -> None:
        self.store, self.cluster, self.clock = store, cluster, clock
        self.new_id: Callable[[], str] = fresh_id
        self._live = LiveState(store, clock)
        self._election = LeaderElector(store, clock, settings)
        self._loops = BackgroundLoops(
            self, cluster, clock, worker_lost_seconds=settings.worker_lost_seconds
        )
        self._turns = TurnQueue(
            clock,
            may_begin=self._require_lead,
            wanted=lambda: self.is_leader and self.state.pass_wanted is not None,
            look=self._look,
        )
        self._changing_lead = asyncio.Lock()
        self._carried: list[str] = []
        self._reports = ReportBatcher(
            alone=self._take_report,
            together=lambda events, last: self._transact(
                self._live.after_news(events, self._event), sequences=last
            ),
            last_sequence=lambda worker: (
                self.last_sequence(worker) if worker in self.state.workers else None
            ),
        )
        self._tasks, self._leading = list[asyncio.Task[None]](), list[asyncio.Task[None]]()
        self._dispatcher = OutboxDispatcher(
            cluster,
            notifier or LogNotifier(),
            clock,
            agent_access=agent_access,
            worker_gone=self.worker_gone,
            done=self._carried.append,
        )
        self.notices: Mapping[tuple[str, str], int] = self._dispatcher.notices
        self.ignored_fields: Mapping[str, str] = self._dispatcher.ignored_fields

    @property
    def state(self) -> State:
        """What the core knows."""
        return self._live.state

    # leading

    @property
    def is_leader(self) -> bool:
        """Whether this controller decides."""
        return self._election.held

    async def start(self) -> None:
        """Begin to seek the lead. Returns at once."""
        self._tasks = [asyncio.create_task(self._election.seek(self._begin, self._step_down))]

    async def stop(self) -> None:
        """Stop deciding and give the lease up. Runs go on."""
        await cancel(self._tasks)
        if self.is_leader:
            await self._step_down()
            await self._election.release()
        await self._turns.stop()

    async def _begin(self) -> None:
        """Load what is not over, finish what was left, and start deciding."""
        async with self._changing_lead:
            snapshot = await self._live.load()
            self._election.held = True
            _log.info("leading", epoch=self._election.epoch, runs=len(self.state.runs))
            self._dispatcher.start(self.state, snapshot.outbox)
            self._leading = [asyncio.create_task(round_) for round_ in self._loops.rounds()]
            self._leading.append(asyncio.create_task(self._first_pass()))

    async def _first_pass(self) -> None:
        """Whoever led before may have gone before the scheduler could look."""
        await self.decide(SchedulingPassDue)

    async def _step_down(self) -> None:
        """Drop everything: what counts is in the database, and another may lead now."""
        async with self._changing_lead:
            if not self.is_leader:
                return
            _log.warning("no longer leading", epoch=self._election.epoch)
            self._election.held = False
            await cancel(self._leading)
            await self._dispatcher.stop()
            self._live.drop()
            self._carried.clear()

    # what comes in

    async def submit(self, event: Event) -> list[Instruction]:
        """Decide on one event of a person or a program, and store the decision.

        Raises ConflictError, NotFoundError, InvalidError or InternalError (nothing changed), or
        NotLeaderError.
        """
        self._require_lead()
        if isinstance(event, IncidentChanged):
            await self._recall(event.incident)
        elif not isinstance(event, RunSubmitted):
            await self._check_known(getattr(event, "run", None))
        return await self._turns.run(lambda: self._decide_on(event))

    async def _check_known(self, run: str | None) -> None:
        """A run that is over has left the state: say so, rather than that it is not known."""
        if run is not None and run not in self.state.runs:
            over = await self.store.run(run)
            raise ConflictError(f"{over.name} is over: it {over.state} ({over.reason})")

    async def _recall(self, incident: str) -> None:
        """Incidents are judged in the morning, when they have long left the state."""
        if incident not in self.state.incidents:
            self.state.recall(await self.store.incident(incident))

    async def report(self, worker: str, report: Report) -> None:
        """Take one numbered report of an agent, once; when it returns, that is stored."""
        self._require_lead()
        await self._reports.store(worker, report, self._turns.run)

    async def _take_report(self, worker: str, report: Report) -> list[Instruction]:
        known = self.state.workers.get(worker)
        if known is None or report.sequence <= self.last_sequence(worker):
            return []
        return await self._transact(
            self._live.events_of_report(known.run, report, self._event),
            samples=samples_of(known.run, worker, report),
            sequences={worker: report.sequence},
        )

    def last_sequence(self, worker: str) -> int:
        """Sequence of the last report that is stored; 0: none."""
        return self._live.sequences.get(worker, 0)

    async def heartbeat(self, worker: str, heartbeat: Heartbeat) -> None:
        """Take a sign of life; not stored. NotLeaderError: the agent must look for who leads."""
        self._require_lead()
        if not self._dispatcher.attached(worker):  # lost with the lead: no command would reach it
            raise NotLeaderError("this server has led anew since: connect again")
        known = self.state.workers.get(worker)
        if known is not None:
            self._live.heard_of(worker)
            self.observer(known.run).heartbeat(worker, heartbeat, self.clock.monotonic())
            if known.state is WorkerState.LOST:
                await self.decide(WorkerRegained, run=known.run, worker=worker)

    async def attach(self, worker: str, run: str, link: AgentLink) -> int:
        """An agent connects; what waits for it is sent. The last stored sequence.

        Raises NotLeaderError, or NotFoundError when the worker's time is over: it must end its
        ranks and leave.
        """
        self._require_lead()
        known = self.state.workers.get(worker)
        if known is None or known.run != run or known.state is WorkerState.ENDED:
            raise NotFoundError(f"worker {worker} of run {run} is not expected any more")
        self._live.heard_of(worker)
        self._dispatcher.attach(worker, link)
        return self.last_sequence(worker)

    def detach(self, worker: str, link: AgentLink) -> None:
        """An agent's connection is gone. That alone means nothing."""
        self._dispatcher.detach(worker, link)

    def acknowledged(self, worker: str, command: str) -> None:
        """An agent has taken a command."""
        self._dispatcher.acknowledged(worker, command)

    async def worker_gone(self, worker: str, run: str, reason: str) -> None:
        """The cluster says that nothing of a worker is left."""
        await self.decide(WorkerLost, run=run, worker=worker, confirmed=True, reason=reason)

    async def decide(self, kind: type[Event], **fields: object) -> bool:
        """An event of our own; False when the core failed over it, which is logged.

        Between leaders it is dropped: the next one asks the cluster itself.
        """
        event = self._event(kind, **fields)
        try:
            with contextlib.suppress(NotLeaderError):
                await self._turns.run(lambda: self._decide_on(event))
        except InternalError:
            return False
        return True

    async def _decide_on(self, event: Event) -> list[Instruction]:
        """An event that no agent reported, in a turn after the news: a refusal changes nothing."""
        if news := list(self._live.progress_events(event, self._event)):
            with contextlib.suppress(InternalError):  # which is logged, and no reason not to act
                await self._transact(news)
        return await self._transact([event])

    # turns

    async def _look(self) -> None:
        """A scheduling pass."""
        cause = self.state.pass_wanted
        with contextlib.suppress(InternalError, LeadershipLostError):  # which is logged
            await self._transact([self._event(SchedulingPassDue, cause=cause)])

    async def _transact(
        self,
        events: Iterable[Event],
        *,
        samples: WorkerSamples | None = None,
        sequences: Mapping[str, int] | None = None,
    ) -> list[Instruction]:
        """Handle events one after the other, write them in one transaction, then carry it out."""
        pending = Events(events)
        while True:
            record = TransactionRecord()
            try:
                record.play(self.state, pending, self.clock)
                if record or samples or sequences:
                    await self._write(record.batch(self.state, samples, sequences or {}))
                break
            except (ConflictError, NotFoundError, InvalidError, LeadershipLostError):
                raise  # a request that cannot be met, and has changed nothing; or another leads now
            except Exception as error:
                await self._recover_from_defect(samples)
                # An agent sends its report until it is taken: without the event that fails; else
                # without any; else without the samples. Several together are taken apart first.
                if len(sequences or ()) != 1 or not (pending or samples):
                    raise InternalError(
                        f"{error!r}: a defect, in the server's log; nothing was changed"
                    ) from error
                if not pending.leave_out():
                    samples = samples if pending else None
                    pending = Events(())
        self._live.sequences.update(sequences or {})
        self._dispatcher.dispatch(record.outbox)
        for worker in self._live.forget():
            self._dispatcher.forget(worker)
        return record.instructions

    async def _write(self, batch: Batch) -> None:
        epoch = self._election.epoch
        try:
            await commit_when_possible(self.store, batch, epoch, self.clock)
        except LeadershipLostError:
            if epoch == self._election.epoch:  # else we lead again already
                self._leading.append(asyncio.create_task(self._step_down()))
            raise

    async def _recover_from_defect(self, samples: WorkerSamples | None) -> None:
        """The core failed: a defect of ours. Go back to what is stored, and say so loudly."""
        _log.exception("the core failed: what it failed over is left out; please report this")
        wanted = self.state.pass_wanted  # by a turn before this one; not stored
        await self._live.load_when_possible(samples)
        self.state.pass_wanted = wanted
        self._dispatcher.go_by(self.state)

    # what the rounds need

    def observer(self, run: str) -> RunSamplePipeline:
        """What watches one run."""
        return self._live.observer(run)

    async def raise_findings(self, run: str, attempt: int, findings: Sequence[Finding]) -> None:
        """Have findings decided on, one after the other."""
        for finding in findings:
            await self.decide(
                FindingRaised,
                run=run,
                attempt=attempt,
                finding=finding,
                actor=f"monitor:{finding.kind}",
            )

    def silence(self, worker: str) -> float:
        """Seconds since a worker was last heard of."""
        return self._live.silence(worker)

    async def note_carried(self) -> None:
        """Mark what was carried out in the outbox."""
        if self._carried:
            async with self._turns.exclusive():  # what made it needless must be stored first
                ids = self._carried.copy()
                await self.store.carried_out(ids, epoch=self._election.epoch)
                del self._carried[: len(ids)]

    # small things

    def _require_lead(self) -> None:
        if not self.is_leader:
            raise NotLeaderError("this server is not the leader (yet): try again")

    def _event(self, kind: type[Event], **fields: object) -> Event:
        given = {"id": self.new_id(), "at": self.clock.now(), "actor": "controller", **fields}
        return kind.model_validate(given)
