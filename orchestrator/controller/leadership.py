"""One lead: everything that exists only while this server leads.

The problem: a server may lose the lead at any moment and gain it again at once. Whatever a new
lead finds of an old one (agents' links, commands, an outbox, a state) would be wrong.

The design: each lead builds its parts anew and drops them all at its end, so nothing has to be
cleared. The parts know each other in one direction only::

    consumer -> dispatcher -> queue        loops -> queue
    consumer -> live state                 loops, dispatcher -> live state

What happens outside (a worker that is gone, a timer) enters by the queue like everything else.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable

import structlog

from jobs.clock import Clock
from orchestrator.alerts.port import CountedNotifier
from orchestrator.clusters.port import AgentAccess, Cluster
from orchestrator.controller.background_loops import BackgroundLoops, cancel
from orchestrator.controller.database_trouble import DatabaseTrouble
from orchestrator.controller.dispatcher import OutboxDispatcher
from orchestrator.controller.event_factory import EventFactory
from orchestrator.controller.live_state import LiveState
from orchestrator.controller.queue_consumer import QueueConsumer
from orchestrator.controller.turn_queue import TurnQueue
from orchestrator.core.messages.events import LeadershipBegan, WorkerRegained
from orchestrator.core.model.checking import CheckPolicy
from orchestrator.database.port import Store
from orchestrator.errors import ConflictError, NotFoundError

_log = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """The world outside, as every lead of one controller sees it."""

    store: Store
    cluster: Cluster
    clock: Clock
    notifier: CountedNotifier
    events: EventFactory
    agent_access: Callable[[str, str], AgentAccess]
    """Makes an agent's address and token of the server from the ids of its run and its worker."""
    set_aside: Counter[str]
    """Events that were set aside, by kind; counted over all leads."""
    database: DatabaseTrouble
    """Why a transaction waits for the database, if one does."""
    checks: CheckPolicy | None = None
    """As this server has it set; None: as the leader before had it."""


class Leadership:
    """The parts of one lead: state, queue, consumer, dispatcher and loops.

    Attributes:
        epoch: Guards every write of this lead.
        live: What is known.
        queue: Where every change begins.
        dispatcher: Carries out what is stored.
        served: Ends when the lead does. Known after `begin`.
        failed: The first background loop that failed, if one ever does: no lead is whole without
            it. Known after `begin`.
    """

    served: asyncio.Task[None]
    failed: asyncio.Future[None]

    def __init__(self, ports: Ports, epoch: int, *, worker_lost_seconds: float) -> None:
        self.epoch = epoch
        self.live = LiveState(
            ports.store, ports.clock, ports.events, ports.set_aside, ports.database
        )
        self.queue = TurnQueue(ports.events)
        self._checks = ports.checks
        self.dispatcher = OutboxDispatcher(
            ports.cluster,
            ports.notifier,
            ports.clock,
            live=self.live,
            queue=self.queue,
            agent_access=ports.agent_access,
        )
        self._consumer = QueueConsumer(
            ports.store,
            ports.clock,
            queue=self.queue,
            live=self.live,
            dispatcher=self.dispatcher,
            epoch=epoch,
        )
        self._background = BackgroundLoops(
            self.queue,
            self.live,
            self.dispatcher.receipts,
            ports.cluster,
            ports.clock,
            worker_lost_seconds=worker_lost_seconds,
        )
        self._tasks: list[asyncio.Task[None]] = []
        self._regaining: dict[str, asyncio.Task[None]] = {}
        """Reports of workers that were lost and are heard of again."""

    async def begin(self) -> None:
        """Load what is not over, take up the outbox of the leader before, and start.

        Raises DatabaseUnavailableError; then nothing has started.
        """
        snapshot = await self.live.load()
        _log.info("leading", epoch=self.epoch, runs=len(self.live.state.runs))
        self.dispatcher.dispatch(snapshot.outbox)
        self.served = asyncio.create_task(self._consumer.run())
        self.failed = asyncio.get_running_loop().create_future()
        # First of all: what agents and timers lead to must not come before it.
        began = asyncio.create_task(self._began())
        self._tasks = [began, *map(asyncio.create_task, self._background.loops())]
        for task in self._tasks:
            task.add_done_callback(self._loop_ended)

    async def _began(self) -> None:
        await self.queue.decide(LeadershipBegan, checks=self._checks)

    def _loop_ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or (error := task.exception()) is None:
            return
        _log.error("background loop failed; please report this", exc_info=error)
        if not self.failed.done():
            self.failed.set_result(None)

    def regained(self, worker: str) -> None:
        """Report, beside everything else, that a worker that was lost is heard of again.

        Its heartbeats say so until the core knows; one report is under way at a time.
        """
        if worker not in self._regaining:
            self._regaining[worker] = asyncio.create_task(self._regain(worker))

    async def _regain(self, worker: str) -> None:
        try:
            run = self.live.state.workers[worker].run
            with contextlib.suppress(ConflictError, NotFoundError):  # it is over meanwhile
                await self.queue.decide(WorkerRegained, run=run, worker=worker)
        finally:
            self._regaining.pop(worker, None)

    async def end(self) -> None:
        """Drop everything: what counts is in the database, and another server may lead now.

        A transaction under way is waited for: its caller must hear whether it was stored. It ends
        by itself even if the lead is lost, as the database refuses it. A cancellation of this call
        cancels the transaction.
        """
        _log.warning("no longer leading", epoch=self.epoch)
        self.queue.close()
        # Before the transaction ends: what a server does outside without the lead does harm.
        await cancel([*self._tasks, *self._regaining.values()])
        await self.dispatcher.stop()
        (outcome,) = await asyncio.gather(self.served, return_exceptions=True)
        if isinstance(outcome, Exception):
            _log.error("queue consumer failed; please report this", exc_info=outcome)
