"""Runs on a real Ray cluster of several raylets, with GPUs that do not exist."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import time
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

pytest.importorskip("ray", exc_type=ImportError)

PATIENCE = 240.0
"""Seconds that an attempt may take to start: processes of Ray take ten on a loaded machine."""
POLL_SECONDS = 1.0
"""Time between looks: what looks all the time takes the processor from those that it waits for."""
whole = pytest.mark.skipif(
    "BABYSIT_TEST_RAY" not in os.environ,
    reason="takes minutes, and differs little from the loss of a node: BABYSIT_TEST_RAY=1 runs it",
)
_numbers = itertools.count(1)


class Site:
    """Three nodes of a test's own, with two GPUs each, and a control plane that uses them."""

    def __init__(self, bed: Bed) -> None:
        self.bed, self.label = bed, f"training-{next(_numbers)}"
        self.nodes: list[str] = []
        for _ in range(3):
            self.add()

    def add(self) -> str:
        """Start one more node."""
        name = f"{self.label}-gpu-{len(self.nodes) + 1}"
        self.bed.add(name, gpus=2, **{"for": self.label})
        self.nodes.append(name)
        return name

    def actors(self) -> dict[str, int]:
        """Worker -> pid of its actor's process."""
        found: dict[str, int] = self.bed.ask("actors", self.label)
        return found

    def used(self) -> dict[str, dict[str, float]]:
        """Node -> what is reserved on it."""
        found: dict[str, dict[str, float]] = self.bed.ask("used", "for", self.label)
        return found

    def given_back(self) -> None:
        """Wait until nothing is reserved."""

        def free() -> bool:
            if any(self.used().values()):
                time.sleep(POLL_SECONDS)
                return False
            return True

        until(free, "all is given back", 90)


@pytest.fixture
def site(ray_bed: Bed) -> Iterator[Site]:
    made = Site(ray_bed)
    yield made
    for name in made.nodes:
        ray_bed.ask("remove", name)


@pytest.fixture
def plane(servers: Servers, site: Site, tmp_path: Path) -> Iterator[ControlPlane]:
    with ray_plane(servers, site.bed, tmp_path / "home", site.label) as running:
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
        if any(key[0] == number and len(made) >= 12 for key, made in job.steps().items()):
            return True
        time.sleep(POLL_SECONDS)
        shown = plane.show(run)
        assert shown["state"] not in {"failed", "cancelled"}, shown["reason"]
        return False

    until(there, f"attempt {number} makes steps", DEAD_SECONDS + PATIENCE)
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


def finish(job: Job, plane: ControlPlane, run: str) -> list[str]:
    """Have the run end, and check its record; the reasons of its restarts."""
    job.finish()
    plane.state(run, "succeeded", seconds=90)
    check_record(plane, run, job, agents_died=True)
    return [restart["reason"] for restart in plane.show(run)["restarts"]]


@pytest.mark.timeout(900)
def test_a_spare_takes_over_from_a_node_whose_raylet_is_killed(
    plane: ControlPlane, site: Site, tmp_path: Path
) -> None:
    job = make_job(tmp_path, "survivor")
    run = plane.submit(job.spec)
    first = at_attempt(job, plane, run, 1)
    used = site.used()
    assert {node: used[node] for node in first} == {node: {"CPU": 1, "GPU": 2} for node in first}
    lost, healthy = sorted(first)
    warm = agent(first[healthy])

    site.bed.ask("kill", lost)
    shutil.rmtree(f"/dev/shm/babysit-{first[lost]}", ignore_errors=True)
    second = at_attempt(job, plane, run, 2)
    (spare,) = {*site.nodes} - {*first}
    assert {*second} == {healthy, spare}
    assert (second[healthy], agent(second[healthy])) == (first[healthy], warm)
    assert strays(first[lost]) == []
    directory = tmp_path / "nodes" / f"babysit-{first[lost]}"
    until(lambda: not directory.exists(), "the machine lives: nothing of the worker is left", 90)

    (reason,) = finish(job, plane, run)
    assert f"node lost: {lost}: " in reason
    site.given_back()


@whole
@pytest.mark.timeout(1500)
def test_a_run_survives_what_else_a_ray_cluster_does_to_it(
    plane: ControlPlane, site: Site, tmp_path: Path
) -> None:
    """The control store starts again, an actor is killed, a node drained, the server killed."""
    job = make_job(tmp_path, "survivor")
    run = plane.submit(job.spec)
    first = at_attempt(job, plane, run, 1)
    hit, healthy = sorted(first)

    site.bed.ask("kill_gcs")
    site.bed.ask("start_gcs")
    os.kill(site.actors()[first[hit]], signal.SIGKILL)
    second = at_attempt(job, plane, run, 2)
    assert second[healthy] == first[healthy]
    assert strays(first[hit]) == []

    (leaves,) = {*second} - {healthy}
    assert site.bed.ask("drain", leaves, 600) == ""
    third = at_attempt(job, plane, run, 3)
    assert {*third} == {healthy, *site.nodes} - {leaves}

    plane.kill()
    plane.start()
    reasons = finish(job, plane, run)
    assert "agent was ended with its actor" in reasons[0]
    assert "drain" in reasons[1]
    site.given_back()


@whole
@pytest.mark.timeout(900)
def test_what_a_dead_control_plane_left_is_given_back(
    plane: ControlPlane, site: Site, tmp_path: Path
) -> None:
    """The run ends while no server lives: its actors end with their agents."""
    job = make_job(tmp_path, "orphan")
    run = plane.submit(job.spec)
    at_attempt(job, plane, run, 1)
    plane.kill()
    try:
        for worker in site.actors():
            os.kill(agent(worker), signal.SIGTERM)
        site.given_back()
    finally:
        plane.start()
    job.finish()
    plane.state(run, "succeeded", seconds=90)
