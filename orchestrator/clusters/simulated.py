"""A cluster in memory, for tests, for simulation, and to try the control plane alone.

No process is started: a worker is an entry in a table, and dies or vanishes by a method call.
Behind `BABYSIT_CLUSTER=simulated` a run is therefore placed and launched, but its agents never
connect.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
from collections.abc import AsyncIterator, Iterable, Mapping

from jobs.clock import Clock
from orchestrator.clusters.errors import ClusterError, unknown_node
from orchestrator.clusters.own_nodes import OwnNodes
from orchestrator.clusters.port import Change, WorkerGone, WorkerLaunch
from orchestrator.core.messages.events import NodeInfo
from orchestrator.settings import Settings


@dataclasses.dataclass(slots=True)
class SimulatedWorker:
    """One worker, alive or gone."""

    run: str
    node: str
    launched_at: dt.datetime | None = None
    """None if the worker was stopped before it was launched."""
    launch: WorkerLaunch | None = None
    stop_asked: bool = False
    gone: str | None = None
    """Why the worker is gone; None while it lives."""
    acknowledged: bool = False
    """True once the reader of :meth:`SimulatedCluster.changes` has asked for the next change."""


def from_settings(settings: Settings, clock: Clock) -> SimulatedCluster:
    """A cluster of `settings.local_nodes` nodes, `node-1` and so on, of the size of virtual nodes.

    A node offers one CPU core where `settings.local_cpus_per_node` is not set.
    """
    nodes = (
        NodeInfo(
            id=f"node-{number}",
            gpus=settings.local_gpus_per_node,
            cpus=settings.local_cpus_per_node or 1,
            memory=settings.local_memory_per_node or 0,
        )
        for number in range(1, settings.local_nodes + 1)
    )
    return SimulatedCluster(nodes, clock)


class SimulatedCluster(OwnNodes):
    """Implements :class:`orchestrator.clusters.port.Cluster` without a process.

    Attributes:
        workers: Every worker ever, by id.
        unreachable: Nodes that are partitioned.
    """

    ignored_fields: Mapping[str, str] = {
        "image": "the simulated cluster starts no process and no container",
        "kubernetes": "the simulated cluster starts no process and no container",
        "ray": "the simulated cluster starts no process and no container",
    }

    runs_here = False
    takes_bundles = False

    def __init__(self, nodes: Iterable[NodeInfo], clock: Clock) -> None:
        self.workers: dict[str, SimulatedWorker] = {}
        self._nodes = {node.id: node for node in nodes}
        self._clock = clock
        self.unreachable: set[str] = set()
        self._ends: asyncio.Queue[WorkerGone | None] = asyncio.Queue()
        self._told: WorkerGone | None = None
        """The last yielded end, if its reader stored nothing of it; the next reader gets it."""

    # --- the port ---------------------------------------------------------------------------

    async def nodes(self) -> list[NodeInfo]:
        """The inventory; a partitioned node is still in it."""
        return list(self._nodes.values())

    async def launch(self, launch: WorkerLaunch) -> None:
        """Start a worker, unless it was started before.

        Raises:
            ClusterError: No such node, or it cannot be reached.
        """
        if launch.worker in self.workers:
            self._report(launch.worker)
            return
        if launch.node not in self._nodes:
            raise unknown_node(launch.node, launch.worker, list(self._nodes))
        if launch.node in self.unreachable:
            raise ClusterError(
                f"{launch.node} cannot be reached: try another node, or again later",
                node=launch.node,
                worker=launch.worker,
            )
        self.workers[launch.worker] = SimulatedWorker(
            launch.run, launch.node, self._clock.now(), launch
        )

    async def stop(self, worker: str, run: str) -> None:
        """End a worker: at once, or when its node can be reached again."""
        found = self.workers.setdefault(worker, SimulatedWorker(run, ""))
        found.stop_asked = True
        if found.gone is not None:
            found.acknowledged = False  # who asks has forgotten, and its node may be out of reach
            self._report(worker)
        elif found.launched_at is None:
            self._end(worker, "agent never started")
        elif found.node not in self.unreachable:
            self._end(worker, "agent was stopped")

    async def alive(self, worker: str, run: str) -> bool | None:
        """True if the worker lives; None if its node cannot be reached."""
        found = self.workers.get(worker)
        if found is None or found.run != run:
            return False
        return None if found.node in self.unreachable else found.gone is None

    async def changes(self) -> AsyncIterator[Change]:
        """Workers that are gone; see the port."""
        while (gone := self._told or await self._ends.get()) is not None:
            self._told = gone
            yield gone
            self._told = None
            self.workers[gone.worker].acknowledged = True

    async def close(self) -> None:
        """Stop watching; see :meth:`reopen`."""
        self._ends.put_nowait(None)

    # --- what a test or a simulation does to it ----------------------------------------------

    def reopen(self) -> None:
        """Watch again, as a new server does: ends that nobody acknowledged are yielded again."""
        self._ends, self._told = asyncio.Queue(), None
        for name, worker in self.workers.items():
            if not worker.acknowledged:
                self._report(name)

    def die(self, worker: str, reason: str = "agent was killed by SIGKILL") -> None:
        """End the worker's processes. On a partitioned node the end shows at :meth:`heal`."""
        found = self.workers[worker]
        if found.gone is None:
            found.gone = reason
            self._report(worker)

    def partition(self, node: str) -> None:
        """Make the node unreachable; its workers continue."""
        self.unreachable.add(node)

    def heal(self, node: str) -> None:
        """Make the node reachable again: deaths show, and pending stops arrive."""
        self.unreachable.remove(node)
        for name, worker in self.workers.items():
            if worker.node == node and worker.gone is None and worker.stop_asked:
                self._end(name, "agent was stopped")
            elif worker.node == node and not worker.acknowledged:
                self._report(name)

    def lose(self, node: str) -> None:
        """Declare the node dead: it leaves the inventory, and its workers are gone."""
        del self._nodes[node]
        self.unreachable.discard(node)
        for name, worker in self.workers.items():
            if worker.node == node and not worker.acknowledged:
                self._end(name, worker.gone or "node lost")

    def add(self, node: NodeInfo) -> None:
        """Add a node, or replace it by a changed one."""
        self._nodes[node.id] = node

    def _end(self, worker: str, reason: str) -> None:
        self.workers[worker].gone = reason
        self._report(worker)

    def _report(self, worker: str) -> None:
        found = self.workers[worker]
        if found.gone is not None and found.node not in self.unreachable:
            self._ends.put_nowait(WorkerGone(worker=worker, run=found.run, reason=found.gone))
