"""Holds: no automatic action until the release, which catches up on it."""

from __future__ import annotations

import pytest

from jobs.commands import StartAttempt, StopAttempt
from monitors.types import FindingKind
from orchestrator.core.messages.events import NodeChanged, RestartAsked, RunHeld, RunReleased
from orchestrator.core.model.states import AttemptState, RunState
from orchestrator.core.views.explain import explain
from orchestrator.errors import ConflictError
from tests.matching import command
from tests.world import World, trained


def test_a_hold_stops_all_action_until_released() -> None:
    world = trained(15)
    world.do(world.event(RunHeld, run="run-1", actor="operator:ada", reason="debugging"))
    world.find(onset=12)
    assert command(StopAttempt) not in world.carried
    world.die(rank=1, last_step=15)
    world.settle()
    assert command(StartAttempt, attempt=2) not in world.carried
    assert world.attempt().state is AttemptState.ENDED
    assert world.run().state is RunState.HELD
    world.do(world.event(RunReleased, run="run-1"))
    world.settle()
    assert world.attempt().number == 2


def test_holding_everything_keeps_queued_runs_where_they_are() -> None:
    world = World()
    world.do(world.event(RunHeld, run=None, actor="operator:ada", reason="network work"))
    world.submit()
    world.settle()
    assert world.agents == {}
    assert "network work" in explain(world.state, "run-1", world.now).reason
    world.do(world.event(RunReleased, run=None))
    world.settle()
    assert world.attempt().number == 1


def test_a_restart_is_refused_while_everything_is_held() -> None:
    """It would stop the gang, and nothing would start the next."""
    world = trained(5)
    world.do(world.event(RunHeld, run=None))
    with pytest.raises(ConflictError, match="babysit release"):
        world.do(world.event(RestartAsked, run="run-1"))
    assert world.attempt().state is AttemptState.RUNNING


@pytest.mark.parametrize("held", ["run-1", None])
def test_a_drain_under_a_hold_is_done_at_its_release(held: str | None) -> None:
    world = trained(5)
    node = world.attempt().seats[0].node
    world.do(world.event(RunHeld, run=held))
    world.do(world.event(NodeChanged, node=node, state="draining", reason="new fans"))
    world.settle()
    assert world.attempt().state is AttemptState.RUNNING
    world.do(world.event(RunReleased, run=held))
    world.settle()
    assert world.attempt().number == 2
    assert node not in {seat.node for seat in world.attempt().seats}


@pytest.mark.parametrize("kind", [FindingKind.HANG, FindingKind.LOSS_SPIKE])
@pytest.mark.parametrize("held", ["run-1", None])
def test_a_finding_under_a_hold_is_acted_on_at_its_release(
    held: str | None, kind: FindingKind
) -> None:
    world = trained(30)
    world.do(world.event(RunHeld, run=held))
    world.find(kind, onset=30)
    world.settle()
    assert world.attempt().state is AttemptState.RUNNING
    world.do(world.event(RunReleased, run=held))
    world.settle()
    assert world.attempt().number == 2


def test_a_hang_that_ended_by_itself_under_a_hold_is_forgotten() -> None:
    world = trained(30)
    world.do(world.event(RunHeld, run="run-1"))
    world.find(FindingKind.HANG, onset=30)
    assert world.attempt().milestone <= 40, "nobody would hear that it goes on"
    world.reach(40)
    world.do(world.event(RunReleased, run="run-1"))
    world.settle()
    assert world.attempt().number == 1
    assert world.run().state is RunState.RUNNING


def test_a_hold_that_comes_while_stacks_are_captured_keeps_the_gang() -> None:
    world = trained(30)
    world.find(FindingKind.HANG, onset=30)
    world.do(world.event(RunHeld, run="run-1"))
    world.settle()
    world.advance(60)
    assert world.attempt().state is AttemptState.RUNNING
    world.do(world.event(RunReleased, run="run-1"))
    world.settle()
    assert world.attempt().number == 2


def ask_spec(monitor: str) -> dict[str, object]:
    return {"monitors": {monitor: {"action": "ask"}}}


def test_an_unanswered_question_waits_for_the_end_of_a_hold() -> None:
    world = trained(30, **ask_spec("loss_spike"))
    world.find(onset=28)
    world.do(world.event(RunHeld, run=None))
    world.advance(1000)
    assert world.attempt().state is AttemptState.RUNNING
    world.do(world.event(RunReleased, run=None))
    world.settle()
    assert world.attempt().number == 2
