"""The time to save before a stop: the spec's, and never less than a save of the run takes."""

from __future__ import annotations

import datetime as dt

import pytest

from babysit.wire import Tier
from jobs.events import ShardWritten
from orchestrator.core.messages.events import NodeChanged, RestartAsked, RunCancelled
from orchestrator.core.model.states import RunState
from orchestrator.core.model.vocabulary import Timer
from orchestrator.core.placement.snapshot import OVERDUE_SECONDS, overdue, snapshot
from orchestrator.core.policy.time_limits import GRACE_SECONDS, MOST_SAVE_SECONDS
from orchestrator.core.views.build import run_view
from orchestrator.core.views.explain import explain
from tests.gpu_cluster import cluster, gpu_spec, start
from tests.world import World, trained


def save(world: World, step: int, copy: float, write: float, run: str = "run-1") -> None:
    """Every rank saves; rank 0 takes the longest."""
    attempt = world.attempt(run)
    for seat in attempt.seats:
        for rank in seat.ranks:
            shard = world.shard(attempt, step, rank, Tier.DIRECTORY).model_copy(
                update={"copy_seconds": copy / (rank + 1), "write_seconds": write / (rank + 1)}
            )
            fields = {"worker": seat.worker, "attempt": attempt.number, "shard": shard}
            world.do(world.event(ShardWritten, run=run, **fields))
    world.settle()


def given(world: World) -> float:
    """The grace of the last stop."""
    return float(world.told("stop_attempt")[-1].command.grace_seconds)


@pytest.mark.parametrize(
    ("asked", "saves", "grace"),
    [
        (None, [], GRACE_SECONDS),
        (None, [(1.0, 4.0)], GRACE_SECONDS),
        (None, [(2.0, 58.0), (1.0, 3.0)], 90.0),
        ("120s", [(2.0, 58.0)], 120.0),
        ("5s", [(1.0, 1.0)], 5.0),
        ("5s", [(4.0, 16.0)], 30.0),
        (None, [(0.0, 7200.0)], MOST_SAVE_SECONDS),
        ("1h", [(0.0, 7200.0)], 3600.0),
    ],
)
def test_ranks_get_what_the_spec_says_and_what_a_save_takes(
    asked: str | None, saves: list[tuple[float, float]], grace: float
) -> None:
    world = trained(5, **({} if asked is None else {"grace": asked}))
    for step, (copy, write) in enumerate(saves, 11):
        save(world, step, copy, write)
    world.do(world.event(RestartAsked, run="run-1"))
    assert given(world) == grace
    stop = world.run().due(Timer.STOP)
    assert stop == world.now + dt.timedelta(seconds=grace + 30.0), "it is not killed in its save"


def test_a_failure_gives_no_grace_and_a_cancel_does() -> None:
    world = trained(5, grace="60s")
    world.die()
    assert given(world) == 0.0
    world.settle()
    world.trained_to(6)
    world.do(world.event(RunCancelled, run="run-1"))
    assert given(world) == 60.0


def test_the_longest_save_is_known_after_a_restart_of_all() -> None:
    world = trained(5)
    save(world, 11, 0.0, 100.0)
    world.die()
    world.settle()
    world.restart()
    world.settle()
    world.do(world.event(RestartAsked, run="run-1"))
    assert given(world) == 150.0


def test_a_drained_run_gets_its_grace() -> None:
    world = cluster(3)
    start(world, "run-1", grace="10m")
    world.slow = True
    world.do(world.event(NodeChanged, node="node-0", state="draining", reason="bios"))
    assert given(world) == 600.0


def test_no_second_run_is_preempted_while_the_first_still_saves() -> None:
    """The one that waits expects its nodes when the preempted run has had its grace."""
    world = cluster(2)
    start(world, "low", nodes=1, priority="low", grace="5m")
    start(world, "other", nodes=1, priority="normal")
    world.slow = True
    world.submit(gpu_spec("high", nodes=1, priority="high"), "high")
    assert snapshot(world.state, world.now).grace_seconds == 300.0
    found = explain(world.state, "high", world.now)
    assert found.starts_at == world.now + dt.timedelta(seconds=300)
    assert "They have 300 s to save and stop." in found.sentences
    [going] = [each for each in snapshot(world.state, world.now).holdings if each.leaving]
    assert going.overdue_at == world.now + dt.timedelta(seconds=300.0 + OVERDUE_SECONDS)
    [worker] = world.state.workers_of("low")
    for passed, hung in ((300.0, False), (300.0 + OVERDUE_SECONDS, True)):
        at = world.now + dt.timedelta(seconds=passed)
        assert overdue(world.run("low"), worker, at) is hung
    world.advance(200)
    assert world.run("other").state is not RunState.RECOVERING
    assert world.run("other").decision is None


def test_people_are_shown_the_grace_of_a_run() -> None:
    world = trained(5, grace="45s")
    save(world, 11, 0.0, 100.0)
    assert run_view(world.run(), world.now, restarts=0).grace_seconds == 150.0
