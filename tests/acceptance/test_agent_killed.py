"""Agents and their standby interpreters die; nothing leaks and the run goes on."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.acceptance.conftest import Job, Jobs
from tests.acceptance.record import check_memory_tier, check_record
from tests.control_plane import ControlPlane, until


def parent(pid: int) -> int:
    """Pid of the process that started it."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_an_agent_is_killed(plane: ControlPlane, jobs: Jobs) -> None:
    """Its rank dies with it. The run gets a new agent, and goes on from the directory tier."""
    job = jobs()
    run = plane.submit(job.spec)
    plane.at_step(run, 15)
    rank, agent = plane.rank_pid(run, 1), plane.agents(run)["node-2"]
    before = set(plane.processes())
    os.kill(agent, signal.SIGKILL)
    until(lambda: not alive(rank), "the rank is dead")
    plane.at_step(run, 30)
    shown = plane.show(run)
    (restart,) = shown["restarts"]
    assert (restart["class"], restart["node"]) == ("worker_lost", "node-2")
    assert restart["resumed_step"] in {10, 20}, "the memory of that node went with its agent"
    kept = before & set(plane.processes())
    assert plane.agents(run)["node-1"] in kept, "the other node's agent stayed"
    assert agent not in kept
    job.finish()
    plane.state(run, "succeeded")
    check_record(plane, run, job, agents_died=True)


def test_a_standby_is_killed(plane: ControlPlane, jobs: Jobs) -> None:
    """The ranks it forked die with it; the agent starts another, and the memory tier survives."""
    job = jobs()
    run = plane.submit(job.spec)
    plane.at_step(run, 15)
    rank = plane.rank_pid(run, 1)
    agents = plane.agents(run)
    os.kill(parent(rank), signal.SIGKILL)
    plane.at_step(run, 30)
    shown = plane.show(run)
    (restart,) = shown["restarts"]
    assert (restart["class"], restart["rank"]) == ("signal", 1)
    check_memory_tier(plane, run)
    assert plane.agents(run) == agents
    job.finish()
    plane.state(run, "succeeded")
    check_record(plane, run, job, agents_died=True)


def test_server_and_agent_are_killed_together(plane: ControlPlane, jobs: Jobs) -> None:
    """The next server finds what is left, makes sure it is dead, and starts the run again."""
    job = jobs()
    run = plane.submit(job.spec)
    plane.at_step(run, 15)
    rank = plane.rank_pid(run, 0)
    os.kill(plane.agents(run)["node-1"], signal.SIGKILL)
    plane.kill()
    until(lambda: not alive(rank), "the rank is dead")
    until(lambda: not plane.rings(run), "its peer has given up")
    plane.start()
    plane.at_step(run, 30)
    (restart,) = plane.show(run)["restarts"]
    assert (restart["class"], restart["node"]) == ("worker_lost", "node-1")
    job.finish()
    plane.state(run, "succeeded")
    check_record(plane, run, job, agents_died=True)


def test_everything_is_killed_at_once(plane: ControlPlane, jobs: Jobs) -> None:
    """Power is back: the run goes on from its newest checkpoint on disk."""
    job = jobs()
    run = plane.submit(job.spec)
    plane.at_step(run, 25)
    until(lambda: (plane.show(run)["checkpoint"] or {}).get("step", 0) >= 20, "step 20 is saved")
    plane.kill()
    for pid in plane.processes():
        os.kill(pid, signal.SIGKILL)
    until(lambda: not plane.processes(), "all is dark")
    plane.start()
    plane.at_step(run, 40)
    shown = plane.show(run)
    assert {restart["class"] for restart in shown["restarts"]} == {"worker_lost"}
    assert shown["restarts"][-1]["resumed_step"] >= 20
    job.finish()
    plane.state(run, "succeeded")
    check_record(plane, run, job, agents_died=True)


def test_what_was_saved_while_no_server_was_there_is_not_lost(
    plane: ControlPlane, jobs: Jobs
) -> None:
    """Agents die with what they could report to nobody: the next leader looks at the disk."""
    job = jobs()
    run = plane.submit(job.spec)
    plane.at_step(run, 15)
    agents, ranks = plane.agents(run), [plane.rank_pid(run, rank) for rank in (0, 1)]
    plane.kill()
    heard = newest_whole(job)
    until(lambda: newest_whole(job) >= heard + 50, "it trains and saves without a server")
    for agent in agents.values():
        os.kill(agent, signal.SIGKILL)
    until(lambda: not any(map(alive, ranks)), "the ranks are dead")
    newest = newest_whole(job)
    plane.start()
    plane.at_step(run, newest + 15)
    (restart,) = plane.show(run)["restarts"]
    assert restart["resumed_step"] == newest
    job.finish()
    plane.state(run, "succeeded")


def newest_whole(job: Job) -> int:
    """The newest step of which both ranks have saved their shard."""
    steps = [
        path.parent.parent.name for path in job.checkpoints.glob("step-*/rank-*/manifest.json")
    ]
    return max(int(step.removeprefix("step-")) for step in steps if steps.count(step) == 2)
