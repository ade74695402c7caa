"""Updates of incidents: each change that people would see goes out, once for each turn."""

from __future__ import annotations

import datetime as dt

import pytest

from orchestrator.core.messages.events import IncidentChanged, RunCancelled
from orchestrator.core.messages.instructions import INSTRUCTION, IncidentUpdate
from orchestrator.core.messages.notice_events import IncidentSilenced
from orchestrator.core.model.states import IncidentState
from orchestrator.errors import NotFoundError
from tests.world import World, trained


def updates(world: World) -> list[IncidentUpdate]:
    return [
        each
        for _, _, instructions in world.journal
        for each in instructions
        if isinstance(each, IncidentUpdate)
    ]


def test_an_incident_is_shown_from_its_opening_to_its_end_with_the_lost_time() -> None:
    world = trained(30)
    world.find(onset=28)
    world.settle()
    (incident,) = world.state.incidents_of("run-1")
    (opened, *_) = updates(world)
    assert (opened.incident.id, opened.incident.state) == (incident.id, IncidentState.MITIGATING)
    assert (opened.run_name, opened.incident.onset_step) == (world.run().name, 28)
    assert opened.lost_seconds is None
    assert "finding" not in opened.incident.evidence  # which may be megabytes of stacks
    world.trained_to(40)
    last = updates(world)[-1]
    assert last.incident.state is IncidentState.RESOLVED
    assert "again" in last.incident.evidence["resolved"]
    assert last.lost_seconds is not None
    assert last.lost_seconds > 0
    assert last.dedup_key == opened.dedup_key
    # One for each change, and as the outbox gives it back.
    shown = [(u.incident.state, u.incident.response) for u in updates(world)]
    assert len(shown) == len(set(shown))
    assert INSTRUCTION.validate_json(last.model_dump_json()) == last


def test_an_acknowledgement_is_shown_also_when_the_run_is_long_over() -> None:
    world = trained(30)
    world.find(onset=28)
    (incident,) = world.state.incidents_of("run-1")
    world.do(world.event(RunCancelled, run="run-1"))
    world.settle()
    over = world.state.incidents[incident.id]
    world.state.forget()
    world.state.recall(over)
    before = len(updates(world))
    world.do(world.event(IncidentChanged, incident=over.id, acknowledge=True, actor="operator:mia"))
    (shown,) = updates(world)[before:]
    assert shown.incident.acknowledged_by == "operator:mia"
    assert shown.run == "run-1"


def test_what_people_do_not_see_change_is_not_shown() -> None:
    world = trained(30)
    world.find(onset=28)
    (incident,) = world.state.incidents_of("run-1")
    world.do(world.event(IncidentChanged, incident=incident.id, acknowledge=True))
    before = len(updates(world))
    world.do(world.event(IncidentChanged, incident=incident.id, acknowledge=True))
    assert len(updates(world)) == before


def test_a_silence_is_shown_and_stops_nothing_but_pings() -> None:
    world = trained(30, monitors={"loss_spike": {"action": "ask"}})
    world.find(onset=28)
    (incident,) = world.state.incidents_of("run-1")
    ask = {"incident": incident.id, "seconds": 3600, "actor": "operator:mia"}
    world.do(world.event(IncidentSilenced, **ask))
    shown = updates(world)[-1]
    assert shown.steps == (30, 20, 10)
    assert shown.incident.silenced_until == world.now + dt.timedelta(hours=1)
    world.advance(901)
    world.settle()
    assert world.attempt().number == 2
    with pytest.raises(NotFoundError):
        world.do(world.event(IncidentSilenced, incident="none", seconds=60))
