"""What every cluster promises (orchestrator.clusters.port), asked of each implementation."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

import pytest

from jobs.agent.reaper import kill_strays
from jobs.clock import SystemClock
from jobs.spec import RunSpec
from orchestrator.clusters.errors import ClusterError
from orchestrator.clusters.local.cluster import LocalCluster, LocalClusterSettings
from orchestrator.clusters.local.worker_records import Records
from orchestrator.clusters.port import Cluster, WorkerGone, WorkerLaunch
from orchestrator.clusters.simulated import SimulatedCluster
from orchestrator.core.messages.events import NodeInfo

STAND_IN = Path(__file__).parents[1] / "clusters_agent.py"
KILLED = "agent was killed by SIGKILL"


class Site(Protocol):
    """A cluster, and a hand from outside."""

    cluster: Cluster

    def kill(self, worker: str) -> None:
        """SIGKILL the worker's agent."""

    async def reopen(self) -> None:
        """Close the server's end and open another."""


class LocalSite:
    def __init__(self, home: Path) -> None:
        self.home = home
        # A reader that is there before the agents lets them say that they are up; nobody listens.
        os.mkfifo(home / "ready")
        self.fifo = os.open(home / "ready", os.O_RDONLY | os.O_NONBLOCK)
        self.cluster = self._open()

    def _open(self) -> LocalCluster:
        command = (sys.executable, str(STAND_IN))
        settings = LocalClusterSettings(home=self.home, nodes=2, cpus_per_node=4, agent=command)
        return LocalCluster(settings, SystemClock())

    def kill(self, worker: str) -> None:
        record = Records(self.home).read("r1", worker)
        assert record is not None
        assert record.agent is not None
        os.kill(record.agent.pid, signal.SIGKILL)

    async def reopen(self) -> None:
        await self.cluster.close()
        self.cluster = self._open()

    async def close(self) -> None:
        for worker in ("w1", "w2", "w3"):
            await self.cluster.stop(worker, "r1")
            assert kill_strays(worker) == []
        await self.cluster.close()
        os.close(self.fifo)


class SimulatedSite:
    def __init__(self) -> None:
        nodes = [NodeInfo(id=f"node-{number}", cpus=4) for number in (1, 2)]
        self.cluster = SimulatedCluster(nodes, SystemClock())

    def kill(self, worker: str) -> None:
        self.cluster.die(worker)

    async def reopen(self) -> None:
        await self.cluster.close()
        self.cluster.reopen()

    async def close(self) -> None:
        await self.cluster.close()


@pytest.fixture(params=["local", "simulated"])
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    site = LocalSite(tmp_path) if request.param == "local" else SimulatedSite()
    yield site
    await site.close()


@pytest.fixture
def launch(tmp_path: Path) -> WorkerLaunch:
    spec = RunSpec(name="tiny", command=("obedient",), env={"READY": str(tmp_path / "ready")})
    return WorkerLaunch(
        worker="w1",
        run="r1",
        node="node-1",
        server_url="ws://127.0.0.1:1/agent",
        token="secret",
        spec=spec,
    )


async def take(cluster: Cluster, count: int) -> list[WorkerGone]:
    """The next ones gone. All but the last are taken note of."""
    async with asyncio.timeout(60), contextlib.aclosing(cluster.changes()) as changes:
        return [await anext(changes) for _ in range(count)]


async def test_inventory(site: Site) -> None:
    nodes = await site.cluster.nodes()
    assert [(node.id, node.cpus) for node in nodes] == [("node-1", 4), ("node-2", 4)]


async def test_a_worker_that_was_launched_is_alive(site: Site, launch: WorkerLaunch) -> None:
    assert await site.cluster.alive("w1", "r1") is False
    await site.cluster.launch(launch)
    assert await site.cluster.alive("w1", "r1") is True
    assert await site.cluster.alive("w2", "r1") is False


async def test_an_unknown_node_is_refused_with_the_names_there_are(
    site: Site, launch: WorkerLaunch
) -> None:
    with pytest.raises(ClusterError, match=r"unknown node rack-7; .* node-1, node-2") as caught:
        await site.cluster.launch(launch.model_copy(update={"node": "rack-7"}))
    assert (caught.value.node, caught.value.worker) == ("rack-7", "w1")
    assert await site.cluster.alive("w1", "r1") is False


async def test_a_death_is_told_with_its_reason(site: Site, launch: WorkerLaunch) -> None:
    await site.cluster.launch(launch)
    site.kill("w1")
    assert await take(site.cluster, 1) == [WorkerGone(worker="w1", run="r1", reason=KILLED)]
    assert await site.cluster.alive("w1", "r1") is False


async def test_stop_ends_the_worker(site: Site, launch: WorkerLaunch) -> None:
    await site.cluster.launch(launch)
    await site.cluster.stop("w1", "r1")
    assert [gone.worker for gone in await take(site.cluster, 1)] == ["w1"]
    assert await site.cluster.alive("w1", "r1") is False


async def test_stop_can_be_said_again(site: Site, launch: WorkerLaunch) -> None:
    await site.cluster.launch(launch)
    await site.cluster.stop("w1", "r1")
    await site.cluster.stop("w1", "r1")
    first, second = await take(site.cluster, 2)
    assert first == second


async def test_launch_can_be_said_again(site: Site, launch: WorkerLaunch) -> None:
    await site.cluster.launch(launch)
    await site.cluster.launch(launch)
    site.kill("w1")
    await take(site.cluster, 1)
    assert await site.cluster.alive("w1", "r1") is False


async def test_a_worker_that_is_gone_does_not_come_back(site: Site, launch: WorkerLaunch) -> None:
    await site.cluster.launch(launch)
    site.kill("w1")
    first = await take(site.cluster, 1)
    await site.cluster.launch(launch)
    assert await take(site.cluster, 1) == first
    assert await site.cluster.alive("w1", "r1") is False


async def test_a_stop_that_overtakes_the_launch_wins(site: Site, launch: WorkerLaunch) -> None:
    await site.cluster.stop("w1", "r1")
    never = WorkerGone(worker="w1", run="r1", reason="agent never started")
    assert await take(site.cluster, 1) == [never]
    await site.cluster.launch(launch)
    assert await take(site.cluster, 1) == [never]
    assert await site.cluster.alive("w1", "r1") is False


async def test_workers_outlive_the_server(site: Site, launch: WorkerLaunch) -> None:
    await site.cluster.launch(launch)
    await site.reopen()
    assert await site.cluster.alive("w1", "r1") is True
    await site.cluster.stop("w1", "r1")
    assert [gone.worker for gone in await take(site.cluster, 1)] == ["w1"]


async def test_what_was_not_taken_note_of_is_told_again(site: Site, launch: WorkerLaunch) -> None:
    for worker in ("w1", "w2"):
        await site.cluster.launch(launch.model_copy(update={"worker": worker}))
        site.kill(worker)
    _, second = await take(site.cluster, 2)
    await site.reopen()
    await site.cluster.launch(launch.model_copy(update={"worker": "w3"}))
    again = asyncio.create_task(take(site.cluster, 2))
    site.kill("w3")
    assert [gone.worker for gone in await again] == [second.worker, "w3"]


async def test_an_end_is_told_again_to_the_next_lead_of_the_same_server(
    site: Site, launch: WorkerLaunch
) -> None:
    await site.cluster.launch(launch)
    site.kill("w1")
    first, again = await take(site.cluster, 1), await take(site.cluster, 1)
    assert first == again


async def test_closing_ends_the_changes(site: Site) -> None:
    told = asyncio.create_task(_all(site.cluster))
    await site.cluster.close()
    assert await told == []


async def _all(cluster: Cluster) -> list[WorkerGone]:
    return [gone async for gone in cluster.changes()]
