"""Checkpoints in the memory of nodes."""

from __future__ import annotations

from babysit.wire import Tier
from jobs.commands import StartAttempt
from orchestrator.core.messages.events import RollbackAsked
from orchestrator.core.model.states import RunState
from tests.matching import command
from tests.world import trained


def test_a_killed_rank_restarts_the_gang_from_the_newest_memory_checkpoint() -> None:
    world = trained(25)
    world.remember(25)
    world.die(rank=1, last_step=25)
    world.settle()
    assert command(StartAttempt, attempt=2) in world.carried
    assert world.offered()[0] == (25, "memory")
    world.reach(26)
    restart = world.attempt().restart
    assert restart is not None
    assert restart.recovered_at is not None
    assert (restart.lost_steps, restart.resumed_step) == (0, 25)
    assert world.run().state is RunState.RUNNING
    assert not world.state.incidents_of("run-1") or all(
        i.state == "resolved" for i in world.state.incidents_of("run-1")
    )


def test_memory_checkpoints_do_not_pile_up() -> None:
    world = trained(1)
    for step in range(2, 40):
        world.reach(step)
        world.remember(step)
        world.die(last_step=step)
        world.settle()
        world.state.forget()
    memory = [c for c in world.state.checkpoints_of("run-1") if c.tier is Tier.MEMORY]
    assert len(memory) <= 3
    assert world.offered()[0] == (39, "memory")


def test_a_memory_checkpoint_goes_with_the_worker_that_held_it() -> None:
    world = trained(25)
    world.remember(25)
    world.die(last_step=25)
    world.settle()
    world.kill_agent(world.attempt().seats[0].worker)
    world.settle()
    world.state.forget()
    assert not [c for c in world.state.checkpoints_of("run-1") if c.tier is Tier.MEMORY]


def test_a_shard_that_was_given_up_does_not_come_back_to_life() -> None:
    world = trained(25)
    world.remember(25)
    kept = {agent.worker: list(agent.memory) for agent in world.agents.values()}
    world.die(last_step=25)
    world.settle()
    world.do(world.event(RollbackAsked, run="run-1", to_step=10))
    world.settle()
    world.state.forget()
    for agent in world.agents.values():
        agent.memory = kept.get(agent.worker, [])
    world.die(last_step=12)
    world.settle()
    assert world.offered()[0] == (10, "directory")
