"""The scheduler at work: real agents and ranks make room, take over, grow and come back."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import Jobs
from tests.acceptance.record import check_record
from tests.control_plane import ControlPlane, Servers, control_plane, until


@pytest.fixture
def plane(servers: Servers, tmp_path: Path) -> Iterator[ControlPlane]:
    """Three nodes of one core each."""
    home = tmp_path / "home"
    with control_plane(servers, home, local_nodes=3, local_cpus_per_node=1) as running:
        yield running


def recovered(plane: ControlPlane, run: str) -> dict[str, Any]:
    """The only restart of a run, once it has brought the run to a new step."""

    def there() -> dict[str, Any] | None:
        restarts = plane.show(run)["restarts"]
        return restarts[0] if restarts and restarts[0]["recovered_at"] else None

    restart = until(there, f"{run} is past its restart")
    assert len(plane.show(run)["restarts"]) == 1
    return restart


def test_a_run_makes_room_for_a_more_urgent_one(plane: ControlPlane, jobs: Jobs) -> None:
    """It saves, leaves, waits, and comes back at the very step: no step is computed twice."""
    low = jobs("low", resources={"nodes": 3}, priority="low")
    high = jobs("high", resources={"nodes": 2}, priority="high")
    one = plane.submit(low.spec)
    plane.at_step(one, 15)
    foreseen = plane.babysit("submit", "--dry-run", high.spec).stdout
    assert "low would be preempted" in foreseen
    assert [run["name"] for run in plane.ask("ls")] == ["low"]

    two = plane.submit(high.spec)
    plane.at_step(two, 3)
    waiting = plane.show(one)
    assert (waiting["state"], waiting["pending"]) == ("queued", "no_capacity")
    assert "used by high" in plane.babysit("explain", "low").stdout
    high.finish()
    plane.state(two, "succeeded")

    restart = recovered(plane, one)
    assert (restart["cause"], restart["remedy"]) == ("preemption", "preempted")
    assert restart["lost_steps"] == 0
    low.finish()
    plane.state(one, "succeeded")
    check_record(plane, one, low)
    check_record(plane, two, high)


def test_a_standby_takes_over_from_a_node_that_is_lost(plane: ControlPlane, jobs: Jobs) -> None:
    """The agent of one of two nodes is killed; the third was warm already."""
    job = jobs(resources={"nodes": 2}, placement={"standbys": 1})
    run = plane.submit(job.spec)
    plane.at_step(run, 12)
    agents = until(lambda: len(plane.agents(run)) == 3 and plane.agents(run), "a standby")
    seated = plane.attempts(run)[0].seats[1]
    os.kill(agents[seated.node], signal.SIGKILL)
    plane.state(run, "recovering", "running")
    until(lambda: len(plane.attempts(run)) == 2, "a second attempt")
    second = plane.attempts(run)[1]
    assert seated.node not in {seat.node for seat in second.seats}
    assert {seat.node for seat in second.seats} <= set(agents)  # nobody had to be launched
    recovered(plane, run)
    job.finish()
    plane.state(run, "succeeded")
    check_record(plane, run, job, agents_died=True)


def test_an_elastic_run_goes_on_with_the_nodes_that_are_left(
    plane: ControlPlane, jobs: Jobs
) -> None:
    job = jobs(resources={"nodes": {"min": 1, "max": 3}})
    run = plane.submit(job.spec)
    plane.at_step(run, 12)
    assert len(plane.attempts(run)[0].seats) == 3
    node = plane.attempts(run)[0].seats[2].node
    plane.babysit("nodes", "drain", node, "--reason", "a fan is loud")
    until(lambda: len(plane.attempts(run)) == 2, "a second attempt")
    assert plane.attempts(run)[1].world_size == 2
    restart = recovered(plane, run)
    assert restart["resumed_step"] >= 12
    assert restart["lost_steps"] == 0
    job.finish()
    plane.state(run, "succeeded")


def test_a_queue_keeps_to_its_quota(plane: ControlPlane, jobs: Jobs) -> None:
    """Two for `research` (a node without GPUs counts as one): the third node stays free."""
    assert plane.babysit("queues", "set", "research", "--gpus", 2).exit_code == 0
    first = jobs("first", queue="research", resources={"nodes": 2})
    second = jobs("second", queue="research", resources={"nodes": 1})
    one = plane.submit(first.spec)
    plane.at_step(one, 3)
    two = plane.submit(second.spec)
    assert plane.show(two)["pending"] == "quota"
    assert "queue research uses 2 of 2 GPUs" in plane.babysit("explain", "second").stdout
    (row,) = [q for q in plane.ask("queues", "ls") if q["name"] == "research"]
    assert (row["gpus"], row["used_gpus"], row["queued"], row["active"]) == (2, 2, 1, 1)
    assert plane.babysit("queues", "set", "research", "--gpus", 3).exit_code == 0
    plane.at_step(two, 3)
    for job, run in ((first, one), (second, two)):
        job.finish()
        plane.state(run, "succeeded")
