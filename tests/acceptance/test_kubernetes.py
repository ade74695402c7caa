"""Runs on a real API server, scheduler and controller-manager; their Pods are real processes."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import JOB, Job
from tests.acceptance.record import check_record
from tests.control_plane import ControlPlane, Servers, until
from tests.kubernetes import servers as kubernetes
from tests.kubernetes.api import Object
from tests.kubernetes.bed import Bed
from tests.kubernetes.plane import kubernetes_plane
from tests.kubernetes.proxy import Proxy
from tests.launch import TRAIN


@pytest.fixture(scope="module")
def shared_bed(
    kubernetes_servers: kubernetes.Servers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bed]:
    """A cluster of three nodes: one more than the runs need."""
    with Bed(kubernetes_servers, tmp_path_factory.mktemp("shared"), nodes=3) as made:
        yield made


@pytest.fixture(scope="module")
def proxy(kubernetes_servers: kubernetes.Servers) -> Iterator[Proxy]:
    """The control plane's way to the API server."""
    with Proxy(kubernetes_servers) as made:
        yield made


@pytest.fixture(scope="module")
def cluster_plane(
    servers: Servers, shared_bed: Bed, proxy: Proxy, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ControlPlane]:
    """A control plane outside the cluster, for all of these tests."""
    home = tmp_path_factory.mktemp("plane") / "home"
    with kubernetes_plane(servers, shared_bed, home, url=proxy.url) as running:
        yield running


def new_directory(bed: Bed, name: str) -> Path:
    """On the file server; a second try of a test gets another."""
    return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=bed.shared))


def make_job(bed: Bed, name: str, **spec: Any) -> Job:
    """A run of `job.py` on two nodes, whose records and checkpoints lie on the file server."""
    directory = new_directory(bed, name)
    scratch = directory / "scratch"
    scratch.mkdir()
    (directory / ".babysitignore").write_text("scratch\ncheckpoints\n")
    checkpoint = {
        "directory": str(directory / "checkpoints"),
        "every_steps": 10,
        "memory_every_steps": 1,
        "good_after_steps": 10,
    }
    body = {
        "name": name,
        "command": ["python", str(JOB), "--scratch", str(scratch)],
        "resources": {"nodes": 2},
        "preload": ["babysit"],
        "checkpoint": checkpoint,
        **spec,
    }
    (directory / "run.yaml").write_text(json.dumps(body))
    return Job(directory / "run.yaml", scratch)


def pods(bed: Bed, run: str) -> dict[str, Object]:
    """The Pods of a run that have not ended, by node."""
    found = bed.api.get(bed.path("Pod"))["items"]
    return {
        pod["spec"]["nodeName"]: pod
        for pod in found
        if pod["metadata"].get("annotations", {}).get("babysit/run") == run
        and pod["status"].get("phase") == "Running"
        and "deletionTimestamp" not in pod["metadata"]
    }


def at_attempt(job: Job, plane: ControlPlane, run: str, number: int, steps: int = 3) -> None:
    """Wait until an attempt has made steps."""

    def there() -> bool:
        shown = plane.show(run)
        assert shown["state"] not in {"failed", "cancelled"}, shown["reason"]
        return any(key[0] == number and len(made) >= steps for key, made in job.steps().items())

    until(there, f"attempt {number} makes steps", 90)


def finish(job: Job, plane: ControlPlane, run: str) -> None:
    job.finish()
    plane.state(run, "succeeded")
    check_record(plane, run, job, agents_died=True)


def test_a_run_survives_what_a_cluster_does_to_its_pods(
    cluster_plane: ControlPlane, shared_bed: Bed
) -> None:
    """Deleted, evicted, killed for its memory: each time it goes on where it was, and says why."""
    plane, bed = cluster_plane, shared_bed
    job = make_job(bed, "pods")
    run = plane.submit(job.spec)
    at_attempt(job, plane, run, 1)
    victim = next(iter(pods(bed, run).values()))
    bed.delete_pod(victim["metadata"]["name"])
    at_attempt(job, plane, run, 2)
    victim = next(iter(pods(bed, run).values()))
    bed.disrupt(victim["metadata"]["name"])
    bed.evict(victim["metadata"]["name"])
    at_attempt(job, plane, run, 3)
    victim = next(iter(pods(bed, run).values()))
    bed.run(victim["metadata"]["name"]).kill("OOMKilled")
    at_attempt(job, plane, run, 4)
    finish(job, plane, run)
    deleted, evicted, killed = plane.show(run)["restarts"]
    assert "its Pod is being deleted" in deleted["reason"]
    assert "EvictionByEvictionAPI" in evicted["reason"]
    assert "OOMKilled" in killed["reason"]
    # A run that is told beforehand saves, and pays with no budget.
    assert [(r["cause"], r["lost_steps"]) for r in (deleted, evicted)] == [("preemption", 0)] * 2
    assert killed["class"] == "worker_lost"


def test_a_run_does_not_notice_that_the_api_is_away_and_the_leader_dies(
    cluster_plane: ControlPlane, shared_bed: Bed, proxy: Proxy
) -> None:
    plane, bed = cluster_plane, shared_bed
    job = make_job(bed, "away")
    run = plane.submit(job.spec)
    at_attempt(job, plane, run, 1)
    proxy.go_away()
    plane.kill()
    plane.start()
    at_attempt(job, plane, run, 1, steps=1500)  # of 20 ms: half a minute
    proxy.come_back()
    finish(job, plane, run)
    assert len(plane.attempts(run)) == 1


@pytest.mark.slow
def test_fsdp_goes_on_from_a_spare_when_its_node_is_lost(
    cluster_plane: ControlPlane, shared_bed: Bed
) -> None:
    """Two ranks of a sharded model; one node goes without a word, and its memory with it."""
    plane, bed = cluster_plane, shared_bed
    directory = new_directory(bed, "gpt")
    body = {
        "name": "gpt",
        # Far more steps than pass between two looks: it must still train when the node goes.
        "command": ["python", str(TRAIN), "--steps", "240"],
        "resources": {"nodes": 2},
        "checkpoint": {
            "directory": str(directory / "checkpoints"),
            "every_steps": 20,
            "memory_every_steps": 1,
        },
        "env": {"OMP_NUM_THREADS": "1"},
    }
    (directory / "run.yaml").write_text(json.dumps(body))
    run = plane.submit(directory / "run.yaml")
    until(lambda: (plane.show(run).get("step") or 0) >= 24, "it trains", 120)
    lost = min(pods(bed, run))
    bed.nodes[lost].lose()
    bed.until_ready(lost, "Unknown")
    # The machine is gone for good, and the cloud says so: from then on nothing on it can be alive.
    bed.nodes[lost].remove()
    try:
        plane.state(run, "succeeded", seconds=300)
    finally:
        bed.nodes[lost].register()  # the next test, or a second try, needs it
    first, second = plane.attempts(run)
    assert lost in {seat.node for seat in first.seats}
    assert lost not in {seat.node for seat in second.seats}
    assert "/directory/" in (second.restored or "")  # memory went with the node
    assert second.start_step >= 20
