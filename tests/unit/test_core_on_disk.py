"""What is on disk and was never reported: looked for before a restart, and only where it may be."""

from __future__ import annotations

import dataclasses

import pytest

from babysit.wire import Tier
from jobs.shards import ShardReport
from orchestrator.core.checkpoints.on_disk import LOOK_SECONDS
from orchestrator.core.messages.events import RollbackAsked
from orchestrator.core.model.entities import Attempt
from orchestrator.core.model.states import RunState, Trust
from tests.world import World, trained


def saved(world: World, step: int, attempt: Attempt | None = None) -> list[ShardReport]:
    """A whole checkpoint of the run's last attempt on disk, of which no report will come."""
    attempt = attempt or world.attempt()
    shards = [world.shard(attempt, step, rank, Tier.DIRECTORY) for rank in range(2)]
    world.disk += shards
    return shards


def lose_an_agent(world: World) -> None:
    """The agent of rank 1 dies with all that it had not reported."""
    world.kill_agent(world.attempt().seats[1].worker)
    world.settle()


def test_an_ordinary_restart_waits_for_no_look() -> None:
    world = trained(20)
    saved(world, 30)  # cannot be: its agents have reported all that they saved
    world.die()
    world.settle()
    assert world.attempt().number == 2
    assert not world.told("find_checkpoints")


def test_a_new_leader_looks_before_it_restarts_a_run() -> None:
    """Fail-over began at step 20 what had trained to step 11,198 (review of PostgreSQL, D1)."""
    world = trained(20)
    world.restart()
    saved(world, 11_190)
    saved(world, 11_180)
    world.die()
    world.settle()
    assert [command.command.above for command in world.told("find_checkpoints")] == [20]
    assert world.offered()[:2] == [(11_190, "directory"), (11_180, "directory")]
    assert world.run().best_step == 11_190
    assert world.state.checkpoints["run-1/1/directory/11190"].trust is Trust.COMPLETE
    restart = world.attempt().restart
    assert restart is not None
    assert restart.best_step == 11_190, "no steps are lost that were saved"
    world.die()
    world.settle()
    assert world.attempt().number == 3
    assert len(world.told("find_checkpoints")) == 1, "one look of each leader"


def test_what_an_agent_took_with_it_is_looked_for() -> None:
    world = trained(20)
    saved(world, 30)
    lose_an_agent(world)
    assert world.attempt().number == 2
    assert world.offered()[0] == (30, "directory")


def test_shards_of_one_agent_that_were_reported_are_recorded_once() -> None:
    world = trained(20)
    shards = saved(world, 30)
    attempt = world.attempt()
    half = dataclasses.replace(attempt, seats=attempt.seats[:1], world_size=2)
    world.state.attempts["run-1"] = half
    world.save(30)
    world.state.attempts["run-1"] = attempt
    assert world.state.checkpoints["run-1/1/directory/30"].trust is Trust.WRITING
    lose_an_agent(world)
    found = world.state.checkpoints["run-1/1/directory/30"]
    assert (found.trust, found.bytes) == (Trust.COMPLETE, sum(s.files[0].bytes for s in shards))


def test_a_rollback_leaves_behind_what_is_found_after_its_step() -> None:
    world = trained(30)
    world.restart()
    saved(world, 40)
    world.do(world.event(RollbackAsked, run="run-1", to_step=20, actor="operator:ann"))
    world.settle()
    assert world.offered()[0] == (20, "directory")
    assert world.state.checkpoints["run-1/1/directory/40"].superseded


def test_an_agent_that_does_not_answer_holds_a_restart_up_for_a_minute_only() -> None:
    world = trained(20)
    world.restart()
    world.looks = False
    world.die()
    world.settle()
    assert world.attempt().number == 1
    assert "looks on node-1 for checkpoints on disk" in world.run().reason
    world.advance(LOOK_SECONDS + 1)
    world.settle()
    assert world.attempt().number == 2
    assert world.offered()[0] == (20, "directory")


@pytest.mark.parametrize("asked", [0, 1])
def test_the_look_goes_to_another_agent_when_the_first_dies(asked: int) -> None:
    world = trained(20)
    world.restart()
    world.looks = False
    world.die()
    world.settle()
    [look] = world.told("find_checkpoints")
    victims = [seat.worker for seat in world.attempt().seats]
    world.looks = True
    saved(world, 30)
    world.kill_agent(look.worker if not asked else next(w for w in victims if w != look.worker))
    world.settle()
    if asked:  # the other died: the first is still to answer
        world.advance(LOOK_SECONDS + 1)
        world.settle()
    assert world.attempt().number == 2
    assert world.offered()[0] == ((20, "directory") if asked else (30, "directory"))


def test_an_answer_that_comes_too_late_changes_nothing() -> None:
    world = trained(20)
    world.restart()
    saved(world, 30)
    world.slow = True
    world.die()
    while world.attempt().number == 1:
        orders = [order for order in world.orders if order.command.kind != "find_checkpoints"]
        if orders:
            world.obey(orders[0])
        elif world.messages:
            world.do(world.messages.pop(0))
        else:
            world.advance(LOOK_SECONDS + 1)
    world.slow = False
    world.settle()
    assert "run-1/1/directory/30" not in world.state.checkpoints
    assert world.run().state in {RunState.RECOVERING, RunState.RUNNING}
