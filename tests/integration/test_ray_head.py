"""What the control store of a real Ray cluster says, and what is left when it starts again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

pytest.importorskip("ray", exc_type=ImportError)

from jobs.clock import SystemClock
from jobs.spec import RunSpec
from orchestrator.clusters.errors import ClusterError
from orchestrator.clusters.port import Change, WorkerGone, WorkerLaunch, WorkerStuck
from orchestrator.clusters.ray import edge as ray_edge
from orchestrator.clusters.ray.cluster import RayCluster, RaySettings
from orchestrator.clusters.ray.edge import Edge
from orchestrator.core.messages.events import NodeInfo
from tests.ray.bed import Bed

NODE = "head-1"
PATIENCE = 200.0


def make(bed: Bed, home: Path) -> RayCluster:
    edge = Edge(bed.address, "head", home / "ray.log", SystemClock())
    return RayCluster(edge, SystemClock(), RaySettings(nodes={"for": "head"}))


async def of(kind: type[Change], changes: AsyncIterator[Change]) -> Change:
    """The next change of a kind."""
    while not isinstance(change := await anext(changes), kind):
        pass
    return change


@pytest.fixture(scope="module")
def head(ray_bed: Bed) -> Iterator[Bed]:
    ray_bed.add(NODE, gpus=4, **{"for": "head"})
    with pytest.MonkeyPatch.context() as patched:
        # Each test starts a process that imports ray, on a machine that does other work, too.
        patched.setattr(ray_edge, "CONNECT_SECONDS", PATIENCE)
        yield ray_bed


@pytest.fixture
async def cluster(head: Bed, tmp_path: Path) -> AsyncIterator[RayCluster]:
    made = make(head, tmp_path)
    yield made
    await made.close()


async def test_another_version_is_said_before_anything_is_placed(
    cluster: RayCluster, head: Bed
) -> None:
    before = head.ask("metadata", {"ray_version": "2.9.1", "python_version": "3.9.2"})
    words = r"ersion mismatch.*Ray: 2\.9\.1 Python: 3\.9\.2.*Install babysit for"
    try:
        with pytest.raises(ClusterError, match=words):
            await cluster.nodes()
    finally:
        head.ask("metadata", before)


async def test_what_others_use_is_not_offered_and_nodes_on_order_are_pending(
    cluster: RayCluster, head: Bed
) -> None:
    (whole,) = await cluster.nodes()
    assert (whole.id, whole.gpus, whole.cpus) == (NODE, 4, 4)
    head.ask("occupy", NODE, {"num_gpus": 3, "num_cpus": 1.5})
    head.ask("order", "h100", {"GPU": 8, "CPU": 96})
    node, pending = await cluster.nodes()
    assert (node.id, node.gpus, node.cpus) == (NODE, 1, 2.5)
    assert (whole.used_by_others, node.used_by_others) == ("", "3 GPUs, 1.5 CPUs")
    assert (pending.id, pending.state) == ("pending-h100-i-1", "cordoned")
    assert (pending.gpus, pending.cpus) == (8, 96)
    assert pending.reason == "pending: Ray's autoscaler has ordered it (h100): REQUESTED"
    head.ask("leave")
    head.ask("order", "h100", {})
    while await cluster.nodes() != [whole]:  # Ray takes a moment to know that they are free
        await SystemClock().sleep(0.2)


async def test_a_worker_whose_place_another_job_took_after_the_decision_says_so_and_leaves(
    cluster: RayCluster, head: Bed
) -> None:
    (whole,) = await cluster.nodes()
    head.ask("occupy", NODE, {"num_gpus": 3})
    try:
        await seat_is_taken(cluster, whole)
    finally:
        head.ask("leave")
    async with asyncio.timeout(PATIENCE):
        while await cluster.nodes() != [whole]:  # Ray takes a moment to know that they are free
            await SystemClock().sleep(0.2)


async def seat_is_taken(cluster: RayCluster, whole: NodeInfo) -> None:
    """Launch a worker that needs more than others have left."""
    spec = RunSpec(name="tiny", command=("true",), resources={"nodes": 1, "gpus_per_node": 2})
    launch = WorkerLaunch(
        worker="w2", run="r2", node=NODE, server_url="ws://x", token="secret", spec=spec
    )
    launching = asyncio.create_task(cluster.launch(launch))
    async with asyncio.timeout(PATIENCE), contextlib.aclosing(cluster.changes()) as changes:
        assert await of(WorkerStuck, changes) == WorkerStuck(
            worker="w2",
            run="r2",
            reason=f"other jobs of the Ray cluster use {NODE}: 1 of 4 GPU left, 2 wanted",
            elsewhere=True,
        )
        await cluster.stop("w2", "r2")
        never = WorkerGone(worker="w2", run="r2", reason="agent never started")
        assert await of(WorkerGone, changes) == never
        (node,) = await cluster.nodes()
        assert (whole.gpus, node.gpus, node.used_by_others) == (4, 1, "3 GPUs, 1 CPU")
    await launching
    assert await cluster.alive("w2", "r2") is False


async def test_what_is_known_of_workers_survives_a_restart_of_the_control_store(
    cluster: RayCluster, head: Bed, tmp_path: Path
) -> None:
    await cluster.stop("w1", "r1")
    head.ask("kill_gcs")
    head.ask("start_gcs")
    assert await cluster.alive("w1", "r1") is False
    await cluster.keep_runs(["r1"])
    await cluster.close()
    following = make(head, tmp_path)
    never = WorkerGone(worker="w1", run="r1", reason="agent never started")
    assert await anext(following.changes()) == never
    await following.keep_runs([])
    await following.close()
