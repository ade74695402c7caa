"""The Kubernetes cluster on a real API server: ends, nodes, and an API that fails."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import os
import re
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from jobs.clock import SystemClock
from jobs.spec import RunSpec
from orchestrator.clusters.kubernetes import names, requests
from orchestrator.clusters.kubernetes.client import Access, Api
from orchestrator.clusters.kubernetes.cluster import KubernetesCluster
from orchestrator.clusters.kubernetes.manifests import PodSettings
from orchestrator.clusters.kubernetes.nodes import NodeSettings
from orchestrator.clusters.port import (
    Change,
    InventoryChanged,
    WorkerGone,
    WorkerLaunch,
    WorkerLeaving,
    WorkerStuck,
)
from tests.chart_files import CHART
from tests.kubernetes.bed import Bed
from tests.kubernetes.containers import Mount
from tests.kubernetes.pod_run import PodRun
from tests.kubernetes.proxy import Proxy
from tests.kubernetes.servers import ADMIN_TOKEN, Servers, directory_of_programs, kubeconfig

T = TypeVar("T")
LOOP = "trap 'exit 0' TERM; while :; do sleep 0.05; done"
TEMPLATE = {"spec": {"containers": [{"name": "worker", "command": ["/bin/sh", "-c", LOOP]}]}}
CLOCK = SystemClock()
_numbers = itertools.count(1)


class Site:
    """One cluster behind a proxy, and all that it has said."""

    def __init__(self, bed: Bed, proxy: Proxy, directory: Path) -> None:
        self.bed, self.proxy = bed, proxy
        self.config = directory / "kubeconfig"
        self.write_token(ADMIN_TOKEN)
        self.api = Api(Access(kubeconfig=self.config, namespace=bed.namespace), CLOCK)
        self.settings = PodSettings(
            namespace=bed.namespace,
            instance="site",
            image="any",
            template=TEMPLATE,
            stop_seconds=1,
        )
        self.cluster = self.another()
        self.said: list[Change] = []
        self.reader = asyncio.create_task(self._read())

    def another(self, selector: str = "") -> KubernetesCluster:
        """A view of the same cluster, of all nodes or some."""
        api = Api(Access(kubeconfig=self.config, namespace=self.bed.namespace), CLOCK)
        api = api if selector else self.api
        nodes = NodeSettings(instance="site")
        return KubernetesCluster(api, CLOCK, self.settings, nodes, selector)

    def write_token(self, token: str) -> None:
        self.config.write_text(kubeconfig(self.proxy.url, self.bed.servers.ca, token))

    async def _read(self) -> None:
        while True:
            with contextlib.suppress(Exception):  # as a leader, which reads again
                async for change in self.cluster.changes():
                    self.said.append(change)
                return
            await CLOCK.sleep(0.1)

    async def until(self, condition: Callable[[], T | None], what: str) -> T:
        async with asyncio.timeout(60):
            while not (found := await asyncio.to_thread(condition)):
                await CLOCK.sleep(0.05)
        assert found, what
        return found

    async def gone(self, worker: str) -> str:
        """Why a worker is gone, once it is."""
        ends = lambda: [c for c in self.of(worker) if isinstance(c, WorkerGone)]  # noqa: E731
        return (await self.until(ends, f"{worker} is gone"))[0].reason

    def of(self, worker: str) -> list[Any]:
        return [change for change in self.said if getattr(change, "worker", "") == worker]

    async def start(self, worker: str | None = None, **launch: Any) -> str:
        """Launch a worker; its name."""
        worker = worker or f"w{next(_numbers)}"
        await self.cluster.launch(order(worker, **launch))
        return worker

    async def running(self, worker: str) -> PodRun:
        path = self.bed.path("Pod", f"babysit-{worker}")
        await self.until(
            lambda: (self.bed.api.find(path) or {}).get("status", {}).get("phase") == "Running",
            f"{worker} runs",
        )
        return self.bed.run(f"babysit-{worker}")

    async def close(self) -> None:
        for worker in {pod["metadata"]["annotations"][names.WORKER] for pod in self.pods()}:
            await self.cluster.stop(worker, "r1")
            await self.gone(worker)
        await self.cluster.close()
        await self.reader

    def pods(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.bed.api.get(self.bed.path("Pod"))["items"]
        return [pod for pod in found if names.WORKER in pod["metadata"].get("annotations", {})]


async def read(cluster: KubernetesCluster) -> list[Change]:
    """All that it says until it is closed."""
    return [change async for change in cluster.changes()]


def order(worker: str, node: str = "node-1", run: str = "r1", **spec: Any) -> WorkerLaunch:
    return WorkerLaunch(
        worker=worker,
        run=run,
        node=node,
        server_url="ws://127.0.0.1:1/agent",
        token="secret",
        spec=RunSpec.model_validate({"name": "tiny", "command": ["x"], **spec}),
    )


@pytest.fixture(scope="module")
def own_bed(kubernetes_servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    with Bed(kubernetes_servers, tmp_path_factory.mktemp("shared"), nodes=4) as bed:
        yield bed


@pytest.fixture
async def site(own_bed: Bed, tmp_path: Path) -> AsyncIterator[Site]:
    with Proxy(own_bed.servers) as proxy:
        site = Site(own_bed, proxy, tmp_path)
        yield site
        await site.close()


# --- a server that fails ------------------------------------------------------------------------


async def test_errors_that_pass_start_one_pod(site: Site) -> None:
    site.proxy.refuse("create services", 409)
    site.proxy.refuse("create secrets", 429, retry_after=1)
    site.proxy.refuse("create pods", 500, act=True)  # it was made, and the answer is lost
    worker = await site.start()
    assert site.proxy.calls["create pods"] == 2
    assert len(site.pods()) == 1
    assert await site.cluster.alive(worker, "r1") is True
    await site.cluster.launch(order(worker))
    assert len(site.pods()) == 1


async def test_an_api_that_is_away_loses_nothing(site: Site) -> None:
    first = await site.start()
    runs = await site.running(first)
    site.proxy.go_away()
    launch = asyncio.create_task(site.start())
    runs.kill()
    await site.until(lambda: "terminated" in runs.containers[0].state, "it is dead")
    assert not launch.done()
    site.proxy.come_back()
    second = await launch
    assert await site.gone(first) == "agent was killed by SIGKILL"
    await site.running(second)
    await site.until(lambda: len(site.pods()) == 1, "the first Pod is released")


async def test_watches_that_are_cut_or_too_old_miss_nothing(site: Site) -> None:
    worker = await site.start()
    runs = await site.running(worker)
    site.proxy.refuse("watch pods", 410)
    assert site.proxy.cut()
    runs.kill("OOMKilled")
    assert "OOMKilled" in await site.gone(worker)


async def test_an_expired_token_is_read_again(site: Site) -> None:
    worker = await site.start()
    site.write_token("another")  # what is in use stays in use until the server refuses it
    site.proxy.refuse("get pods", 401)
    site.write_token(ADMIN_TOKEN)
    assert await site.cluster.alive(worker, "r1") is True
    assert site.proxy.calls["get pods"] == 2


# --- ends ---------------------------------------------------------------------------------------


async def test_an_eviction_is_a_notice_and_then_an_end(site: Site) -> None:
    worker = await site.start()
    await site.running(worker)
    site.bed.evict(f"babysit-{worker}")
    assert await site.gone(worker) == "agent exited with code 0"
    notice = next(c for c in site.of(worker) if isinstance(c, WorkerLeaving))
    assert notice.reason == "its Pod is being deleted"
    await site.cluster.launch(order(worker))  # the Pod is released: the Secret is the proof
    await site.until(lambda: len(site.of(worker)) > 2, "it is told again")
    assert site.pods() == []


async def test_an_agent_that_another_image_lends_is_what_the_pod_starts(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "lent" / "bin" / "babysit-agent"
    program.parent.mkdir(parents=True)
    program.write_text(
        '#!/bin/sh\n[ "$0" = /opt/babysit/bin/babysit-agent ] && test -r "$1" && exit 7\n'
    )
    program.chmod(0o755)
    node = site.bed.nodes["node-1"]
    image = [*node.image_mounts, Mount(program.parents[1], "/opt/babysit")]
    monkeypatch.setattr(node, "image_mounts", image)
    site.settings = dataclasses.replace(site.settings, agent_image="agent:1", template={})
    await site.another().launch(order("lent"))
    assert await site.gone("lent") == "agent exited with code 7"


async def test_an_image_that_cannot_be_pulled_is_told_at_once(site: Site) -> None:
    site.bed.image_faults["typo:1"] = ("ErrImagePull", "manifest unknown")
    worker = await site.start(image="typo:1")
    stuck = await site.until(lambda: site.of(worker), "it is stuck")
    assert stuck == [
        WorkerStuck(worker=worker, run="r1", reason="ErrImagePull: manifest unknown", hopeless=True)
    ]


async def test_a_pod_that_does_not_fit_is_told_in_the_schedulers_words(site: Site) -> None:
    worker = await site.start(resources={"cpus_per_node": 64})
    (stuck,) = await site.until(lambda: site.of(worker), "it is stuck")
    assert (stuck.elsewhere, stuck.hopeless) == (True, False)
    assert "Insufficient cpu" in stuck.reason


async def test_a_spec_that_the_server_refuses_is_refused(site: Site) -> None:
    wrong = {"pod": {"spec": {"dnsPolicy": "Sometimes"}}}
    with pytest.raises(ValueError, match="dnsPolicy"):
        await site.start(kubernetes=wrong)


async def test_a_late_pod_of_a_stopped_worker_cannot_start(site: Site) -> None:
    """An old leader's request may arrive after the new leader has called the worker gone."""
    await site.cluster.stop("late", "r1")
    assert await site.gone("late") == "agent never started"
    secret = site.bed.api.get(site.bed.path("Secret", "babysit-late"))
    assert "data" not in secret
    await site.cluster.launch(order("late"))
    assert site.pods() == []


async def test_a_quota_that_is_used_up_is_told_and_waited_for(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "RETRY_PAUSE", 0.2)
    meta = {"name": "full"}
    site.bed.create({"kind": "ResourceQuota", "metadata": meta, "spec": {"hard": {"pods": "0"}}})
    launch = asyncio.create_task(site.start("hungry"))
    (stuck,) = await site.until(lambda: site.of("hungry"), "it waits")
    assert (stuck.hopeless, stuck.elsewhere) == (False, False)
    assert "quota" in stuck.reason
    assert "Grant it" not in stuck.reason
    site.bed.api.delete(site.bed.path("ResourceQuota", "full"))
    await launch
    await site.running("hungry")
    assert site.of("hungry")[-1] == WorkerStuck(worker="hungry", run="r1", reason="")


async def test_what_the_clusters_owner_does_not_allow_is_refused_at_once(site: Site) -> None:
    limit = {"limits": [{"type": "Container", "max": {"cpu": "1500m"}}]}
    site.bed.create({"kind": "LimitRange", "metadata": {"name": "small"}, "spec": limit})
    try:
        with pytest.raises(ValueError, match="maximum cpu usage per Container"):
            await site.start(resources={"cpus_per_node": 2})
    finally:
        site.bed.api.delete(site.bed.path("LimitRange", "small"))


async def test_a_pod_that_is_made_after_its_worker_was_stopped_is_deleted(site: Site) -> None:
    """It could not start, and would keep its node's resources from all others."""
    fault = site.proxy.refuse("create pods", 500, times=1000)
    launch = asyncio.create_task(site.start("slow"))
    await site.until(lambda: site.proxy.calls["create pods"] >= 1, "its Pod is asked for")
    await site.cluster.stop("slow", "r1")
    assert await site.gone("slow") == "agent never started"
    fault.times = 0
    await launch
    await site.until(lambda: site.pods() == [], "nothing is left")


async def test_a_service_that_somebody_deletes_is_made_again(site: Site) -> None:
    first = await site.start(run="r7")
    await site.running(first)
    site.bed.api.delete(site.bed.path("Service", "babysit-r7"))
    await site.gone(first)
    second = await site.start(run="r7")
    owner = site.bed.api.get(site.bed.path("Service", "babysit-r7"))["metadata"]["uid"]
    (reference,) = site.bed.api.get(site.bed.path("Pod", f"babysit-{second}"))["metadata"][
        "ownerReferences"
    ]
    assert reference["uid"] == owner
    await site.cluster.stop(second, "r7")
    await site.gone(second)


async def test_a_pod_that_loses_its_labels_is_not_gone(site: Site) -> None:
    worker = await site.start()
    await site.running(worker)
    path = site.bed.path("Pod", f"babysit-{worker}")
    site.bed.api.patch(path, {"metadata": {"labels": {names.COMPONENT: None}}})
    await site.until(
        lambda: site.bed.api.get(path)["metadata"]["labels"].get(names.COMPONENT), "it has them"
    )
    assert site.of(worker) == []
    assert await site.cluster.alive(worker, "r1") is True


# --- nodes --------------------------------------------------------------------------------------


async def test_the_pods_of_others_take_from_a_node(site: Site) -> None:
    container = {"name": "x", "image": "x", "command": ["/bin/sh", "-c", LOOP]}
    container["resources"] = {"requests": {"cpu": "1500m", "memory": "1Gi"}}
    pod = {"kind": "Pod", "metadata": {"name": "other"}, "spec": {"containers": [container]}}
    pod["spec"]["nodeName"] = "node-2"
    site.bed.create(pod)
    await site.start(node="node-2")  # ours do not count

    async def free() -> dict[str, tuple[float, int]]:
        return {node.id: (node.cpus, node.memory) for node in await site.cluster.nodes()}

    async with asyncio.timeout(30):
        while (await free())["node-2"] != (2.5, 7 * 2**30):
            await CLOCK.sleep(0.05)
    assert (await free())["node-1"] == (4, 8 * 2**30)
    site.bed.delete_pod("other", grace=0)


async def test_a_cordon_is_mirrored_with_its_reason_and_taken_back(site: Site) -> None:
    await site.cluster.nodes()
    path = "/api/v1/nodes/node-2"
    site.bed.api.patch("/api/v1/nodes/node-3", {"spec": {"unschedulable": True}})
    await site.cluster.cordon({"node-2": "Xid 79, says the driver"})
    node = site.bed.api.get(path)
    assert node["spec"]["unschedulable"] is True
    assert node["metadata"]["annotations"][names.REASON] == "Xid 79, says the driver"
    async with asyncio.timeout(30):
        while "unschedulable" in site.bed.api.get(path)["spec"]:
            await site.cluster.cordon({})
            await CLOCK.sleep(0.05)
    assert site.bed.api.get("/api/v1/nodes/node-3")["spec"]["unschedulable"]
    state = {node.id: node.state for node in await site.cluster.nodes()}
    assert state["node-3"] == "cordoned"
    site.bed.api.patch("/api/v1/nodes/node-3", {"spec": {"unschedulable": None}})


async def test_a_lost_node_is_confirmed_when_its_object_goes(site: Site) -> None:
    worker = await site.start(node="node-4")
    await site.running(worker)
    site.bed.nodes["node-4"].lose()
    site.bed.until_ready("node-4", "Unknown")
    assert await site.cluster.alive(worker, "r1") is None  # it may train on
    assert not [c for c in site.of(worker) if isinstance(c, WorkerGone)]
    site.bed.nodes["node-4"].remove()
    assert "node lost: node-4 has left the cluster" in await site.gone(worker)


async def test_a_node_that_loses_the_label_that_selects_it_is_not_lost(site: Site) -> None:
    path = "/api/v1/nodes/node-3"
    site.bed.api.patch(path, {"metadata": {"labels": {"pool": "training"}}})
    worker = await site.start(node="node-3")
    await site.running(worker)
    cluster = site.another("pool=training")
    reading = asyncio.create_task(read(cluster))
    assert [node.id for node in await cluster.nodes()] == ["node-3"]
    assert await cluster.alive(worker, "r1") is True
    site.bed.api.patch(path, {"metadata": {"labels": {"pool": None}}})
    async with asyncio.timeout(30):
        while await cluster.nodes():
            await CLOCK.sleep(0.05)
    assert await cluster.alive(worker, "r1") is None
    await cluster.close()
    assert {type(change) for change in await reading} <= {InventoryChanged}


# --- what it costs ------------------------------------------------------------------------------


def asking(site: Site) -> int:
    """Requests but for those of the cache, which lists and watches again whenever it must."""
    return sum(count for verb, count in site.api.calls.items() if verb not in {"GET", "WATCH"})


async def test_a_launch_is_two_requests_and_a_run_leaves_nothing(site: Site) -> None:
    await site.cluster.nodes()
    before = asking(site)
    workers = await asyncio.gather(*(site.start(run="r9") for _ in range(6)))
    assert asking(site) - before == 2 * 6 + 1
    await site.cluster.keep_runs([])  # Pods of the run are alive: it is left alone
    assert site.bed.api.find(site.bed.path("Service", "babysit-r9"))
    for worker in workers:
        await site.cluster.stop(worker, "r9")
        await site.gone(worker)

    async with asyncio.timeout(60):
        while site.bed.api.find(site.bed.path("Service", "babysit-r9")):
            await site.cluster.keep_runs([])
            await CLOCK.sleep(0.1)
    mine = f"{names.RUN}=r9"
    await site.until(
        lambda: not site.bed.api.get(site.bed.path("Secret"), labelSelector=mine)["items"],
        "Secrets are collected",
    )


async def test_what_runs_have_left_is_removed_without_babysit(site: Site) -> None:
    """By the commands of the chart's README: nobody is there to take the finalizers off."""
    access = Access(kubeconfig=site.config, namespace=site.bed.namespace)
    pods = PodSettings(
        namespace=site.bed.namespace, instance="left", image="any", template=TEMPLATE
    )
    left = KubernetesCluster(Api(access, CLOCK), CLOCK, pods, NodeSettings(instance="left"))
    await left.launch(order("left", run="left"))
    await left.close()
    other = await site.start()  # of another release in the namespace, which lives
    readme = (CHART / "README.md").read_text()
    (commands,) = re.findall(
        r"^mine=.+?^kubectl -n babysit delete.+?\n", readme, re.DOTALL | re.MULTILINE
    )
    commands = commands.replace("instance=babysit", "instance=left")
    done = await asyncio.to_thread(
        subprocess.run,
        ["/bin/sh", "-ec", commands.replace("-n babysit", f"-n {site.bed.namespace}")],
        env={
            "HOME": str(site.config.parent),  # kubectl keeps a cache there
            "KUBECONFIG": str(site.bed.servers.kubeconfig),
            "PATH": f"{directory_of_programs()}:{os.environ['PATH']}",
        },
        timeout=60,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for kind in ("Pod", "Service", "Secret"):
        mine = f"{names.RUN}=left"
        assert not site.bed.api.get(site.bed.path(kind), labelSelector=mine)["items"], kind
    assert await site.cluster.alive(other, "r1")
