"""The cluster of a story: one for all servers, each of which has a view of it that may fail."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import TypeVar

from jobs.clock import Clock
from orchestrator.clusters.errors import ClusterError
from orchestrator.clusters.port import WorkerGone, WorkerLaunch
from orchestrator.clusters.simulated import SimulatedCluster
from orchestrator.core.messages.events import NodeInfo
from orchestrator.fuzz.event_loop import VirtualLoop, rest
from orchestrator.fuzz.fault_rates import Weather

T = TypeVar("T")


class Site(SimulatedCluster):
    """Tells when a worker comes to life, and when it ends.

    Attributes:
        away: Whether the cluster's API does not answer at all.
    """

    def __init__(
        self,
        nodes: Iterable[NodeInfo],
        clock: Clock,
        *,
        begun: Callable[[WorkerLaunch], None],
        ended: Callable[[str], None],
    ) -> None:
        super().__init__(nodes, clock)
        self.away = False
        self._begun, self._ended = begun, ended
        self._watches: list[asyncio.Queue[WorkerGone]] = []

    async def launch(self, launch: WorkerLaunch) -> None:
        """See the port."""
        new = launch.worker not in self.workers
        await super().launch(launch)
        if new:
            self._begun(launch)

    def die(self, worker: str, reason: str = "agent was killed by SIGKILL") -> None:
        """The worker's processes end."""
        self._ended(worker)
        super().die(worker, reason)

    def watch(self) -> asyncio.Queue[WorkerGone]:
        """A server's own view of who is gone: first those that nobody has taken note of."""
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
        self._ended(worker)
        super()._end(worker, reason)


class View:
    """The cluster, as one server sees it: slow, and now and then not at all."""

    ignored_fields = SimulatedCluster.ignored_fields

    def __init__(
        self, site: Site, loop: VirtualLoop, chance: random.Random, weather: Weather
    ) -> None:
        self._site, self._loop, self._chance, self._weather = site, loop, chance, weather

    async def nodes(self) -> list[NodeInfo]:
        """See the port."""
        return await self._call(self._site.nodes)

    async def launch(self, launch: WorkerLaunch) -> None:
        """See the port."""
        await self._call(lambda: self._site.launch(launch))

    async def stop(self, worker: str, run: str) -> None:
        """See the port."""
        await self._call(lambda: self._site.stop(worker, run))

    async def alive(self, worker: str, run: str) -> bool | None:
        """See the port."""
        return await self._call(lambda: self._site.alive(worker, run))

    async def changes(self) -> AsyncIterator[WorkerGone]:
        """See the port: whoever asks hears of all that nobody has taken note of."""
        ends = self._site.watch()
        while True:
            gone = await ends.get()
            yield gone
            self._site.workers[gone.worker].acknowledged = True

    async def close(self) -> None:
        """See the port."""

    async def _call(self, work: Callable[[], Awaitable[T]]) -> T:
        """Before it took effect, or after, the call may fail."""
        await rest(self._loop, self._weather.network_seconds(self._chance))
        self._stumble()
        answer = await work()
        await rest(self._loop, self._weather.network_seconds(self._chance))
        self._stumble()
        return answer

    def _stumble(self) -> None:
        if self._site.away or self._weather.strikes("cluster", self._chance):
            raise ClusterError("the cluster does not answer: try again")
