"""Two servers, one PostgreSQL: the leader dies or freezes, and its runs train on at the other."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.conftest import Jobs
from tests.acceptance.record import check_attempts, check_samples
from tests.control_plane import ControlPlane, Servers, control_plane, until
from tests.postgres import PostgresServer


@pytest.fixture
def planes(
    database: PostgresServer, servers: Servers, tmp_path: Path
) -> Iterator[tuple[ControlPlane, ControlPlane]]:
    """A leader and a spare, each with a home of its own. The spare comes when the first leads."""
    settings = {"database_url": database.url(), "lease_seconds": 3, "worker_lost_seconds": 5}
    with control_plane(servers, tmp_path / "a", **settings) as leader:
        spare = ControlPlane(servers, tmp_path / "b", **settings)
        spare.spawn()
        try:
            yield leader, spare
        finally:
            spare.close()


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_runs_train_on_at_the_next_leader_without_a_lost_step(
    planes: tuple[ControlPlane, ControlPlane], jobs: Jobs, how: signal.Signals
) -> None:
    a, b = planes
    job = jobs()
    run = a.submit(job.spec)
    a.at_step(run, 10)
    until(lambda: "spare: another server leads" in b.log, "the other is a spare")
    agents = list((a.home / "runs" / run / "workers").glob("*/agent.log"))
    until(
        lambda: all('"count": 2, "event": "servers known"' in log.read_text() for log in agents),
        "the agents have heard of it",
    )
    if how is signal.SIGKILL:
        a.kill()
    else:
        os.kill(a.pid, how)
    until(b.leads, "the spare leads")

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
    assert shown["restarts"][0]["lost_steps"] <= 2
    job.finish()
    b.state(run, "succeeded")
    check_attempts(b, run, job)
    spoken = {key: steps for key, steps in job.steps().items() if key[1] == 0}
    stored = {key: found for key, found in b.samples(run).items() if key[1] == 0}
    check_samples(stored, spoken, agents_died=False)
    for log in (a.log, b.log):
        assert "Traceback" not in log, "a takeover is no defect"
