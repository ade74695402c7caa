"""A remedy that people are asked about starts by its default only once they were reached."""

from __future__ import annotations

import dataclasses

from orchestrator.core.messages.events import IncidentChanged, RunHeld, RunReleased
from orchestrator.core.messages.instructions import IncidentUpdate, Notify
from orchestrator.core.messages.notice_events import AskDelivered
from orchestrator.core.model.states import IncidentState
from orchestrator.core.supervision.findings import ASK_SECONDS
from orchestrator.core.supervision.incident_updates import show_changes
from orchestrator.core.turn import Turn
from orchestrator.core.views.remedy_text import incident_remedy
from tests.world import World, trained

ASK = {"monitors": {"loss_spike": {"action": "ask"}}}


def asked(*, reached: bool) -> World:
    world = trained(30, **ASK)
    world.people_are_reached = reached
    world.find(onset=28)
    return world


def updates(world: World) -> list[IncidentUpdate]:
    decided = (each for _, _, instructions in world.journal for each in instructions)
    return [each for each in decided if isinstance(each, IncidentUpdate)]


def reach(world: World) -> None:
    (incident,) = world.state.incidents_of("run-1")
    world.do(world.event(AskDelivered, run="run-1", incident=incident.id))


def test_a_question_says_what_starts_and_when() -> None:
    world = asked(reached=True)
    (incident,) = world.state.incidents_of("run-1")
    assert incident.remedy_at is not None
    assert (incident.remedy_at - world.now).total_seconds() == ASK_SECONDS
    assert f"at {incident.remedy_at:%H:%M} UTC unless held" in incident_remedy(incident)
    world.advance(ASK_SECONDS + 1)
    world.settle()
    assert world.attempt().number == 2


def test_a_question_that_reached_nobody_starts_nothing() -> None:
    world = asked(reached=False)
    (notice,) = [each for each in world.carried if isinstance(each, Notify)]
    assert notice.asks
    world.advance(ASK_SECONDS * 20)
    world.settle()
    assert world.attempt().number == 1
    reach(world)
    world.advance(ASK_SECONDS - 1)
    world.settle()
    assert world.attempt().number == 1
    world.advance(2)
    world.settle()
    assert world.attempt().number == 2


def test_a_release_does_not_start_what_nobody_was_asked_about() -> None:
    world = asked(reached=False)
    world.do(world.event(RunHeld, run="run-1", reason="look", actor="operator:a"))
    world.do(world.event(RunReleased, run="run-1", reason="go", actor="operator:a"))
    world.settle()
    assert world.attempt().number == 1


def test_a_delivery_that_comes_twice_or_after_the_answer_sets_no_time() -> None:
    world = asked(reached=True)
    (incident,) = world.state.incidents_of("run-1")
    world.advance(60)
    reach(world)
    assert world.state.incidents[incident.id].remedy_at == incident.remedy_at
    late = asked(reached=False)
    (incident,) = late.state.incidents_of("run-1")
    late.do(late.event(IncidentChanged, incident=incident.id, acknowledge=True))
    reach(late)
    late.advance(ASK_SECONDS * 2)
    late.settle()
    assert late.attempt().number == 1
    assert late.state.incidents[incident.id].state is IncidentState.OPEN


def test_a_question_names_the_step_that_would_be_loaded_and_its_default() -> None:
    world = asked(reached=True)
    (notice,) = [each for each in world.carried if isinstance(each, Notify)]
    (incident,) = world.state.incidents_of("run-1")
    target = incident.remedy_step
    assert target is not None
    assert f"Shall I roll back to step {target}? It starts 15 min after this is" in notice.text
    assert f"asked; will roll back to step {target} at " in incident_remedy(incident)
    world.advance(ASK_SECONDS + 1)
    world.settle()
    assert world.offered()[0][0] == target


def test_a_hold_and_its_release_are_shown_where_people_were_asked() -> None:
    world = asked(reached=True)
    shown = updates(world)
    assert shown[-1].starts_at is not None
    world.do(world.event(RunHeld, run=None, reason="look", actor="operator:a"))
    shown = updates(world)
    assert (shown[-1].held, shown[-1].starts_at) == ("held by operator:a: look", None)
    world.do(world.event(RunReleased, run=None, reason="go", actor="operator:a"))
    shown = updates(world)
    assert shown[-1].held == ""
    assert shown[-1].starts_at is not None


def test_a_tripped_breaker_is_shown_too() -> None:
    world = asked(reached=True)
    fleet = dataclasses.replace(world.state.fleet, hold="circuit breaker: 5 of 8 nodes")
    turn = Turn(world.state, world.event(RunReleased, run=None), world.now)
    turn.put(fleet)
    show_changes(turn)
    (shown,) = (each for each in turn.instructions if isinstance(each, IncidentUpdate))
    assert shown.held == "circuit breaker: 5 of 8 nodes"
