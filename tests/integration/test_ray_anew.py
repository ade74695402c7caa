"""A real Ray cluster whose control store has no storage: its head starts again as another one."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

pytest.importorskip("ray", exc_type=ImportError)

from jobs.agent.reaper import strays
from jobs.clock import SystemClock
from jobs.spec import RunSpec
from orchestrator.clusters.errors import ClusterError
from orchestrator.clusters.port import Change, WorkerGone, WorkerLaunch
from orchestrator.clusters.ray import ends
from orchestrator.clusters.ray.cluster import RayCluster, RaySettings
from orchestrator.clusters.ray.edge import Edge
from tests.prometheus import free_port
from tests.ray.commands import Nodes

CLOCK = SystemClock()
STAND_IN = Path(__file__).parents[1] / "clusters_agent.py"
PATIENCE = 300
"""Seconds for a node to start, on a machine that does other work, too."""
pytestmark = [
    pytest.mark.timeout(1200),
    pytest.mark.skipif(
        "BABYSIT_TEST_RAY" not in os.environ, reason="takes minutes: BABYSIT_TEST_RAY=1 runs it"
    ),
]


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    with Nodes(free_port(), {}) as made:
        yield made


@pytest.fixture
async def cluster(nodes: Nodes, tmp_path: Path) -> AsyncIterator[RayCluster]:
    os.mkfifo(tmp_path / "ready")
    reading = os.open(tmp_path / "ready", os.O_RDONLY | os.O_NONBLOCK)
    edge = Edge(nodes.address, "anew", tmp_path / "ray.log", CLOCK)
    agent = (sys.executable, str(STAND_IN))
    made = RayCluster(edge, CLOCK, RaySettings(directory=str(tmp_path), agent=agent))
    yield made
    await made.close()
    os.close(reading)


async def start(cluster: RayCluster, nodes: Nodes) -> None:
    """Start a head and a node, and wait until babysit has the node."""
    await asyncio.to_thread(nodes.head)
    await asyncio.to_thread(nodes.node, "node-1")
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                found = [node.id for node in await cluster.nodes()]
            except ClusterError:
                found = []
            if found:
                assert found == ["node-1"]
                return
            await CLOCK.sleep(0.5)


async def test_a_worker_of_the_former_cluster_starts_no_second_time_while_it_may_live(
    cluster: RayCluster, nodes: Nodes, tmp_path: Path
) -> None:
    spec = RunSpec(name="tiny", command=("graceful",), env={"READY": str(tmp_path / "ready")})
    launch = WorkerLaunch(
        worker="w1", run="r1", node="node-1", server_url="ws://x", token="secret", spec=spec
    )
    await start(cluster, nodes)
    await cluster.launch(launch)
    assert await cluster.alive("w1", "r1") is True
    changes: asyncio.Queue[Change] = asyncio.Queue()

    async def listen() -> None:
        async for change in cluster.changes():
            changes.put_nowait(change)

    listening = asyncio.create_task(listen())
    await asyncio.to_thread(nodes.kill)
    await start(cluster, nodes)
    with pytest.raises(ClusterError, match="w1 does not start yet: the Ray cluster was started"):
        await cluster.launch(launch)
    assert await cluster.alive("w1", "r1") is None
    async with asyncio.timeout(PATIENCE):
        while await cluster.alive("w1", "r1") is None:
            await CLOCK.sleep(1)
        while not isinstance(gone := await changes.get(), WorkerGone):
            pass
    assert gone == WorkerGone(worker="w1", run="r1", reason=ends.FORGOTTEN)
    await cluster.launch(launch)  # says again that it is gone
    assert strays("w1") == []
    following = launch.model_copy(update={"worker": "w2"})
    await cluster.launch(following)
    assert await cluster.alive("w2", "r1") is True
    await cluster.stop("w2", "r1")
    listening.cancel()
