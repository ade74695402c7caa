"""A control plane on PostgreSQL: its database stops in mid-run; its server is killed."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.conftest import Jobs
from tests.acceptance.record import check_memory_tier, check_record
from tests.control_plane import ControlPlane, Servers, control_plane, until
from tests.postgres import PostgresServer

AWAY_SECONDS = 20.0


@pytest.fixture
def plane(database: PostgresServer, servers: Servers, tmp_path: Path) -> Iterator[ControlPlane]:
    """A control plane on PostgreSQL, with a lease shorter than the outage."""
    settings = {"database_url": database.url(), "lease_seconds": 3}
    with control_plane(servers, tmp_path / "home", **settings) as running:
        yield running


@pytest.mark.slow
def test_postgres_is_away_for_twenty_seconds(
    plane: ControlPlane, database: PostgresServer, jobs: Jobs
) -> None:
    """Training goes on without it. A rank dies meanwhile: the recovery comes when it is back."""
    job = jobs()
    run = plane.submit(job.spec)
    plane.at_step(run, 10)

    database.stop("immediate")
    back = time.monotonic() + AWAY_SECONDS
    step = max(step for _, step in plane.rings(run).values())
    plane.at_step(run, step + 100)
    plane.signal_rank(run, 1, signal.SIGKILL)
    until(lambda: not plane.rings(run), "the ranks are dead")
    until(lambda: time.monotonic() >= back, "the outage is over")
    assert not plane.rings(run), "nothing is decided that cannot be written down"
    database.start()

    dead = max(line["step"] for line in job.events("step"))
    plane.at_step(run, dead + 10)
    shown = plane.show(run)
    assert [restart["class"] for restart in shown["restarts"]] == ["signal"]
    check_memory_tier(plane, run)
    job.finish()
    plane.state(run, "succeeded")
    check_record(plane, run, job)


@pytest.mark.slow
def test_the_server_is_killed_and_the_next_one_waits_for_the_lease(
    plane: ControlPlane, jobs: Jobs
) -> None:
    """Each time a rank has died too. The dead leader's lease runs out, then its work goes on."""
    job = jobs()
    run = plane.submit(job.spec)
    for kill in range(1, 4):
        until(plane.leads, "a server leads")
        plane.at_step(run, max((line["step"] for line in job.events("step")), default=0) + 5)
        leader = plane.read(lambda store: store.leader())
        plane.signal_rank(run, 1, signal.SIGKILL)
        plane.kill()
        plane.spawn()
        until(plane.leads, f"the next server leads, after kill {kill}")
        lease = plane.read(lambda store: store.leader())
        assert leader is not None
        assert lease is not None
        assert lease.epoch > leader.epoch

    plane.at_step(run, max(line["step"] for line in job.events("step")) + 5)
    job.finish()
    shown = plane.state(run, "succeeded")
    assert [restart["class"] for restart in shown["restarts"]] == ["signal"] * 3
    check_record(plane, run, job)
