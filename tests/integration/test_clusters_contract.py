"""What every cluster promises (orchestrator.clusters.port), asked of each implementation."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Protocol

import pytest

from jobs.agent.reaper import kill_strays, strays
from jobs.clock import SystemClock
from jobs.spec import RunSpec
from orchestrator.clusters.errors import ClusterError
from orchestrator.clusters.kubernetes.client import Access, Api
from orchestrator.clusters.kubernetes.cluster import KubernetesCluster
from orchestrator.clusters.kubernetes.manifests import PodSettings
from orchestrator.clusters.kubernetes.nodes import NodeSettings
from orchestrator.clusters.local.cluster import LocalCluster, LocalClusterSettings
from orchestrator.clusters.local.worker_records import Records
from orchestrator.clusters.port import Change, Cluster, WorkerGone, WorkerLaunch
from orchestrator.clusters.ray import edge as ray_edge
from orchestrator.clusters.ray.cluster import RayCluster, RaySettings
from orchestrator.clusters.ray.edge import Edge
from orchestrator.clusters.simulated import SimulatedCluster
from orchestrator.core.messages.events import NodeInfo
from tests.kubernetes.bed import Bed
from tests.kubernetes.servers import Servers
from tests.ray.bed import Bed as RayBed

_numbers = itertools.count(1)
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


class KubernetesSite:
    """Pods on a real API server, in a namespace of their own."""

    def __init__(self, bed: Bed, home: Path) -> None:
        self.bed, self.namespace = bed, f"contract-{next(_numbers)}"
        os.mkfifo(home / "ready")
        self.fifo = os.open(home / "ready", os.O_RDONLY | os.O_NONBLOCK)
        bed.create_namespace(self.namespace)
        mount = {"name": "home", "mountPath": str(home)}
        command = ["python", str(STAND_IN)]
        container = {
            "name": "worker",
            "command": command,
            "volumeMounts": [mount],
            # The local cluster, on the same machine, finds what is left of its `w1` by this mark.
            "env": [{"name": "BABYSIT_WORKER", "value": "of-a-pod"}],
        }
        volume = {"name": "home", "hostPath": {"path": str(home)}}
        template = {"spec": {"containers": [container], "volumes": [volume]}}
        self.settings = PodSettings(
            namespace=self.namespace,
            instance="contract",
            image="any",
            template=template,
            stop_seconds=1,
        )
        self.cluster = self._open()

    def _open(self) -> KubernetesCluster:
        access = Access(kubeconfig=self.bed.servers.kubeconfig, namespace=self.namespace)
        api = Api(access, SystemClock())
        return KubernetesCluster(api, SystemClock(), self.settings, NodeSettings(), "for=contract")

    def kill(self, worker: str) -> None:
        path = self.bed.path("Pod", f"babysit-{worker}", self.namespace)
        running = self.bed.until(
            lambda: (pod := self.bed.api.get(path))["status"].get("phase") == "Running" and pod,
            f"{worker} runs",
        )
        runs = self.bed.nodes[running["spec"]["nodeName"]].pods()
        next(run for run in runs if run.uid == running["metadata"]["uid"]).kill()

    async def reopen(self) -> None:
        await self.cluster.close()
        self.cluster = self._open()

    async def close(self) -> None:
        await self.cluster.close()
        os.close(self.fifo)
        for pod in self.bed.api.get(self.bed.path("Pod", "", self.namespace))["items"]:
            path = self.bed.path("Pod", pod["metadata"]["name"], self.namespace)
            self.bed.api.delete(path, grace=1)
            self.bed.api.patch(path, {"metadata": {"finalizers": None}})
        self.bed.api.delete(f"/api/v1/namespaces/{self.namespace}")


class RaySite:
    """Actors on real raylets, in a namespace of their own."""

    def __init__(self, address: str, home: Path) -> None:
        self.home, self.address = home, address
        self.namespace = f"contract-{next(_numbers)}"
        os.mkfifo(home / "ready")
        self.fifo = os.open(home / "ready", os.O_RDONLY | os.O_NONBLOCK)
        self.cluster = self._open()

    def _open(self) -> RayCluster:
        clock = SystemClock()
        edge = Edge(self.address, self.namespace, self.home / "ray.log", clock)
        settings = RaySettings(
            directory=str(self.home),
            nodes={"for": "contract"},
            agent=(sys.executable, str(STAND_IN)),
            stop_seconds=1,
        )
        return RayCluster(edge, clock, settings)

    def kill(self, worker: str) -> None:
        while not (pids := strays(worker)):  # it becomes the agent: for a moment without its mark
            pass
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    async def reopen(self) -> None:
        await self.cluster.close()
        self.cluster = self._open()

    async def close(self) -> None:
        for worker in ("w1", "w2", "w3"):
            with contextlib.suppress(ClusterError):  # the test has closed it
                await self.cluster.stop(worker, "r1")
            while strays(worker):
                await SystemClock().sleep(0.1)
        await self.cluster.close()
        os.close(self.fifo)


@pytest.fixture(scope="module")
def contract_ray(ray_bed: RayBed) -> Iterator[str]:
    for name in ("node-1", "node-2"):
        ray_bed.add(name, **{"for": "contract"})
    with pytest.MonkeyPatch.context() as patched:
        # Each test starts a process that imports ray, on a machine that does other work, too.
        patched.setattr(ray_edge, "CONNECT_SECONDS", 200.0)
        yield ray_bed.address


@pytest.fixture(scope="module")
def contract_bed(
    kubernetes_servers: Servers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bed]:
    labels = {name: {"for": "contract"} for name in ("node-1", "node-2")}
    with Bed(kubernetes_servers, tmp_path_factory.getbasetemp(), labels=labels) as bed:
        yield bed


@pytest.fixture(params=["local", "simulated", "kubernetes", "ray"])
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    site: LocalSite | SimulatedSite | KubernetesSite | RaySite
    if request.param == "local":
        site = LocalSite(tmp_path)
    elif request.param == "simulated":
        site = SimulatedSite()
    elif request.param == "ray":
        site = RaySite(request.getfixturevalue("contract_ray"), tmp_path)
    else:
        site = KubernetesSite(request.getfixturevalue("contract_bed"), tmp_path)
    yield site
    await site.close()


@pytest.fixture
def launch(tmp_path: Path) -> WorkerLaunch:
    spec = RunSpec(name="tiny", command=("graceful",), env={"READY": str(tmp_path / "ready")})
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
        gone: list[WorkerGone] = []
        while len(gone) < count:
            if isinstance(change := await anext(changes), WorkerGone):
                gone.append(change)
        return gone


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


async def _all(cluster: Cluster) -> list[Change]:
    return [change async for change in cluster.changes()]
