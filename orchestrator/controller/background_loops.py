"""The background loops of a leader: timers, lost contact, hangs, ends of workers, inventory.

Each loop looks at the live state and the cluster, and puts events into the queue. A loop never
ends by an error, and an error in one check does not keep the others from running.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Coroutine

import structlog

from jobs.clock import Clock
from orchestrator.clusters.port import Cluster
from orchestrator.controller.cluster_loops import ClusterLoops, guarded
from orchestrator.controller.live_state import LiveState
from orchestrator.controller.reconciliation import Comparisons
from orchestrator.controller.sample_buffer import SAMPLES_SECONDS
from orchestrator.controller.steady_timers import SteadyTimers
from orchestrator.controller.turn_queue import TurnQueue
from orchestrator.core.messages.events import (
    FindingRaised,
    MaintenanceDue,
    ProgressSeen,
    SchedulingPassDue,
    StepReached,
    TimerFired,
    WorkerLost,
)
from orchestrator.core.messages.gang_events import GangReady
from orchestrator.core.model.derived import is_reporting
from orchestrator.core.model.entities import Attempt, Worker
from orchestrator.core.model.state import Deadline
from orchestrator.core.model.states import LIVE_ATTEMPT_STATES, WorkerState
from orchestrator.core.model.vocabulary import Timer

_log = structlog.get_logger(__name__)
TICK_SECONDS = 0.5
ASK_SECONDS = 30.0
"""Seconds between two questions to the cluster about an agent out of contact."""
STOPS_LONG = 60.0
"""Seconds after the order to stop an agent until the cluster is asked about it; ours."""
PASS_SECONDS = 60.0
"""Seconds between two scheduling passes that nothing has asked for."""


class BackgroundLoops:
    """The loops of a leader. They read the live state, and change it by the queue only."""

    def __init__(
        self,
        queue: TurnQueue,
        live: LiveState,
        receipts: list[str],
        cluster: Cluster,
        clock: Clock,
        *,
        worker_lost_seconds: float,
    ) -> None:
        self._queue, self._live, self._receipts = queue, live, receipts
        self._cluster, self._clock = cluster, clock
        self._of_cluster = ClusterLoops(queue, live, cluster, clock)
        self._comparisons = Comparisons(queue, live)
        self._worker_lost_seconds = worker_lost_seconds
        self._timers = SteadyTimers(clock)
        self._defective: set[Deadline] = set()
        """Timers over which the core failed: not tried again, or they would hold up the others."""

    def loops(self) -> list[Coroutine[None, None, None]]:
        """All loops, to be run side by side until cancelled."""
        return [
            self._passes(),
            self._live.attention.keep(),
            self._tick(),
            self._store_samples(),
            self._ask_about_lost(),
            *self._of_cluster.loops(),
        ]

    async def _passes(self) -> None:
        """A scheduling pass at the start, and one each minute.

        The leader before may have gone before it ran one that was due. Later, passes follow the
        changes that want them; the periodic one takes up what time alone has changed (costs,
        estimates), and stands behind a change that has wrongly wanted none.
        """
        while True:
            await guarded(self._pass)
            await self._clock.sleep(PASS_SECONDS)

    async def _pass(self) -> None:
        await self._queue.decide(SchedulingPassDue)

    async def _ask_about_lost(self) -> None:
        """Ask the cluster again about agents whose end it may have told nobody, or told in vain.

        A node that was cut off from the cluster too comes back without anybody being told. Of an
        agent that was stopped, the end may be known to a database that a backup has replaced.
        """
        while True:
            await self._clock.sleep(ASK_SECONDS)
            for worker in list(self._live.state.workers.values()):
                if worker.state is WorkerState.LOST or self._stops_for_long(worker):
                    await guarded(functools.partial(self._ask_about, worker))

    def _stops_for_long(self, worker: Worker) -> bool:
        since = worker.stopping_at
        if worker.state is not WorkerState.STOPPING or since is None:
            return False
        return (self._clock.now() - since).total_seconds() > STOPS_LONG

    async def _ask_about(self, worker: Worker) -> None:
        if await self._cluster.alive(worker.id, worker.run) is False:
            reason = "no process of it is alive"
            await self._queue.decide(
                WorkerLost, run=worker.run, worker=worker.id, confirmed=True, reason=reason
            )

    async def _tick(self) -> None:
        """Check timers, maintenance, contact, hangs and receipts, twice a second or more often."""
        while True:
            for check in (
                self._compare_attempts,
                self._fire_timers,
                self._begin_maintenance,
                self._check_contact,
                self._check_hangs,
                self._store_receipts,
            ):
                await guarded(check)
            await self._clock.sleep(self._until_next_tick())

    def _until_next_tick(self) -> float:
        timer = self._live.state.next_timer()
        left = None if timer in self._defective else self._timers.until_next(self._live.state)
        return TICK_SECONDS if left is None else min(TICK_SECONDS, max(0.01, left))

    async def _fire_timers(self) -> None:
        for timer in self._timers.due(self._live.state):
            if timer not in self._defective and not await self._queue.decide(
                TimerFired, **timer._asdict(), unheard=self._unheard(timer)
            ):
                self._defective.add(timer)

    def _unheard(self, timer: Deadline) -> bool:
        """True for the time-out of an agent that this leader has never heard of."""
        return timer.timer is Timer.CONTACT and not self._live.contact.ever_heard(timer.subject)

    async def _begin_maintenance(self) -> None:
        for node in self._live.state.due_maintenance(self._clock.now()):
            await self._queue.decide(MaintenanceDue, node=node)

    async def _check_contact(self) -> None:
        """Report agents that are silent although this server listened."""
        for worker in list(self._live.state.workers.values()):
            silence = self._live.contact.silence(worker.id)
            if worker.state is WorkerState.READY and silence > self._worker_lost_seconds:
                reason = f"no sign of life for {silence:.0f} s"
                await self._queue.decide(
                    WorkerLost, run=worker.run, worker=worker.id, confirmed=False, reason=reason
                )

    async def _check_hangs(self) -> None:
        for run in list(self._live.state.live_runs()):
            attempt = self._live.state.attempts.get(run.id)
            if (
                attempt is None
                or attempt.state not in LIVE_ATTEMPT_STATES
                or run.decision is not None
            ):
                continue
            if not is_reporting(run):
                await guarded(functools.partial(self._check_joined, run.id, attempt))
            await guarded(functools.partial(self._check_hang, run.id, attempt))

    async def _check_joined(self, run: str, attempt: Attempt) -> None:
        """Ranks whose heartbeats move report, also where the event that said so was unreadable."""
        joined = self._live.pipeline(run).joined(attempt, self._live.attention.now())
        if joined:
            await self._queue.decide(
                GangReady,
                run=run,
                attempt=attempt.number,
                workers=tuple(joined),
                ranks=tuple(rank for ranks in joined.values() for rank in ranks),
            )

    async def _check_hang(self, run: str, attempt: Attempt) -> None:
        pipeline = self._live.pipeline(run)
        listened = self._live.attention.now()
        for finding in pipeline.tick(attempt, self._clock.now(), listened):
            await self._queue.decide(
                FindingRaised,
                run=run,
                attempt=attempt.number,
                finding=finding,
                actor=f"monitor:{finding.kind}",
            )
        if pipeline.moved_again:
            await self._queue.decide(ProgressSeen, run=run, attempt=attempt.number)
        # Steps of ranks that draw batches and never report come with heartbeats only.
        if (reached := pipeline.beyond(attempt)) is not None:
            await self._queue.decide(StepReached, run=run, attempt=attempt.number, **reached)

    async def _compare_attempts(self) -> None:
        """Compare attempts that the database is not sure of, before their time is over."""
        for run in list(self._live.state.live_runs()):
            attempt = self._live.state.attempts.get(run.id)
            if attempt is not None and run.due(Timer.COMPARE) is not None:
                await guarded(functools.partial(self._comparisons.compare, run, attempt))

    async def _store_samples(self) -> None:
        while True:
            await self._clock.sleep(SAMPLES_SECONDS)
            if self._live.unstored:
                await guarded(self._queue.store_samples)

    async def _store_receipts(self) -> None:
        if ids := self._receipts.copy():
            await self._queue.store_receipts(ids)
            del self._receipts[: len(ids)]  # others may have come meanwhile


async def cancel(tasks: list[asyncio.Task[None]]) -> None:
    """Cancel tasks, wait until they have ended, and empty the list."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    tasks.clear()
