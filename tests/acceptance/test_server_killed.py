"""The control plane dies, again and again.

Training does not notice, and nothing on record is lost.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import time
from pathlib import Path

import pytest

from orchestrator.core.model.states import RunState
from tests.acceptance.conftest import Jobs
from tests.acceptance.record import check_record
from tests.control_plane import ControlPlane, until

STEPS_OF_A_RECOVERY = 14
"""Lines of the journal from a rank's death to the first step after it, and a few more."""


class Moments:
    """Moments to strike: after some time, some lines more in the journal, or with a transaction."""

    def __init__(self, database: Path, chance: random.Random) -> None:
        self._connection = sqlite3.connect(database, timeout=60.0)
        self._chance = chance

    def written(self) -> int:
        """Lines in the journal."""
        (count,) = self._connection.execute("SELECT count(*) FROM journal").fetchone()
        return int(count)

    def some_time(self) -> None:
        """Up to a second and a half: starting up, leading, or in the midst of something."""
        time.sleep(self._chance.uniform(0.0, 1.5))

    def some_lines(self, before: int) -> None:
        """Between two lines of a recovery; it may be the last ones that do not come any more."""
        wanted = before + self._chance.randint(1, STEPS_OF_A_RECOVERY)
        deadline = time.monotonic() + 3.0
        while self.written() < wanted and time.monotonic() < deadline:
            time.sleep(0.001)

    def just_written(self) -> None:
        """Right after a transaction: before the server tells anybody, or acts on it."""
        before = self._version()
        deadline = time.monotonic() + 3.0
        while self._version() == before and time.monotonic() < deadline:
            pass  # not even a millisecond may pass

    def _version(self) -> int:
        (version,) = self._connection.execute("PRAGMA data_version").fetchone()
        return int(version)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(("kills", "agents"), [(30, False), (16, True)])
def test_killed_again_and_again_in_one_run(
    plane: ControlPlane, jobs: Jobs, kills: int, *, agents: bool
) -> None:
    """SIGKILL at 30 random moments, half of them within a recovery from the death of a rank.

    Then the same where agents die as well, and with them their ranks and their part of the memory.
    """
    seed = int(os.environ.get("SEED", random.SystemRandom().randrange(10**6)))
    print(f"SEED={seed}")  # noqa: T201 - shown when the test fails: to do it again
    chance = random.Random(seed)
    job = jobs(checkpoint={"every_steps": 50})
    run = plane.submit(job.spec)
    plane.at_step(run, 5)
    moments = Moments(plane.home / "babysit.db", chance)
    reached = 0

    for kill in range(1, kills + 1):
        if kill % 2:
            if chance.random() < 0.8:  # mostly not before a new step, or it backs off ever longer
                plane.at_step(run, reached + 5)
            rings = until(lambda: plane.rings(run), "ranks are there")
            reached = max(line["step"] for line in job.events("step"))
            victims = [pid for pid, _ in rings.values()]
            victims += list(plane.agents(run).values()) if agents else []
            before = moments.written()
            strike(chance.choice(victims))
            moments.some_lines(before)
        elif kill % 4:
            until(plane.leads, "the server leads")
            moments.just_written()
        else:
            moments.some_time()
        plane.kill()
        if kill % 6 == 0:
            goes_on_alone(plane, run)
        plane.spawn()

    plane.at_step(run, reached + 5)
    job.finish()
    shown = plane.state(run, "succeeded")
    assert shown["restarts_count"] >= kills // 3
    classes = {restart["class"] for restart in shown["restarts"]}
    assert classes <= {"signal", "worker_lost"} if agents else classes == {"signal"}
    assert all(incident["state"] == "resolved" for incident in shown["incidents"])
    check_record(plane, run, job, agents_died=agents)


def strike(pid: int) -> None:
    """SIGKILL, unless it has just died of something else."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def goes_on_alone(plane: ControlPlane, run: str) -> None:
    """Without a server: ranks that are there compute one step after the other."""
    rings = plane.rings(run)
    if len(rings) == 2:
        step = max(step for _, step in rings.values())
        plane.at_step(run, step + 3)


def test_stopped_and_started_again(plane: ControlPlane, jobs: Jobs) -> None:
    """An upgrade: the server leaves in good order, and another takes over a run that went on."""
    job = jobs()
    run = plane.submit(job.spec)
    plane.at_step(run, 5)
    pids = {pid for pid, _ in plane.rings(run).values()}
    plane.stop()
    plane.at_step(run, 25)
    plane.start()
    plane.at_step(run, 35)
    assert {pid for pid, _ in plane.rings(run).values()} == pids, "no rank was restarted"
    job.finish()
    shown = plane.state(run, "succeeded")
    assert (shown["state"], shown["restarts"]) == (RunState.SUCCEEDED, [])
    check_record(plane, run, job)


def test_a_run_ends_while_no_server_is_there(plane: ControlPlane, jobs: Jobs) -> None:
    """The end is on record once a server is back."""
    job = jobs()
    run = plane.submit(job.spec)
    plane.at_step(run, 5)
    plane.kill()
    job.finish()
    until(lambda: not plane.rings(run), "the ranks have ended")
    plane.start()
    shown = plane.state(run, "succeeded")
    assert shown["step"] == max(line["step"] for line in job.events("end"))
    check_record(plane, run, job)
