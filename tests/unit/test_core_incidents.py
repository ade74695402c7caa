"""Incidents that people acknowledge, judge and resolve."""

from __future__ import annotations

from orchestrator.core.messages.events import IncidentChanged, RunCancelled
from orchestrator.core.model.states import IncidentState
from tests.world import trained


def test_an_incident_can_be_acknowledged_when_its_run_is_long_over() -> None:
    world = trained(30)
    world.find(onset=28)
    (incident,) = world.state.incidents_of("run-1")
    world.do(world.event(RunCancelled, run="run-1"))
    world.settle()
    over = world.state.incidents[incident.id]
    world.state.forget()
    assert "run-1" not in world.state.runs
    world.state.recall(over)
    world.do(world.event(IncidentChanged, incident=over.id, acknowledge=True, verdict="right"))
    assert world.state.incidents[over.id].verdict == "right"


def test_an_incident_resolved_by_hand_does_not_break_the_recovery() -> None:
    world = trained(30)
    world.find(onset=28)
    (incident,) = world.state.incidents_of("run-1")
    world.do(world.event(IncidentChanged, incident=incident.id, state=IncidentState.RESOLVED))
    world.settle()
    assert world.attempt().number == 2
