"""The loops of a leader that follow its cluster, and tell the cluster what the core has decided.

News of the cluster go into the queue. The decisions that concern it (cordons, runs that are over)
are repeated now and then as they stand: nothing has to be remembered between two leaders.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine

import structlog

from jobs.checks.results import CHECKS_RUN, LINK
from jobs.clock import Clock, wait_at_most
from orchestrator.clusters.errors import ClusterError
from orchestrator.clusters.port import (
    Change,
    Cluster,
    InventoryChanged,
    WorkerGone,
    WorkerLeaving,
    WorkerStuck,
)
from orchestrator.controller.live_state import LiveState
from orchestrator.controller.turn_queue import TurnQueue
from orchestrator.core.messages import cluster_events
from orchestrator.core.messages.check_events import CheckAsked, CheckEnded
from orchestrator.core.messages.events import CapacityChanged, NodeInfo, WorkerLost
from orchestrator.core.model.records import CLUSTER
from orchestrator.core.model.states import NodeState
from orchestrator.core.placement import link_pairs
from orchestrator.core.requests import node_checks
from orchestrator.errors import DatabaseUnavailableError, LeadershipLostError, NotLeaderError

_log = structlog.get_logger(__name__)
INVENTORY_SECONDS = 10.0
CLUSTER_RETRY_SECONDS = 1.0
CHECKS_SECONDS = 5.0
"""Seconds between two looks for nodes to be checked."""
KEEP_SECONDS = 60.0
"""Seconds between two looks at what the cluster keeps of runs that are over."""


class ClusterLoops:
    """The loops. They read the live state, and change it by the queue only."""

    def __init__(self, queue: TurnQueue, live: LiveState, cluster: Cluster, clock: Clock) -> None:
        self._queue, self._live = queue, live
        self._cluster, self._clock = cluster, clock
        self._news = asyncio.Event()
        """The inventory has changed in a way that must not wait."""

    def loops(self) -> list[Coroutine[None, None, None]]:
        """All loops, to be run side by side until cancelled."""
        return [
            self._watch(),
            self._take_inventory(),
            self._tell_cordons(),
            self._keep_runs(),
            self._check_nodes(),
        ]

    async def _watch(self) -> None:
        """Follow what becomes of workers. A cluster that does not answer is asked again.

        Ends when the cluster is closed.
        """
        while not await guarded(self._follow_changes):
            await self._clock.sleep(CLUSTER_RETRY_SECONDS)

    async def _follow_changes(self) -> None:
        async for change in self._cluster.changes():
            await self._take(change)

    async def _take(self, change: Change) -> None:
        note = self._queue.take_note
        match change:
            case WorkerGone(run=checks, worker=worker, reason=reason) if checks == CHECKS_RUN:
                await note(CheckEnded, worker=worker, reason=reason)
            case WorkerStuck(run=checks, worker=worker, reason=reason) if checks == CHECKS_RUN:
                if change.hopeless:
                    await note(CheckEnded, worker=worker, reason=reason)
            case WorkerLeaving(run=checks) if checks == CHECKS_RUN:
                return
            case WorkerGone(worker=worker, run=run, reason=reason):
                await note(WorkerLost, run=run, worker=worker, confirmed=True, reason=reason)
            case WorkerLeaving(worker=worker, run=run, reason=reason):
                leaving = cluster_events.WorkerLeaving
                await note(leaving, run=run, worker=worker, reason=reason, actor=CLUSTER)
            case WorkerStuck(worker=worker, run=run, reason=reason, hopeless=True):
                await note(cluster_events.LaunchRefused, run=run, worker=worker, reason=reason)
            case WorkerStuck(worker=worker, run=run, reason=reason, elsewhere=elsewhere):
                stuck = cluster_events.WorkerStuck
                await note(stuck, run=run, worker=worker, reason=reason, elsewhere=elsewhere)
            case InventoryChanged():
                self._news.set()

    async def _take_inventory(self) -> None:
        inventory: tuple[NodeInfo, ...] = ()

        async def look() -> None:
            nonlocal inventory
            nodes = tuple(await self._cluster.nodes())
            if nodes != inventory and await self._queue.decide(CapacityChanged, nodes=nodes):
                inventory = nodes

        while True:
            self._news.clear()
            well = await guarded(look)
            pause = INVENTORY_SECONDS if well else CLUSTER_RETRY_SECONDS
            await wait_at_most(self._clock, self._news, pause)

    async def _tell_cordons(self) -> None:
        """Tell the cluster which nodes the control plane keeps work away from."""
        while True:
            await self._clock.sleep(INVENTORY_SECONDS)
            await guarded(self._cordon)

    async def _cordon(self) -> None:
        away = {NodeState.CORDONED, NodeState.DRAINING}
        nodes = self._live.state.nodes.values()
        # What the cluster said itself needs no echo; its own cordon would outlast its cause.
        told = {n.id: n.reason for n in nodes if n.state in away and n.by != CLUSTER}
        await self._cluster.cordon(told)

    async def _check_nodes(self) -> None:
        """Have idle nodes checked that are due, and end checks that take too long."""
        while True:
            await self._clock.sleep(CHECKS_SECONDS)
            await guarded(self._check)

    async def _check(self) -> None:
        now = self._clock.now()
        for worker in node_checks.overdue(self._live.state, now):
            why = f"no results within {node_checks.CHECK_SECONDS:.0f} s"
            await self._queue.decide(CheckEnded, worker=worker, reason=why)
        for node in node_checks.due(self._live.state, now):
            await self._queue.decide(CheckAsked, node=node, actor=node_checks.SCHEDULE)
        for node in link_pairs.due(self._live.state, now):
            link = {"checks": (LINK,), "actor": node_checks.SCHEDULE}
            await self._queue.decide(CheckAsked, node=node, **link)

    async def _keep_runs(self) -> None:
        while True:
            await self._clock.sleep(KEEP_SECONDS)
            await guarded(self._keep)

    async def _keep(self) -> None:
        await self._cluster.keep_runs(
            [CHECKS_RUN, *(run.id for run in self._live.state.live_runs())]
        )


async def guarded(check: Callable[[], Awaitable[None]]) -> bool:
    """Run a check; False if it failed, which is logged. It runs again at its next time.

    One bad run must not blind the checks to the others, and a loop that ended would leave all
    runs alone.
    """
    try:
        await check()
    except (ClusterError, DatabaseUnavailableError, LeadershipLostError, NotLeaderError) as error:
        _log.warning("background check failed", check=_name(check), error=str(error))
    except Exception:  # noqa: BLE001 (a defect of ours: logged as such, and no reason to stop)
        _log.exception("background check failed; please report this", check=_name(check))
    else:
        return True
    return False


def _name(check: object) -> str:
    """The name of a method, or of a partial of one: without addresses, for the log."""
    return str(getattr(getattr(check, "func", check), "__name__", check))
