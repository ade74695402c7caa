"""PostgreSQL fails over to a replica that lacks the last second, under a server that goes on."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.conftest import Jobs
from tests.acceptance.record import check_attempts, check_memory_tier
from tests.control_plane import OK, ControlPlane, Servers, control_plane, until
from tests.postgres import PostgresServer


@pytest.fixture
def replica(database: PostgresServer) -> Iterator[PostgresServer]:
    """A streaming replica of the database."""
    server = PostgresServer(primary=database)
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
def plane(
    database: PostgresServer, replica: PostgresServer, servers: Servers, tmp_path: Path
) -> Iterator[ControlPlane]:
    """A control plane whose lease outlives the failover: the server leads before and after."""
    settings = {"database_url": database.url(), "lease_seconds": 10}
    with control_plane(servers, tmp_path / "home", **settings) as running:
        yield running


@pytest.mark.slow
def test_a_failover_that_loses_an_attempt_and_a_hold_loses_no_step(
    plane: ControlPlane, database: PostgresServer, replica: PostgresServer, jobs: Jobs
) -> None:
    """The lost second holds a hold and a restart. The server goes by what is stored, and its agents
    tell it of the attempt."""
    job = jobs()
    run = plane.submit(job.spec)
    plane.at_step(run, 10)
    plane.state(run, "running")
    epoch = plane.epoch()

    replica.cut_off(database)
    plane.signal_rank(run, 1, signal.SIGKILL)
    until(lambda: plane.show(run)["attempt"] == 2, "the run restarts")
    plane.state(run, "running")
    assert plane.babysit("hold", run, "--reason", "will be lost").exit_code == OK
    assert plane.show(run)["state"] == "held"
    pids = {rank: pid for rank, (pid, _) in plane.rings(run).items()}
    replica.take_over(database)
    assert [attempt.number for attempt in plane.attempts(run)] == [1], "the attempt is lost"

    until(lambda: plane.epoch() > epoch, "the server leads anew", seconds=90)
    until(lambda: len(plane.attempts(run)) == 2, "the attempt is taken over", seconds=90)
    step = max(line["step"] for line in job.events("step"))
    until(
        lambda: plane.show(run)["step"] > step and plane.show(run)["state"] == "running",
        "steps are heard of, and the hold that the database lost holds nobody",
        seconds=90,
    )
    assert {rank: pid for rank, (pid, _) in plane.rings(run).items()} == pids, "nothing is stopped"
    assert "no longer leading" in plane.log
    assert "Traceback" not in plane.log, "a failover is no defect"

    plane.signal_rank(run, 1, signal.SIGKILL)
    until(lambda: plane.show(run)["attempt"] == 3, "the next failure is recovered", seconds=90)
    job.finish()
    plane.state(run, "succeeded", seconds=90)
    check_memory_tier(plane, run)
    check_attempts(plane, run, job)
