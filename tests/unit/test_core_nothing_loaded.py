"""Checkpoints that cannot be loaded: a stale mount for ten seconds must not end weeks of work."""

from __future__ import annotations

import pytest

from jobs.events import RankRestored, RejectedCheckpoint
from monitors.failures import FailureClass
from monitors.types import Severity
from orchestrator.core.messages.events import RestartAsked, RollbackAsked, RunReleased
from orchestrator.core.messages.instructions import (
    Notify,
)
from orchestrator.core.model.states import AttemptState, RunState, Trust
from orchestrator.core.policy.recovery import LOAD_TRIES
from orchestrator.errors import ConflictError
from tests.matching import match
from tests.world import World, trained


def load_nothing(world: World, *, unreadable: bool, ranks: tuple[int, ...] = (0, 1)) -> None:
    """The attempt comes up, and these ranks find no checkpoint they can load."""
    offered = world.told("start_attempt")[-1].command.restore
    rejected = tuple(
        RejectedCheckpoint(id=c.id, reason=f"{c.path}: gone", unreadable=unreadable)
        for c in offered
    )
    nothing = {"step": 0, "checkpoint": "", "rejected": rejected}
    world.messages = [
        m.model_copy(update=nothing) if isinstance(m, RankRestored) and m.rank in ranks else m
        for m in world.messages
    ]
    attempt = world.attempt().number
    while world.messages and world.attempt().number == attempt:
        world.do(world.messages.pop(0))


def trusts(world: World) -> dict[int, Trust]:
    return {c.step: c.trust for c in world.state.checkpoints_of("run-1")}


@pytest.mark.parametrize("ranks", [(0, 1), (1,)], ids=["all ranks", "one rank"])
def test_unreadable_checkpoints_are_tried_again_and_are_not_bad(ranks: tuple[int, ...]) -> None:
    world = trained(45)
    before = trusts(world)
    world.die(last_step=45)
    while world.attempt().number == 1:
        world.do(world.messages.pop(0))
    load_nothing(world, unreadable=True, ranks=ranks)
    restart = world.attempt().restart
    assert restart is not None
    assert (restart.failure_class, restart.node) == (FailureClass.STORAGE, None)
    assert trusts(world) == before
    world.settle()
    assert (world.attempt().number, world.attempt().start_step) == (3, 40)


def unreadable_for_long(world: World) -> None:
    world.die(last_step=45)
    while world.attempt().number == 1:
        world.do(world.messages.pop(0))
    for _ in range(LOAD_TRIES + 1):
        load_nothing(world, unreadable=True)
        world.advance(61)


def test_a_run_whose_checkpoints_stay_unreadable_is_held_and_paged() -> None:
    """Row 16. Time enough for a mount to come back, and then it is for a person to say."""
    world = trained(45)
    before, begun = trusts(world), world.now
    unreadable_for_long(world)
    assert world.run().state is RunState.HELD
    assert f"({LOAD_TRIES + 1} times)" in world.run().reason
    assert f"`babysit rollback {world.run().name} --to STEP`" in world.run().reason
    assert (world.now - begun).total_seconds() > 180
    assert match(Notify, severity=Severity.CRITICAL, run="run-1") in world.carried
    assert trusts(world) == before
    assert world.attempt().state is AttemptState.ENDED
    number = world.attempt().number
    world.do(world.event(RunReleased, run="run-1"))
    world.settle()
    assert (world.attempt().number, world.attempt().start_step) == (number + 1, 40)
    world.reach(46)
    assert world.run().state is RunState.RUNNING


def test_a_release_while_nothing_can_be_read_holds_again() -> None:
    world = trained(45)
    unreadable_for_long(world)
    world.do(world.event(RunReleased, run="run-1"))
    load_nothing(world, unreadable=True)
    assert world.run().state is RunState.HELD


def test_a_person_may_choose_another_step_while_it_is_held() -> None:
    world = trained(45)
    unreadable_for_long(world)
    for refused in (RestartAsked, RollbackAsked):
        with pytest.raises(ConflictError, match="release"):
            world.do(world.event(refused, run="run-1"))
    world.do(world.event(RollbackAsked, run="run-1", to_step=0, actor="operator:ada"))
    world.settle()
    assert world.attempt().start_step == 0
    world.reach(1)
    assert world.run().state is not RunState.HELD


def test_damaged_checkpoints_are_condemned_and_the_next_eight_offered() -> None:
    world = trained(105, checkpoint={"directory": "/checkpoints", "every_steps": 10, "keep": 50})
    world.die(last_step=105)
    while world.attempt().number == 1:
        world.do(world.messages.pop(0))
    load_nothing(world, unreadable=False)
    world.settle()
    assert (world.attempt().number, world.attempt().start_step) == (3, 20)


def test_where_all_are_damaged_the_run_is_held() -> None:
    world = trained(45)
    world.die(last_step=45)
    while world.attempt().number == 1:
        world.do(world.messages.pop(0))
    load_nothing(world, unreadable=False)
    world.settle()
    assert world.run().state is RunState.HELD
    assert "none of its checkpoints can be trusted" in world.run().reason
    world.do(world.event(RunReleased, run="run-1"))
    assert world.run().state is RunState.HELD
    world.do(world.event(RollbackAsked, run="run-1", to_step=0))
    world.settle()
    assert world.attempt().start_step == 0
    world.die(last_step=0)
    world.settle()
    assert world.attempt().number == 4, "to begin again was asked for: it holds for the next crash"
