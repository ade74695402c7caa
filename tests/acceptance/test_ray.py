"""Runs on a real Ray cluster of several raylets, with GPUs that do not exist."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.agent.reaper import strays
from tests.acceptance.conftest import JOB, Job
from tests.acceptance.record import check_record
from tests.control_plane import ControlPlane, Servers, until
from tests.ray.bed import DEAD_SECONDS, Bed
from tests.ray.plane import ray_plane

pytestmark = pytest.mark.skipif(
    "BABYSIT_TEST_RAY" not in os.environ,
    reason="Ray starts in half a minute, and gives up what takes 30 s: BABYSIT_TEST_RAY=1 runs it",
)

NODES = ("gpu-1", "gpu-2", "gpu-3")


@pytest.fixture(scope="module")
def plane(
    servers: Servers, ray_bed: Bed, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ControlPlane]:
    for name in NODES:
        ray_bed.add(name, gpus=2, **{"for": "training"})
    home = tmp_path_factory.mktemp("ray") / "home"
    with ray_plane(servers, ray_bed, home, "training") as running:
        yield running


def make_job(root: Path, name: str, **spec: Any) -> Job:
    """A run of `job.py` on two nodes with all their GPUs; its records lie outside of the nodes."""
    directory, scratch = root / name, root / "scratch"
    directory.mkdir()
    scratch.mkdir()
    checkpoint = {
        "directory": str(root / "checkpoints"),
        "every_steps": 10,
        "memory_every_steps": 1,
        "good_after_steps": 10,
    }
    shutil.copy(JOB, directory)
    body = {
        "name": name,
        "command": ["python", JOB.name, "--scratch", str(scratch)],
        "resources": {"nodes": 2, "gpus_per_node": 2, "processes_per_node": 1},
        "preload": ["babysit"],
        "checkpoint": checkpoint,
        **spec,
    }
    (directory / "run.yaml").write_text(json.dumps(body))
    return Job(directory / "run.yaml", scratch)


def at_attempt(job: Job, plane: ControlPlane, run: str, number: int) -> dict[str, str]:
    """Wait until an attempt has made steps; node -> its worker. Ray may have to notice a death."""

    def there() -> bool:
        shown = plane.show(run)
        assert shown["state"] not in {"failed", "cancelled"}, shown["reason"]
        return any(key[0] == number and len(made) >= 12 for key, made in job.steps().items())

    until(there, f"attempt {number} makes steps", DEAD_SECONDS + 120)
    seats = plane.attempts(run)[number - 1].seats
    return {seat.node: seat.worker for seat in seats}


def agent(worker: str) -> int:
    """Pid of a worker's agent."""
    (found,) = (
        pid
        for pid in strays(worker)
        if b"babysit.agent" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        and f"babysit-{worker}/config.json".encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
        and Path(f"/proc/{pid}/stat").read_text().split()[4] == str(pid)
    )
    return found


def free(bed: Bed) -> bool:
    """Whether nothing is reserved on the nodes."""
    return not any(bed.ask("used", "for", "training").values())


def test_a_run_survives_what_a_ray_cluster_does_to_it(
    plane: ControlPlane, ray_bed: Bed, tmp_path: Path
) -> None:
    """A raylet is killed, an actor is killed, a node is drained, the control plane dies."""
    job = make_job(tmp_path, "survivor")
    run = plane.submit(job.spec)
    first = at_attempt(job, plane, run, 1)
    used = ray_bed.ask("used", "for", "training")
    assert {node: used[node] for node in first} == {node: {"CPU": 1, "GPU": 2} for node in first}
    lost, healthy = sorted(first)
    warm = agent(first[healthy])

    ray_bed.ask("kill", lost)
    shutil.rmtree(f"/dev/shm/babysit-{first[lost]}", ignore_errors=True)
    second = at_attempt(job, plane, run, 2)
    (spare,) = {*NODES} - {*first}
    assert {*second} == {healthy, spare}
    assert (second[healthy], agent(second[healthy])) == (first[healthy], warm)
    assert strays(first[lost]) == []

    os.kill(ray_bed.ask("actors", "training")[second[spare]], signal.SIGKILL)
    third = at_attempt(job, plane, run, 3)
    assert third[healthy] == first[healthy]
    assert strays(second[spare]) == []

    ray_bed.add("gpu-4", gpus=2, **{"for": "training"})
    assert ray_bed.ask("drain", spare, 600) == ""
    fourth = at_attempt(job, plane, run, 4)
    assert {*fourth} == {healthy, "gpu-4"}

    plane.kill()
    plane.start()
    job.finish()
    plane.state(run, "succeeded", seconds=90)
    check_record(plane, run, job, agents_died=True)
    reasons = [restart["reason"] for restart in plane.show(run)["restarts"]]
    until(lambda: free(ray_bed), "all is given back", 90)
    (tmp_path / "reasons.txt").write_text("\n".join(reasons))


def test_what_a_dead_control_plane_left_is_given_back(
    plane: ControlPlane, ray_bed: Bed, tmp_path: Path
) -> None:
    """The run ends while no server lives: its actors end with their agents."""
    job = make_job(tmp_path, "orphan")
    run = plane.submit(job.spec)
    at_attempt(job, plane, run, 1)
    plane.kill()
    try:
        for worker in ray_bed.ask("actors", "training"):
            os.kill(agent(worker), signal.SIGTERM)
        until(lambda: free(ray_bed), "all is given back", 90)
    finally:
        plane.start()
    job.finish()
    plane.state(run, "succeeded", seconds=90)
