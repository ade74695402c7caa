"""The rounds a leader makes: timers, lost contact, hangs, the cluster's news and its inventory."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Protocol

import structlog

from jobs.clock import Clock
from jobs.events import Event
from monitors.types import Finding
from orchestrator.clusters.errors import ClusterError
from orchestrator.clusters.port import Cluster
from orchestrator.controller.sample_pipeline import RunSamplePipeline
from orchestrator.core.messages.events import (
    CapacityChanged,
    MaintenanceDue,
    NodeInfo,
    TimerFired,
    WorkerLost,
)
from orchestrator.core.model.entities import Attempt
from orchestrator.core.model.state import Deadline, State
from orchestrator.core.model.states import LIVE_ATTEMPT_STATES, WorkerState
from orchestrator.errors import DatabaseUnavailableError, LeadershipLostError, NotLeaderError

_log = structlog.get_logger(__name__)
TICK_SECONDS = 0.5
INVENTORY_SECONDS = 10.0
CLUSTER_RETRY_SECONDS = 1.0


class Plane(Protocol):
    """The controller, as its rounds see it."""

    @property
    def state(self) -> State:
        """What the core knows."""

    async def decide(self, kind: type[Event], **fields: object) -> bool:
        """Make an event of our own and have it decided; False when the core failed over it."""

    async def raise_findings(self, run: str, attempt: int, findings: Sequence[Finding]) -> None:
        """Have findings decided on."""

    async def note_carried(self) -> None:
        """Mark what was carried out in the outbox."""

    def observer(self, run: str) -> RunSamplePipeline:
        """What watches one run."""

    def silence(self, worker: str) -> float:
        """Seconds since a worker was last heard of."""


class BackgroundLoops:
    """Makes the rounds, each until cancelled."""

    def __init__(
        self, plane: Plane, cluster: Cluster, clock: Clock, *, worker_lost_seconds: float
    ) -> None:
        self._plane, self._cluster, self._clock = plane, cluster, clock
        self._worker_lost_seconds = worker_lost_seconds
        self._defective: set[Deadline] = set()
        """Timers the core fails over: once is enough to know."""

    def rounds(self) -> list[Coroutine[None, None, None]]:
        """The rounds, to be run side by side."""
        return [self._watch_cluster(), self._tick(), self._take_inventory()]

    async def _watch_cluster(self) -> None:
        """A cluster that does not answer is asked again; one that is closed has nothing to say."""
        while not await _guarded(self._hear_of_ends):
            await self._clock.sleep(CLUSTER_RETRY_SECONDS)

    async def _hear_of_ends(self) -> None:
        async for gone in self._cluster.changes():
            await self._plane.decide(
                WorkerLost, run=gone.run, worker=gone.worker, confirmed=True, reason=gone.reason
            )

    async def _take_inventory(self) -> None:
        known: tuple[NodeInfo, ...] = ()

        async def look() -> None:
            nonlocal known
            nodes = tuple(await self._cluster.nodes())
            if nodes != known and await self._plane.decide(CapacityChanged, nodes=nodes):
                known = nodes

        while True:
            well = await _guarded(look)
            await self._clock.sleep(INVENTORY_SECONDS if well else CLUSTER_RETRY_SECONDS)

    async def _tick(self) -> None:
        """Timers, lost contact, hangs, and the outbox's receipts."""
        while True:
            for check in (
                self._fire_timers,
                self._begin_maintenance,
                self._check_contact,
                self._check_hangs,
                self._plane.note_carried,
            ):
                await _guarded(check)
            await self._clock.sleep(self._until_next_tick())

    def _until_next_tick(self) -> float:
        timer = self._plane.state.next_timer()
        if timer is None or timer in self._defective:
            return TICK_SECONDS
        return min(TICK_SECONDS, max(0.01, (timer.due - self._clock.now()).total_seconds()))

    async def _fire_timers(self) -> None:
        for timer in self._plane.state.due_timers(self._clock.now()):
            if timer not in self._defective and not await self._plane.decide(
                TimerFired, **timer._asdict()
            ):
                self._defective.add(timer)

    async def _begin_maintenance(self) -> None:
        for node in self._plane.state.due_maintenance(self._clock.now()):
            await self._plane.decide(MaintenanceDue, node=node)

    async def _check_contact(self) -> None:
        for worker in list(self._plane.state.workers.values()):
            silence = self._plane.silence(worker.id)
            if worker.state is WorkerState.READY and silence > self._worker_lost_seconds:
                reason = f"no sign of life for {silence:.0f} s"
                await self._plane.decide(
                    WorkerLost, run=worker.run, worker=worker.id, confirmed=False, reason=reason
                )

    async def _check_hangs(self) -> None:
        for run in list(self._plane.state.live_runs()):
            attempt = self._plane.state.attempts.get(run.id)
            if (
                attempt is None
                or attempt.state not in LIVE_ATTEMPT_STATES
                or run.decision is not None
                or not run.instrumented  # a script that does not report cannot be judged
            ):
                continue
            await _guarded(functools.partial(self._check_hang, run.id, attempt))

    async def _check_hang(self, run: str, attempt: Attempt) -> None:
        now = self._clock.now()
        findings = self._plane.observer(run).tick(attempt, now, self._clock.monotonic())
        await self._plane.raise_findings(run, attempt.number, findings)


async def _guarded(check: Callable[[], Awaitable[None]]) -> bool:
    """Whether a check went well. Else it is logged, and tried again at its next time.

    One bad run must not blind the others, and a round that ended would leave all alone.
    """
    try:
        await check()
    except (ClusterError, DatabaseUnavailableError, LeadershipLostError, NotLeaderError) as error:
        _log.warning("a check failed", check=_name(check), error=str(error))
    except Exception:  # noqa: BLE001 (a defect of ours: said loudly, and no reason to stop looking)
        _log.exception("a check failed: please report this", check=_name(check))
    else:
        return True
    return False


async def cancel(tasks: list[asyncio.Task[None]]) -> None:
    """Cancel tasks (but for the one that asks) and wait until they have ended."""
    current = asyncio.current_task()
    others = [task for task in tasks if task is not current]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    tasks.clear()


def _name(check: object) -> str:
    """Of a method, perhaps with some of its arguments: without addresses, for the log."""
    return str(getattr(getattr(check, "func", check), "__name__", check))
