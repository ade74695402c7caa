"""What the simulated cluster adds to the contract: partitions and lost nodes."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from jobs.clock import ManualClock
from jobs.spec import RunSpec
from orchestrator.clusters.errors import ClusterError
from orchestrator.clusters.port import WorkerLaunch
from orchestrator.clusters.simulated import SimulatedCluster
from orchestrator.core.messages.events import NodeInfo


@pytest.fixture
def cluster() -> SimulatedCluster:
    return SimulatedCluster([NodeInfo(id="node-1"), NodeInfo(id="node-2")], ManualClock())


def launch(worker: str, node: str = "node-1") -> WorkerLaunch:
    spec = RunSpec(name="tiny", command=("python", "train.py"))
    return WorkerLaunch(
        worker=worker, run="r1", node=node, server_url="ws://127.0.0.1:1/agent", token="", spec=spec
    )


async def told(cluster: SimulatedCluster) -> list[tuple[str, str]]:
    """Everything told so far."""
    await cluster.close()
    async with contextlib.aclosing(cluster.changes()) as changes:
        return [(gone.worker, gone.reason) async for gone in changes]


async def test_a_launch_is_recorded_with_its_time(cluster: SimulatedCluster) -> None:
    await cluster.launch(launch("w1"))
    worker = cluster.workers["w1"]
    assert worker.launch == launch("w1")
    assert worker.launched_at == ManualClock().now()


async def test_behind_a_partition_nobody_can_tell(cluster: SimulatedCluster) -> None:
    await cluster.launch(launch("w1"))
    cluster.partition("node-1")
    assert await cluster.alive("w1", "r1") is None
    cluster.die("w1")
    assert await cluster.alive("w1", "r1") is None
    await cluster.stop("w1", "r1")
    assert await told(cluster) == []


async def test_after_a_partition_deaths_are_heard_of_and_stops_arrive(
    cluster: SimulatedCluster,
) -> None:
    for worker, node in (("w1", "node-1"), ("w2", "node-1"), ("w3", "node-1"), ("w4", "node-2")):
        await cluster.launch(launch(worker, node))
    cluster.partition("node-1")
    cluster.die("w1", "agent exited with code 3")
    await cluster.stop("w2", "r1")
    cluster.heal("node-1")
    assert await told(cluster) == [
        ("w1", "agent exited with code 3"),
        ("w2", "agent was stopped"),
    ]
    assert await asyncio.gather(*(cluster.alive(w, "r1") for w in ("w3", "w4"))) == [True, True]


async def test_an_end_that_was_told_is_told_again_to_who_asks_behind_a_partition(
    cluster: SimulatedCluster,
) -> None:
    """A server with a restored database has forgotten it, and its stop cannot be answered yet."""
    await cluster.launch(launch("w1"))
    cluster.die("w1", "agent exited with code 3")
    assert await told(cluster) == [("w1", "agent exited with code 3")]
    cluster.partition("node-1")
    await cluster.stop("w1", "r1")
    cluster.heal("node-1")
    assert await told(cluster) == [("w1", "agent exited with code 3")]


async def test_no_launch_behind_a_partition(cluster: SimulatedCluster) -> None:
    cluster.partition("node-1")
    with pytest.raises(ClusterError, match="node-1 cannot be reached"):
        await cluster.launch(launch("w1"))
    cluster.heal("node-1")
    await cluster.launch(launch("w1"))
    assert await cluster.alive("w1", "r1") is True


async def test_a_lost_node_takes_its_workers_along(cluster: SimulatedCluster) -> None:
    await cluster.launch(launch("w1"))
    await cluster.launch(launch("w2", "node-2"))
    cluster.partition("node-1")
    cluster.lose("node-1")
    assert [node.id for node in await cluster.nodes()] == ["node-2"]
    assert await cluster.alive("w1", "r1") is False
    assert await told(cluster) == [("w1", "node lost")]
    cluster.add(NodeInfo(id="node-1", gpus=8))
    assert {node.id: node.gpus for node in await cluster.nodes()} == {"node-1": 8, "node-2": 0}
