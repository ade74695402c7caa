"""The cluster of a run: one for all servers, each of which has a view of it that may fail."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import TypeVar

from jobs.clock import Clock
from orchestrator.clusters.errors import ClusterError
from orchestrator.clusters.own_nodes import OwnNodes
from orchestrator.clusters.port import WorkerGone, WorkerLaunch
from orchestrator.clusters.simulated import SimulatedCluster
from orchestrator.core.messages.events import NodeInfo
from orchestrator.fuzz.event_loop import VirtualLoop, rest
from orchestrator.fuzz.fault_rates import FaultRates

T = TypeVar("T")


class SharedCluster(SimulatedCluster):
    """The simulated cluster, which also says when a worker's process begins and ends.

    Attributes:
        away: True if the cluster's API does not answer at all.
        on_begin: Called with the launch of a worker that did not exist before.
        on_end: Called with the name of a worker whose processes are to end.
    """

    def __init__(self, nodes: Iterable[NodeInfo], clock: Clock) -> None:
        super().__init__(nodes, clock)
        self.away = False
        self.on_begin: Callable[[WorkerLaunch], None] = lambda _launch: None
        self.on_end: Callable[[str], None] = lambda _worker: None
        self._watches: list[asyncio.Queue[WorkerGone]] = []

    async def launch(self, launch: WorkerLaunch) -> None:
        """See the port."""
        new = launch.worker not in self.workers
        await super().launch(launch)
        if new:
            self.on_begin(launch)

    def die(self, worker: str, reason: str = "agent was killed by SIGKILL") -> None:
        """The worker's processes end."""
        self.on_end(worker)
        super().die(worker, reason)

    def watch(self) -> asyncio.Queue[WorkerGone]:
        """The feed of ended workers for one server, beginning with unacknowledged ones."""
        ends: asyncio.Queue[WorkerGone] = asyncio.Queue()
        for name, worker in self.workers.items():
            if (
                not worker.acknowledged
                and worker.gone is not None
                and worker.node not in self.unreachable
            ):
                ends.put_nowait(WorkerGone(worker=name, run=worker.run, reason=worker.gone))
        self._watches.append(ends)
        return ends

    def _report(self, worker: str) -> None:
        found = self.workers[worker]
        if found.gone is not None and found.node not in self.unreachable:
            for ends in self._watches:
                ends.put_nowait(WorkerGone(worker=worker, run=found.run, reason=found.gone))

    def _end(self, worker: str, reason: str) -> None:
        self.on_end(worker)
        super()._end(worker, reason)


class ClusterView(OwnNodes):
    """The cluster, as one server sees it: calls take time, and some fail."""

    ignored_fields = SimulatedCluster.ignored_fields
    runs_here = SimulatedCluster.runs_here
    takes_bundles = SimulatedCluster.takes_bundles

    def __init__(
        self, cluster: SharedCluster, loop: VirtualLoop, rng: random.Random, rates: FaultRates
    ) -> None:
        self._cluster, self._loop, self._rng, self._rates = cluster, loop, rng, rates

    async def nodes(self) -> list[NodeInfo]:
        """See the port."""
        return await self._call(self._cluster.nodes)

    async def launch(self, launch: WorkerLaunch) -> None:
        """See the port."""
        await self._call(lambda: self._cluster.launch(launch))

    async def stop(self, worker: str, run: str) -> None:
        """See the port."""
        await self._call(lambda: self._cluster.stop(worker, run))

    async def alive(self, worker: str, run: str) -> bool | None:
        """See the port."""
        return await self._call(lambda: self._cluster.alive(worker, run))

    async def changes(self) -> AsyncIterator[WorkerGone]:
        """See the port. A server that is killed in the middle leaves the rest to the next."""
        ends = self._cluster.watch()
        while True:
            gone = await ends.get()
            yield gone
            self._cluster.workers[gone.worker].acknowledged = True

    async def close(self) -> None:
        """See the port."""

    async def _call(self, work: Callable[[], Awaitable[T]]) -> T:
        """Make a call, which may fail before it took effect or after: callers cannot tell which."""
        await rest(self._loop, self._rates.network_seconds(self._rng))
        self._stumble()
        answer = await work()
        await rest(self._loop, self._rates.network_seconds(self._rng))
        self._stumble()
        return answer

    def _stumble(self) -> None:
        if self._cluster.away or self._rates.strikes("cluster", self._rng):
            raise ClusterError("the cluster does not answer: try again")
