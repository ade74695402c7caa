"""Two servers, one PostgreSQL: the leader dies or freezes, and its runs train on at the other.

The leader dies behind a balancer that gives each connection to either server, as in Kubernetes; it
freezes where agents know the servers by their own addresses.
"""

from __future__ import annotations

import copy
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.acceptance.conftest import Jobs
from tests.acceptance.record import check_attempts, check_memory_tier, check_samples
from tests.balancer import Balancer, balanced
from tests.control_plane import OK, ControlPlane, Servers, control_plane, until
from tests.postgres import PostgresServer

TOKEN = "a-token-of-both-servers-of-this-test"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def balancer() -> Iterator[Balancer]:
    """A balancer in front of the ports of the two servers."""
    with balanced([free_port(), free_port()]) as found:
        yield found


@pytest.fixture
def planes(
    database: PostgresServer,
    servers: Servers,
    tmp_path: Path,
    balancer: Balancer,
    how: signal.Signals,
) -> Iterator[tuple[ControlPlane, ControlPlane]]:
    """A leader and a spare, each with a home of its own. The spare comes when the first leads."""
    settings = {
        "database_url": database.url(),
        "lease_seconds": 3,
        "worker_lost_seconds": 5,
        "token": TOKEN,
    }
    if how is signal.SIGKILL:
        settings["agent_url"] = f"ws://127.0.0.1:{balancer.port}/agent"
    ports = balancer.ports
    with control_plane(servers, tmp_path / "a", port=ports[0], **settings) as leader:
        spare = ControlPlane(servers, tmp_path / "b", port=ports[1], **settings)
        spare.spawn()
        try:
            yield leader, spare
        finally:
            spare.close()


def check_that_either_server_serves(plane: ControlPlane, balancer: Balancer, run: str) -> None:
    """Commands find the leader through the balancer; probes tell the servers apart."""
    people = copy.copy(plane)
    people.environment = {
        **plane.environment,
        "BABYSIT_SERVER": f"http://127.0.0.1:{balancer.port}",
    }
    before = list(balancer.taken)
    for _ in range(3):
        assert people.babysit("hold", run, "--reason", "a look").exit_code == OK
        assert people.show(run)["state"] == "held"
        assert people.babysit("release", run, "--reason", "looked").exit_code == OK
    assert all(now > then for now, then in zip(balancer.taken, before, strict=True))
    for probe, expected in (("healthz", [200, 200]), ("leaderz", [200, 503])):
        urls = [f"http://127.0.0.1:{port}/{probe}" for port in balancer.ports]
        assert [httpx.get(url).status_code for url in urls] == expected
    refused = httpx.post(
        f"http://127.0.0.1:{balancer.ports[1]}/api/v1/runs/{run}/hold",
        json={"reason": "at the spare"},
        headers={"Authorization": f"Bearer {TOKEN}"},
    )
    assert (refused.status_code, refused.headers["connection"]) == (503, "close")


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_runs_train_on_at_the_next_leader_without_a_lost_step(
    planes: tuple[ControlPlane, ControlPlane], jobs: Jobs, how: signal.Signals, balancer: Balancer
) -> None:
    a, b = planes
    job = jobs()
    run = a.submit(job.spec)
    a.at_step(run, 10)
    until(lambda: "spare: another server leads" in b.log, "the other is a spare")
    if how is signal.SIGKILL:
        check_that_either_server_serves(a, balancer, run)
    else:
        agents = list((a.home / "runs" / run / "workers").glob("*/agent.log"))
        known = '"count": 2, "event": "servers known"'
        until(lambda: all(known in log.read_text() for log in agents), "the agents know of it")
    epoch = a.epoch()
    if how is signal.SIGKILL:
        a.kill()
    else:
        os.kill(a.pid, how)
    until(b.leads, "the spare leads")
    assert b.epoch() > epoch
    step = max(line["step"] for line in job.events("step"))
    until(
        lambda: b.show(run)["step"] > step and b.show(run)["state"] == "running",
        "the next leader hears of new steps",
        seconds=90,
    )
    shown = b.show(run)
    assert shown["attempt"] == 1
    assert shown["restarts"] == []
    if how is signal.SIGSTOP:
        os.kill(a.pid, signal.SIGCONT)
        until(lambda: "stepping down" in a.log or "no longer leading" in a.log, "it steps down")
        assert not a.leads()

    a.signal_rank(run, 1, signal.SIGKILL)
    until(lambda: b.show(run)["attempt"] == 2, "the next leader recovers the run", seconds=90)
    dead = max(line["step"] for line in job.events("step"))
    until(lambda: b.show(run)["step"] > dead, "and it trains on")
    shown = b.show(run)
    assert [restart["class"] for restart in shown["restarts"]] == ["signal"]
    check_memory_tier(b, run)
    job.finish()
    b.state(run, "succeeded")
    check_attempts(b, run, job)
    spoken = {key: steps for key, steps in job.steps().items() if key[1] == 0}
    stored = {key: found for key, found in b.samples(run).items() if key[1] == 0}
    check_samples(stored, spoken, agents_died=False)
    for log in (a.log, b.log):
        assert "Traceback" not in log, "a takeover is no defect"
