"""Rollbacks and restarts: the step a run goes back to, and the checkpoints it leaves behind."""

from __future__ import annotations

import pytest

from jobs.events import AttemptStopped, CheckpointChecked, RankRestored
from orchestrator.core.messages.events import CheckpointPinned, RestartAsked, RollbackAsked
from orchestrator.core.model.states import AttemptState, RunState, Trust
from orchestrator.core.views.build import restart_view
from orchestrator.errors import ConflictError, InvalidError
from tests.world import World, trained


def test_operators_restart_and_roll_back() -> None:
    world = trained(35)
    world.do(world.event(RestartAsked, run="run-1", actor="operator:ada"))
    world.settle()
    assert world.attempt().number == 2
    assert world.attempt().start_step == 30
    with pytest.raises(ConflictError, match="no checkpoint of step 17"):
        world.do(world.event(RollbackAsked, run="run-1", to_step=17))
    world.do(
        world.event(RollbackAsked, run="run-1", to_step=20, skip=(21, 25), actor="operator:ada")
    )
    world.settle()
    assert (world.attempt().number, world.attempt().start_step) == (3, 20)
    assert world.run().skip_batches == ((21, 25),)


def test_a_rollback_that_skips_batches_goes_back_to_before_them() -> None:
    world = trained(45)
    ask = world.event(RollbackAsked, run="run-1", skip=(25, 27), actor="operator:ada")
    world.do(ask)
    world.settle()
    assert (world.attempt().start_step, world.run().skip_batches) == (20, ((25, 27),))


@pytest.mark.parametrize("skip", [(10, 5), (0, 5), (-3, -1)])
def test_batches_to_skip_are_checked(skip: tuple[int, int]) -> None:
    world = trained(20)
    with pytest.raises(InvalidError, match="skip"):
        world.do(world.event(RollbackAsked, run="run-1", skip=skip))


@pytest.mark.parametrize("skip", [None, (5, 7)])
def test_a_rollback_that_names_no_step_never_throws_everything_away(
    skip: tuple[int, int] | None,
) -> None:
    world = trained(10)
    with pytest.raises(ConflictError, match=r"of steps: 10\. .* `--to 0` restarts from the beg"):
        world.do(world.event(RollbackAsked, run="run-1", skip=skip))
    world.do(world.event(RollbackAsked, run="run-1", to_step=0))
    world.settle()
    assert world.attempt().start_step == 0


def test_a_rollback_goes_by_the_step_that_was_truly_reached() -> None:
    """The core hears of milestones only, which lie up to a hundred steps apart."""
    world = trained(69, checkpoint={"directory": "/checkpoints", "every_steps": 20})
    assert world.run().best_step < 60
    world.do(world.event(RollbackAsked, run="run-1"))
    world.settle()
    assert world.attempt().start_step == 60


def test_a_rollback_by_hand_leaves_pinned_checkpoints_to_be_asked_for_again() -> None:
    world = trained(20)
    pinned = "run-1/1/directory/20"
    world.do(world.event(CheckpointPinned, run="run-1", checkpoint=pinned))
    world.do(world.event(RollbackAsked, run="run-1", to_step=10))
    world.settle()
    world.die(last_step=10)
    world.settle()
    assert world.offered()[0] == (10, "directory")
    with pytest.raises(ConflictError, match=r"superseded .*--force"):
        world.do(world.event(RollbackAsked, run="run-1", to_step=20))
    world.do(world.event(RollbackAsked, run="run-1", to_step=20, force=True))
    world.settle()
    assert world.offered()[0] == (20, "directory")
    world.reach(21)
    world.die(last_step=21)
    world.settle()
    assert world.offered()[0] == (20, "directory"), "it is the run's past again"


def test_a_rollback_that_dies_before_it_has_loaded_goes_back_as_far_again() -> None:
    world = trained(24)  # step 10 is good, step 20 is not yet
    assert world.state.checkpoints["run-1/1/directory/10"].trust is Trust.GOOD
    world.remember(24)
    world.find(onset=25)
    for message in [m for m in world.messages if m.kind == "attempt_stopped"]:
        world.messages.remove(message)
        world.do(message)
    assert world.offered()[0] == (10, "directory")
    world.messages.clear()
    world.die(last_step=0)
    world.settle()
    assert world.attempt().number == 3
    assert world.offered()[0] == (10, "directory")


def test_checkpoints_that_a_rollback_left_behind_are_neither_loaded_nor_promoted() -> None:
    """Clean steps of the new branch say nothing about a checkpoint of the old one."""
    world = trained(25)
    world.find(onset=25)
    world.settle()
    assert world.attempt().start_step == 10
    world.reach(19)
    world.reach(45)
    left = world.state.checkpoints["run-1/1/directory/20"]
    assert (left.trust, left.superseded) == (Trust.VERIFIED, True)


def test_a_checkpoint_that_a_fallback_left_behind_is_not_loaded_later() -> None:
    """Memory was not there for one rank: all went on from step 20, and so does the next attempt."""
    world = trained(25)
    world.remember(25)
    world.die(last_step=25)
    for message in [m for m in world.messages if isinstance(m, AttemptStopped)]:
        world.do(message)
    assert world.offered()[:2] == [(25, "memory"), (20, "directory")]
    instead = {"step": 20, "checkpoint": "run-1/1/directory/20"}
    world.messages = [
        m.model_copy(update=instead) if isinstance(m, RankRestored) else m for m in world.messages
    ]
    world.settle()
    assert world.attempt().start_step == 20
    world.reach(26)
    world.die(last_step=26)
    world.settle()
    assert world.offered()[0] == (20, "directory")


def test_a_restart_asked_for_during_a_rollback_does_not_undo_it() -> None:
    world = trained(24)
    world.remember(24)
    world.find(onset=22)
    assert world.attempt().state is AttemptState.STOPPING
    world.do(world.event(RestartAsked, run="run-1"))
    world.settle()
    assert world.offered()[0] == (10, "directory")


def test_a_request_is_the_class_of_its_restart() -> None:
    """`unknown` would read as if babysit did not know why it restarted the run."""
    world = trained(25)
    world.do(world.event(RestartAsked, run="run-1", actor="operator:ada"))
    world.settle()
    classes = [shown_class(world)]
    world.do(world.event(RollbackAsked, run="run-1", to_step=10, actor="operator:ada"))
    world.settle()
    assert [*classes, shown_class(world)] == ["restart", "rollback"]


def shown_class(world: World) -> str:
    restart = world.attempt().restart
    assert restart is not None
    return restart_view(restart).failure_class


def test_what_is_saved_while_ranks_stop_does_not_cost_the_step_to_go_back_to() -> None:
    world = trained(25, checkpoint={"directory": "/checkpoints", "every_steps": 10, "keep": 1})
    before = {c.step for c in world.state.checkpoints_of("run-1") if c.deleted_at is None}
    world.do(world.event(RollbackAsked, run="run-1", to_step=min(before)))
    assert world.attempt().state is AttemptState.STOPPING
    world.save(26)
    for message in [m for m in world.messages if isinstance(m, CheckpointChecked)]:
        world.do(message)  # read back before the last rank has ended
    world.settle()
    assert (world.attempt().number, world.attempt().start_step) == (2, min(before))


@pytest.mark.parametrize(("saved", "start"), [(10, 10), (18, None)])
def test_a_checkpoint_that_is_read_back_while_ranks_stop_is_good_by_the_steps_before_the_onset(
    saved: int, start: int | None
) -> None:
    """On a busy disk the reading ends after the finding; without it the run would be held."""
    world = trained(5)
    world.reach(saved)
    world.save(saved)
    world.reach(25)
    world.find(onset=25)
    read = [m for m in world.messages if isinstance(m, CheckpointChecked)]
    assert len(read) == 2
    for message in read:
        world.messages.remove(message)
        world.do(message)
    world.settle()
    if start is None:
        assert world.run().state is RunState.HELD, "too few clean steps from there to the onset"
    else:
        assert (world.attempt().number, world.attempt().start_step) == (2, start)
