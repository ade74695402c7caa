"""Checkpoints after whose loading ranks die: doubted, acquitted, and never condemned."""

from __future__ import annotations

import dataclasses

import pytest

from jobs.commands import RestoreCandidate, StartAttempt
from jobs.events import RankRestored
from monitors.failures import Failure, FailureClass
from orchestrator.core.messages.events import RollbackAsked
from orchestrator.core.model.entities import Checkpoint
from orchestrator.core.model.states import RunState, Trust
from orchestrator.core.policy import doubt
from orchestrator.core.views.build import checkpoint_view
from orchestrator.errors import ConflictError, InvalidError
from tests.world import World, trained

CRASH = Failure(failure_class=FailureClass.UNKNOWN, reason="exit code 255", signature="unknown")


def dies_after_loading(world: World, failure: Failure | None = None) -> int:
    """A rank dies before a new step; the step that the next attempt has loaded."""
    world.die(rank=1, failure=failure)
    world.settle()
    world.advance(61)
    world.settle()
    return world.attempt().start_step


def of_step(world: World, step: int) -> Checkpoint:
    return next(c for c in world.state.checkpoints_of("run-1") if c.step == step)


def sound(world: World) -> bool:
    known = world.state.checkpoints_of("run-1")
    return all(c.trust is not Trust.BAD and not c.doubted and not c.superseded for c in known)


def node_of_rank_1(world: World) -> str:
    return next(seat.node for seat in world.attempt().seats if 1 in seat.ranks)


def crashed(steps: int = 45) -> World:
    """A run that died in training, and has loaded step 40."""
    world = trained(steps)
    world.die(rank=1, last_step=steps)
    world.settle()
    assert world.attempt().start_step == 40
    return world


def test_the_order_is_same_node_other_node_older_checkpoint() -> None:
    world = crashed()
    first = node_of_rank_1(world)
    assert dies_after_loading(world, CRASH) == 40
    assert node_of_rank_1(world) == first
    assert dies_after_loading(world, CRASH) == 40
    assert node_of_rank_1(world) != first
    assert sound(world)
    assert dies_after_loading(world, CRASH) == 30
    doubted = of_step(world, 40)
    assert (doubted.trust, doubted.doubted) == (Trust.VERIFIED, True)
    assert "3 attempts in a row died right after loading it" in doubted.reason
    assert checkpoint_view(doubted, world.now).doubted
    restart = world.attempt().restart
    assert restart is not None
    assert "step 40 is doubted" in restart.reason


def test_an_outage_leaves_every_checkpoint_sound_and_the_run_goes_on_from_the_newest() -> None:
    """Something outside kills each rank after it has loaded, for as long as it likes."""
    world = crashed()
    loaded = [dies_after_loading(world) for _ in range(20)]
    assert loaded == [40, 40, 30, *[40] * 17]
    assert sound(world)
    assert world.run().avoid == ()
    world.trained_to(46)
    assert world.run().state is RunState.RUNNING
    assert (world.attempt().start_step, world.run().best_step) == (40, 46)


def test_the_older_one_that_trains_on_proves_the_doubt_and_is_the_past_from_then_on() -> None:
    world = crashed()
    while world.attempt().start_step == 40:
        dies_after_loading(world)
    world.reach(31)
    assert of_step(world, 40).superseded
    world.die(last_step=31)
    world.settle()
    assert world.offered()[0] == (30, "directory")


def loads(world: World, rank: int, offered: tuple[RestoreCandidate, ...], nth: int) -> None:
    """A rank loads the nth checkpoint that it was offered, and could not read those before it."""
    attempt = world.attempt()
    world.do(
        world.event(
            RankRestored,
            run="run-1",
            worker=attempt.seats[rank].worker,
            attempt=attempt.number,
            rank=rank,
            step=offered[nth].step,
            checkpoint=offered[nth].id,
            rejected=[{"id": c.id, "reason": "busy", "unreadable": True} for c in offered[:nth]],
        )
    )


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_ranks_that_loaded_different_steps_are_not_offered_the_newer_one_again(
    order: tuple[int, int],
) -> None:
    """Whoever spoke first: the split is no evidence that acquits what it cast doubt on."""
    world = trained(45)
    world.remember(45)
    world.restores = False
    world.die(rank=1, last_step=45)
    world.settle()
    assert world.offered()[:3] == [(45, "memory"), (40, "directory"), (30, "directory")]
    start = world.told("start_attempt")[-1].command
    assert isinstance(start, StartAttempt)
    for rank in order:
        loads(world, rank, start.restore, nth=2 if rank == 1 else 0)
    world.settle()
    assert world.attempt().number == 3
    assert world.offered()[0] == (40, "directory")
    assert not any(c.acquitted for c in world.state.checkpoints_of("run-1"))
    assert all(c.deaths == 0 for c in world.state.checkpoints_of("run-1"))


@pytest.mark.parametrize("deleted", [30, 40])
def test_a_deleted_checkpoint_is_no_evidence_whenever_it_is_forgotten(deleted: int) -> None:
    world = crashed()
    while world.attempt().start_step == 40:
        dies_after_loading(world, CRASH)
    known = world.state.checkpoints_of("run-1")
    assert doubt.rule(world.attempt(), CRASH, known).acquit == (of_step(world, 40).id,)
    left = [c for c in known if c.step != deleted]
    gone = dataclasses.replace(of_step(world, deleted), deleted_at=world.now)
    assert doubt.rule(world.attempt(), CRASH, [*left, gone]) == doubt.rule(
        world.attempt(), CRASH, left
    )


def test_an_only_checkpoint_is_never_doubted() -> None:
    world = trained(15)
    world.die(last_step=15)
    world.settle()
    assert [dies_after_loading(world) for _ in range(8)] == [10] * 8
    assert sound(world)


def test_a_step_after_a_load_clears_the_count() -> None:
    world = crashed()
    for _ in range(2):
        dies_after_loading(world)
    world.reach(41)
    assert dies_after_loading(world) == 40
    assert of_step(world, 40).deaths == 0
    assert [dies_after_loading(world) for _ in range(2)] == [40, 40]


@pytest.mark.parametrize("failure_class", [FailureClass.NETWORK, FailureClass.STORAGE])
def test_failures_that_no_checkpoint_can_cause_cast_no_doubt(failure_class: FailureClass) -> None:
    world = crashed()
    away = Failure(failure_class=failure_class, reason="away", signature="away")
    assert [dies_after_loading(world, away) for _ in range(6)] == [40] * 6
    assert sound(world)


def test_the_last_death_that_stops_a_run_still_acquits() -> None:
    """A program that faults wherever it runs: its checkpoints are not to blame."""
    fault = Failure(
        failure_class=FailureClass.SIGNAL, reason="ended by SIGSEGV", signature="signal:SIGSEGV"
    )
    world = crashed()
    for _ in range(4):
        if world.run().state is not RunState.FAILED:
            world.die(rank=1, failure=fault)
            world.settle()
            world.advance(61)
            world.settle()
    assert world.run().state is RunState.FAILED
    assert all(c.trust is not Trust.BAD and not c.doubted for c in world.state.checkpoints.values())


def test_a_person_overrules_doubt() -> None:
    world = crashed()
    while world.attempt().start_step == 40:
        dies_after_loading(world)
    with pytest.raises(ConflictError, match="step 40 of tiny is doubted"):
        world.do(world.event(RollbackAsked, run="run-1", to_step=40))
    with pytest.raises(InvalidError, match="add --to STEP"):
        world.do(world.event(RollbackAsked, run="run-1", force=True))
    world.do(world.event(RollbackAsked, run="run-1", to_step=40, force=True))
    world.settle()
    assert world.attempt().start_step == 40
    assert [dies_after_loading(world) for _ in range(4)] == [40] * 4, "a person has said so"


def test_a_bad_checkpoint_may_be_tried_and_stays_bad() -> None:
    world = trained(45)
    bad = of_step(world, 40)
    world.state.put(dataclasses.replace(bad, trust=Trust.BAD, reason="rank 0: content differs"))
    with pytest.raises(ConflictError, match=r"is bad .rank 0: content differs"):
        world.do(world.event(RollbackAsked, run="run-1", to_step=40))
    world.do(world.event(RollbackAsked, run="run-1", to_step=40, force=True))
    world.settle()
    assert [step for step, _ in world.offered()] == [40, 30, 20]
    assert of_step(world, 40).trust is Trust.BAD
    world.die(last_step=40)
    world.settle()
    assert world.offered()[0] == (30, "directory")
