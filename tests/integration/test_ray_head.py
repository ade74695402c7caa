"""What the control store of a real Ray cluster says, and what is left when it starts again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

pytest.importorskip("ray", exc_type=ImportError)

from jobs.clock import SystemClock
from orchestrator.clusters.errors import ClusterError
from orchestrator.clusters.port import WorkerGone
from orchestrator.clusters.ray.cluster import RayCluster, RaySettings
from orchestrator.clusters.ray.edge import Edge
from tests.ray.bed import Bed

NODE = "head-1"


def make(bed: Bed, home: Path) -> RayCluster:
    edge = Edge(bed.address, "head", home / "ray.log", SystemClock())
    return RayCluster(edge, SystemClock(), RaySettings(nodes={"for": "head"}))


@pytest.fixture(scope="module")
def head(ray_bed: Bed) -> Bed:
    ray_bed.add(NODE, gpus=4, **{"for": "head"})
    return ray_bed


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
