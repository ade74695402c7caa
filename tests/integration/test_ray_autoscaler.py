"""A real autoscaler of Ray, whose nodes are raylets on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

pytest.importorskip("ray", exc_type=ImportError)

from jobs.clock import SystemClock
from jobs.spec import RunSpec
from orchestrator.clusters.port import WorkerGone, WorkerLaunch
from orchestrator.clusters.ray.cluster import RayCluster, RaySettings
from orchestrator.clusters.ray.edge import Edge
from orchestrator.core.messages.events import NodeInfo
from tests.prometheus import free_port
from tests.ray.commands import HEAD_ID, Nodes, autoscaling

CLOCK = SystemClock()
STAND_IN = Path(__file__).parents[1] / "clusters_agent.py"
PATIENCE = 300
POLL_SECONDS = 0.1
SETTINGS = {
    "RAY_enable_autoscaler_v2": "1",  # as `ray up` sets it
    "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
    "RAY_FAKE_CLUSTER": "1",
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
}
REQUEST = """
import sys, ray
from ray.autoscaler.sdk import request_resources
ray.init(sys.argv[1], log_to_driver=False)
request_resources(bundles=[{"GPU": 2}] * int(sys.argv[2]))
"""
pytestmark = [
    pytest.mark.timeout(1200),
    pytest.mark.skipif(
        "BABYSIT_TEST_RAY" not in os.environ, reason="takes minutes: BABYSIT_TEST_RAY=1 runs it"
    ),
]


class Site:
    """The autoscaler, and babysit on its nodes."""

    def __init__(self, port: int, nodes: Nodes, home: Path) -> None:
        self._port, self._nodes, self._file = port, nodes, home / "autoscaler.yaml"
        self.allow(2)
        os.mkfifo(home / "ready")
        self._reading = os.open(home / "ready", os.O_RDONLY | os.O_NONBLOCK)
        nodes.head(f"--autoscaling-config={self._file}")
        edge = Edge(nodes.address, "autoscaler", home / "ray.log", CLOCK)
        agent = (sys.executable, str(STAND_IN))
        self.cluster = RayCluster(edge, CLOCK, RaySettings(directory=str(home), agent=agent))

    def allow(self, nodes: int) -> None:
        """Set the number of nodes that there may be at most."""
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps(autoscaling(self._port, nodes)))
        new.replace(self._file)

    async def request(self, nodes: int) -> None:
        """Ask the autoscaler for nodes, as a job does."""
        command = [sys.executable, "-c", REQUEST, self._nodes.address, str(nodes)]
        done = await asyncio.to_thread(
            subprocess.run, command, env=self._nodes.environment, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr.decode()[-2000:]

    async def until(self, holds: Callable[[list[NodeInfo]], bool]) -> list[NodeInfo]:
        """The first inventory of which that holds."""
        async with asyncio.timeout(PATIENCE):
            while not holds(found := await self.cluster.nodes()):
                await CLOCK.sleep(POLL_SECONDS)
        return found

    async def close(self) -> None:
        await self.cluster.close()
        os.close(self._reading)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    port = free_port()
    with Nodes(port, SETTINGS) as nodes:
        made = await asyncio.to_thread(Site, port, nodes, tmp_path)
        yield made
        await made.close()


def states(found: list[NodeInfo]) -> list[str]:
    return [node.state for node in found]


async def test_nodes_come_pending_and_only_an_idle_one_goes_by_itself(
    site: Site, tmp_path: Path
) -> None:
    await site.until(lambda found: found == [])
    await site.request(2)
    pending = await site.until(lambda found: "cordoned" in states(found))
    ordered = next(node for node in pending if node.state == "cordoned")
    assert ordered.id.startswith("pending-gpu-")
    assert ordered.reason.startswith("pending: Ray's autoscaler has ordered it (gpu): ")

    ready = await site.until(lambda found: states(found) == ["ready", "ready"])
    assert [(node.gpus, node.cpus) for node in ready] == [(2, 2), (2, 2)]
    spec = RunSpec(name="tiny", command=("graceful",), env={"READY": str(tmp_path / "ready")})
    launch = WorkerLaunch(
        worker="w1", run="r1", node=ready[0].id, server_url="ws://x", token="secret", spec=spec
    )
    await site.cluster.launch(launch)
    await site.request(0)
    (stays,) = await site.until(lambda found: len(found) == 1)
    assert (stays.id, stays.state) == (ready[0].id, "ready")
    assert await site.cluster.alive("w1", "r1") is True

    site.allow(0)  # takes the node away without a notice
    async with asyncio.timeout(PATIENCE), contextlib.aclosing(site.cluster.changes()) as changes:
        while not isinstance(gone := await anext(changes), WorkerGone):
            pass
    assert gone == WorkerGone(
        worker="w1", run="r1", reason=f"node lost: {stays.id}: Terminated by autoscaler."
    )
    assert await site.until(lambda found: found == []) == []
