"""What a person on call can do, through the real command line, and what it leads to."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.conftest import Job, Jobs
from tests.acceptance.record import check_attempts, check_record
from tests.control_plane import (
    CANCELLED,
    FAILED,
    NOT_FOUND,
    OK,
    REFUSED,
    TIMED_OUT,
    USAGE,
    ControlPlane,
    Servers,
    control_plane,
    until,
)


@pytest.fixture
def roomy(servers: Servers, tmp_path: Path) -> Iterator[ControlPlane]:
    """A control plane with a node to spare."""
    with control_plane(servers, tmp_path / "home", local_nodes=3) as running:
        yield running


def test_a_held_run_is_left_alone(plane: ControlPlane, jobs: Jobs) -> None:
    """Under a hold a dead rank stays dead; it is known what would be done; release does it."""
    job = jobs()
    run = plane.submit(job.spec)
    plane.at_step(run, 12)
    assert plane.babysit("hold", run, "--reason", "looking").exit_code == OK
    step = plane.show(run)["step"]
    plane.at_step(run, step + 5)  # monitoring and training go on
    plane.signal_rank(run, 1, signal.SIGKILL)
    until(lambda: plane.attempts(run)[-1].ended_at, "the attempt is over")
    shown = plane.show(run)
    assert (shown["state"], shown["attempt"]) == ("held", 1)
    assert "looking" in shown["reason"]
    why = plane.ask("explain", run)
    assert (why["underlying"], why["unblock"]) == ("held", "babysit release job")
    assert any("SIGKILL" in sentence for sentence in why["sentences"])
    assert plane.babysit("restart", run).exit_code == REFUSED
    assert not plane.rings(run)

    assert plane.babysit("release", run).exit_code == OK
    dead = max(line["step"] for line in job.events("step"))
    plane.at_step(run, dead + 5)
    assert plane.babysit("release", run).exit_code == REFUSED
    job.finish()
    plane.state(run, "succeeded")
    check_record(plane, run, job)


def test_everything_is_held(plane: ControlPlane, jobs: Jobs) -> None:
    """A hold over everything keeps new runs waiting too."""
    job = jobs()
    assert plane.babysit("hold", "--reason", "network maintenance").exit_code == OK
    run = plane.submit(job.spec)
    assert plane.show(run)["state"] == "queued"
    assert plane.ask("explain", run)["underlying"] == "held"
    assert plane.babysit("release").exit_code == OK
    plane.at_step(run, 3)
    job.finish()
    plane.state(run, "succeeded")


def followed(plane: ControlPlane, job: Job) -> tuple[subprocess.Popen[str], str]:
    """A run that a person follows with `babysit run`; the process, and the run's id."""
    process = plane.shell("run", job.spec)
    run = until(lambda: next((row["id"] for row in plane.ask("ls")), None), "it is submitted")
    plane.at_step(run, 5)
    return process, run


def test_a_cancelled_run_ends_who_follows_it(plane: ControlPlane, jobs: Jobs) -> None:
    """`babysit run` ends with 7; ranks saved before they left; nothing brings the run back."""
    job = jobs()
    process, run = followed(plane, job)
    assert plane.babysit("cancel", run, "--reason", "wrong data").exit_code == OK
    _, err = process.communicate(timeout=60)
    assert process.returncode == CANCELLED, err
    assert "wrong data" in err
    last = max(line["step"] for line in job.events("step"))
    assert (job.checkpoints / f"step-{last:09d}").is_dir(), "it saved before it left"
    for verb in ("cancel", "hold", "restart", "rollback", "release"):
        refused = plane.babysit(verb, run)
        assert (refused.exit_code, "is over" in refused.stderr) == (REFUSED, True), verb
    assert plane.babysit("wait", run).exit_code == CANCELLED
    check_record(plane, run, job)


def test_who_follows_a_run_outlives_the_server(plane: ControlPlane, jobs: Jobs) -> None:
    """`babysit run` waits out a killed server, starts the next one itself, and reports the end."""
    job = jobs()
    process, run = followed(plane, job)
    plane.kill()
    job.finish()
    out, err = process.communicate(timeout=120)
    assert process.returncode == OK, err
    assert "The control plane does not answer; runs go on." in err
    assert "succeeded" in out
    assert plane.show(run)["restarts"] == []


def test_restarted_on_request(plane: ControlPlane, jobs: Jobs) -> None:
    """The ranks save and leave; the next attempt goes on where they stopped: no step is lost."""
    job = jobs()
    run = plane.submit(job.spec)
    plane.at_step(run, 12)
    assert plane.babysit("restart", run, "--reason", "new driver").exit_code == OK
    until(lambda: plane.show(run)["attempt"] == 2, "the second attempt")
    stopped = max(line["step"] for line in job.events("step") if line["attempt"] == 1)
    plane.at_step(run, stopped + 5)
    (restart,) = plane.show(run)["restarts"]
    assert (restart["cause"], restart["remedy"]) == ("operator", "as asked")
    assert (restart["resumed_step"], restart["lost_steps"]) == (stopped, 0)
    assert "new driver" in restart["reason"]
    job.finish()
    plane.state(run, "succeeded")
    check_record(plane, run, job)


def test_rolled_back_on_request(plane: ControlPlane, jobs: Jobs) -> None:
    """To a step and past some batches, as asked; what was saved after it counts no more."""
    job = jobs(checkpoint={"keep": 100})
    run = plane.submit(job.spec)
    plane.at_step(run, 34)
    until(lambda: (plane.show(run)["checkpoint"] or {}).get("step", 0) >= 30, "step 30 is saved")
    wrong = plane.babysit("rollback", run, "--to", 17)
    assert wrong.exit_code == REFUSED
    assert "no checkpoint of step 17; it has checkpoints of steps: 10, 20, 30" in wrong.stderr
    assert plane.babysit("rollback", run, "--skip", "9:3").exit_code == USAGE

    asked = plane.babysit("rollback", run, "--to", 20, "--skip", "25:27", "--reason", "bad shard")
    assert asked.exit_code == OK, asked.output
    until(lambda: plane.show(run)["attempt"] == 2, "the second attempt")
    plane.at_step(run, 40)
    shown = plane.show(run)
    (restart,) = shown["restarts"]
    assert (restart["resumed_step"], shown["skip_batches"]) == (20, [[25, 27]])
    for rank in (0, 1):
        batches = [batch for _, batch, _ in job.steps()[2, rank]]
        assert batches[:8] == [21, 22, 23, 24, 28, 29, 30, 31]
    trust = {row["step"]: row["trust"] for row in plane.ask("checkpoints", "ls", run)}
    assert trust[20] in {"verified", "good"}
    job.finish()
    plane.state(run, "succeeded")
    check_attempts(plane, run, job)


def test_rolled_back_without_a_step(plane: ControlPlane, jobs: Jobs) -> None:
    """With the values a spec has by itself: to the newest checkpoint before the step it is at."""
    job = jobs(checkpoint={"every_steps": 20, "good_after_steps": 50, "keep": 100}, pace=0.1)
    run = plane.submit(job.spec)
    plane.at_step(run, 25)
    assert plane.babysit("rollback", run).exit_code == OK
    until(lambda: plane.show(run)["attempt"] == 2, "the second attempt")
    plane.at_step(run, 30)
    (restart,) = plane.show(run)["restarts"]
    assert restart["resumed_step"] == 20
    assert restart["lost_steps"] >= 4
    trust = {row["step"]: row["trust"] for row in plane.ask("checkpoints", "ls", run)}
    assert trust[20] != "bad"
    job.finish()
    plane.state(run, "succeeded")
    check_attempts(plane, run, job)


def test_a_node_is_drained(roomy: ControlPlane, jobs: Jobs) -> None:
    """Its run saves, moves to the spare node and goes on; the node takes nothing more."""
    job = jobs()
    run = roomy.submit(job.spec)
    roomy.at_step(run, 5)
    assert roomy.babysit("nodes", "drain", "node-2").exit_code == USAGE, "a reason is required"
    assert roomy.babysit("nodes", "drain", "node-2", "--reason", "new disk").exit_code == OK
    until(lambda: roomy.show(run)["attempt"] == 2, "it has moved")
    stopped = max(line["step"] for line in job.events("step") if line["attempt"] == 1)
    roomy.at_step(run, stopped + 5)
    shown = roomy.show(run)
    assert set(shown["node_names"]) == {"node-1", "node-3"}
    (restart,) = shown["restarts"]
    assert (restart["class"], restart["lost_steps"]) == ("preemption", 0)
    assert "new disk" in restart["reason"]
    until(lambda: "node-2" not in roomy.agents(run), "its agent there is gone")

    assert roomy.babysit("nodes", "uncordon", "node-2", "--reason", "done").exit_code == OK
    assert roomy.ask("nodes", "show", "node-2")["state"] == "ready"
    job.finish()
    roomy.state(run, "succeeded")
    check_record(roomy, run, job)


def test_a_cordoned_node_keeps_what_it_has(plane: ControlPlane, jobs: Jobs) -> None:
    """No new work: a second run waits. What runs there stays."""
    first, second = jobs("first"), jobs("second")
    one = plane.submit(first.spec)
    plane.at_step(one, 3)
    assert plane.babysit("nodes", "cordon", "node-2", "--reason", "fan is loud").exit_code == OK
    two = plane.submit(second.spec)
    assert plane.show(two)["state"] == "queued"
    plane.at_step(one, 20)
    assert plane.show(one)["restarts"] == []
    assert plane.babysit("nodes", "uncordon", "node-2", "--reason", "quiet").exit_code == OK
    plane.at_step(two, 3)
    for run, job in ((one, first), (two, second)):
        job.finish()
        plane.state(run, "succeeded")


def test_waiting_and_its_exit_codes(plane: ControlPlane, jobs: Jobs) -> None:
    """`wait` tells apart: reached, time is up, failed, not there at all."""
    job = jobs()
    run = plane.submit(job.spec)
    assert plane.babysit("wait", run, "--for", "running", "--timeout", "60s").exit_code == OK
    assert plane.babysit("wait", run, "--for", "step=5", "--timeout", "60s").exit_code == OK
    late = plane.babysit("wait", run, "--timeout", "100ms")
    assert late.exit_code == TIMED_OUT
    assert "job is running at step" in late.stderr
    for command in (["show"], ["wait"], ["cancel"], ["explain"], ["logs"], ["rollback"]):
        assert plane.babysit(*command, "nobody").exit_code == NOT_FOUND, command
    assert plane.babysit("nodes", "show", "node-9").exit_code == NOT_FOUND
    drained = plane.babysit("nodes", "drain", "node-9", "--reason", "x")
    assert drained.exit_code == NOT_FOUND
    assert "node-9" in drained.stderr
    job.finish()
    assert plane.babysit("wait", run, "--timeout", "60s").exit_code == OK
    assert plane.babysit("wait", run, "--for", "step=100000").exit_code == REFUSED
    broken = plane.submit(jobs("broken", faults=("import",)).spec)
    assert plane.babysit("wait", broken, "--timeout", "60s").exit_code == FAILED
