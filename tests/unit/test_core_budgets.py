"""Budgets: how often a run is restarted before it fails."""

from __future__ import annotations

from monitors.failures import Failure, FailureClass
from orchestrator.core.model.states import RunState
from tests.world import trained

USER_ERROR = Failure(
    failure_class=FailureClass.USER_CODE,
    reason="ValueError: bad batch",
    signature="ValueError train.py",
)


def test_a_user_error_stops_after_one_confirmation_with_the_tracebacks_last_line() -> None:
    world = trained(4)
    world.die(failure=USER_ERROR, last_step=4)
    world.settle()
    assert world.attempt().number == 2
    world.die(failure=USER_ERROR, last_step=4)
    world.settle()
    assert world.run().state is RunState.FAILED
    assert world.run().reason == "ValueError: bad batch"


def test_a_user_error_after_progress_earns_another_try() -> None:
    world = trained(4)
    world.die(failure=USER_ERROR, last_step=4)
    world.settle()
    world.reach(9)
    world.die(failure=USER_ERROR, last_step=9)
    world.settle()
    assert world.attempt().number == 3


def test_a_script_that_ends_itself_is_confirmed_once_and_no_node_is_blamed() -> None:
    """Row 26: fifty restarts, over all nodes, would tell its owner no more."""
    gave_up = Failure(
        failure_class=FailureClass.UNKNOWN, reason="no data", signature="exit 1", code=1
    )
    closed = Failure(failure_class=FailureClass.CASCADE, reason="closed", signature="closed")
    world = trained(25)
    for _ in range(2):
        world.die(rank=0, failure=closed, last_step=25)
        world.die(rank=1, failure=gave_up, last_step=25)
        world.settle()
    assert (world.run().state, world.run().attempt) == (RunState.FAILED, 2)
    assert world.run().reason == "no data"
    assert not any(node.faults for node in world.state.nodes.values())
    assert not world.run().avoid


def test_a_silent_exit_does_not_condemn_what_was_loaded() -> None:
    """The owner allows more tries: none of them says anything about the checkpoint."""
    gave_up = Failure(
        failure_class=FailureClass.UNKNOWN, reason="no data", signature="exit 1", code=1
    )
    world = trained(25, recovery={"user": 5})
    for _ in range(3):
        world.die(failure=gave_up, last_step=25)
        world.settle()
        world.advance(61)
        world.settle()
    assert world.attempt().start_step == 20


def test_anomalies_in_ever_new_places_without_progress_stop_the_run() -> None:
    keep = {"directory": "/checkpoints", "every_steps": 10, "good_after_steps": 10, "keep": 50}
    world = trained(99, checkpoint=keep)
    world.find(onset=98)
    world.settle()
    for onset in (70, 40, 95):
        if world.run().state is RunState.FAILED:
            break
        world.reach(world.attempt().start_step + 1)
        world.find(onset=onset)
        world.settle()
    assert world.run().state is RunState.FAILED
    assert "rollback" in world.run().reason
