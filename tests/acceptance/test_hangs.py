"""Silence raises suspicion, evidence convicts: a pause is left alone, a deadlock is ended."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.agent.stacks import PY_SPY
from tests.acceptance.conftest import Jobs
from tests.control_plane import ControlPlane, Servers, until

DEADLOCK = Path(__file__).parent / "deadlock_job.py"
LIMIT_WITHOUT_PROOF = 60.0
"""Seconds of silence before a run without proof against it is restarted."""


def suspected(plane: ControlPlane, run: str) -> dict[str, Any]:
    """Wait until the ranks of a silent run were looked at, and found slow."""

    def is_slow() -> dict[str, Any] | None:
        shown = plane.show(run)
        slow = shown["suspect"] and shown["suspect"]["kind"] == "slow"
        return shown if slow else None

    return until(is_slow, "the run is suspect, and slow")


def test_a_pause_that_nobody_announced_is_left_alone(plane: ControlPlane, jobs: Jobs) -> None:
    """One rank validates for a while; the other one waits for it."""
    job = jobs(faults=("pause@30",))
    run = plane.submit(job.spec)
    shown = suspected(plane, run)
    assert (shown["state"], shown["restarts"]) == ("running", [])
    assert "_receive" in shown["suspect"]["evidence"], "rank 0 waits for rank 1"
    (job.scratch / "go-on").touch()
    until(lambda: plane.show(run)["suspect"] is None, "the run is no longer suspect")
    job.finish()
    shown = plane.state(run, "succeeded")
    assert (shown["attempt"], shown["restarts"], shown["avoid"]) == (1, [], [])
    assert {(i["kind"], i["state"]) for i in shown["incidents"]} == {("slow", "resolved")}
    assert not any(node["faults"] for node in plane.ask("nodes", "ls"))


def test_a_stopped_rank_is_convicted_and_needs_no_limit(plane: ControlPlane, jobs: Jobs) -> None:
    job = jobs()
    run = plane.submit(job.spec)
    plane.at_step(run, 30)
    plane.signal_rank(run, 1, signal.SIGSTOP)
    shown = until(lambda: recovered(plane, run), "recovered from the stop")
    (restart,) = shown["restarts"]
    assert (restart["class"], restart["rank"]) == ("hang", 1)
    assert "rank 1 is stopped" in restart["reason"]
    assert restart["seconds"]["detect"] < LIMIT_WITHOUT_PROOF
    job.finish()
    plane.state(run, "succeeded")


def recovered(plane: ControlPlane, run: str) -> dict[str, Any] | None:
    shown = plane.show(run)
    restarts = shown["restarts"]
    return shown if restarts and restarts[-1]["recovered_at"] else None


@pytest.fixture(params=["py-spy", "no ptrace"])
def seeing(request: pytest.FixtureRequest, servers: Servers, tmp_path: Path) -> Iterator[Any]:
    """A control plane whose agents read stacks by py-spy, or have the ranks write them."""
    running = ControlPlane(servers, tmp_path / "home")
    if request.param == "no ptrace":
        running.environment[PY_SPY] = ""
    running.start()
    yield running
    running.close()


@pytest.mark.slow
def test_a_deadlock_beside_a_barrier_is_convicted_and_named(
    seeing: ControlPlane, tmp_path: Path
) -> None:
    """Rank 1 waits for a lock that nobody releases, rank 0 for rank 1 in a barrier of gloo."""
    plane = seeing
    spec = tmp_path / "deadlock.yaml"
    command = [sys.executable, str(DEADLOCK), "30"]
    body = {"name": "deadlock", "command": command, "resources": {"nodes": 2}}
    spec.write_text(json.dumps(body | {"env": {"OMP_NUM_THREADS": "1"}}))
    run = plane.submit(spec)
    shown = until(lambda: recovered(plane, run), "recovered from the deadlock", seconds=180.0)
    (restart,) = shown["restarts"]
    assert (restart["class"], restart["rank"]) == ("hang", 1)
    assert "cannot come in deadlock (deadlock_job.py" in restart["reason"]
    assert "1 other rank waits in barrier" in restart["reason"]
    assert "flight recorder: rank 0 in gloo:barrier" in restart["reason"]
    assert "rank 1 has not entered it" in restart["reason"]
    assert restart["seconds"]["detect"] < LIMIT_WITHOUT_PROOF
    plane.state(run, "succeeded")
