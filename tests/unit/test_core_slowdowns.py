"""Slowdowns of a whole run: an incident while they last, a notice, and never a restart."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.support.slow_series import SLOWDOWNS, Play
from monitors.run_monitors import RunMonitors
from monitors.slowdown_findings import OVER
from monitors.types import FindingKind
from orchestrator.controller.sample_pipeline import monitor_settings
from orchestrator.core.messages.events import FindingRaised, RunHeld, RunReleased
from orchestrator.core.messages.instructions import Notify
from orchestrator.core.model.states import IncidentState, RunState, Trust
from orchestrator.core.model.vocabulary import Remedy
from orchestrator.core.views.explain import explain
from tests.world import World, spec


def training(**monitors):
    world = World(nodes=3)
    world.submit(spec(monitors=monitors))
    world.trained_to(25)
    return world


def incidents(world):
    return sorted(world.state.incidents.values(), key=lambda each: each.id)


def notices(world):
    return [each.text for each in world.carried if isinstance(each, Notify)]


@pytest.mark.parametrize("kind", sorted(SLOWDOWNS))
def test_a_slow_run_goes_on_and_people_hear_of_it_once(kind):
    world = training()
    world.find(kind, onset=20)
    world.find(kind, onset=22)
    world.settle()
    (found,) = incidents(world)
    assert (found.kind, found.state, found.remedy) == (kind, IncidentState.OPEN, Remedy.RECORD)
    assert found.onset_step == 20
    assert notices(world) == [f"{world.run().name}: {kind} since step 20"]
    said = f"It is slow: {kind} since step 20."
    assert said in explain(world.state, "run-1", world.now).sentences
    world.find(kind, onset=25, evidence={"form": OVER, "lost_seconds": 12.0})
    (found,) = incidents(world)
    assert found.state is IncidentState.RESOLVED
    assert said not in explain(world.state, "run-1", world.now).sentences
    assert world.attempt().number == 1
    assert world.run().state is RunState.RUNNING
    assert world.run().avoid == ()
    world.find(kind, onset=26)
    assert len(incidents(world)) == 2


@pytest.mark.parametrize("kind", sorted(SLOWDOWNS))
def test_in_shadow_it_is_on_record_and_nobody_is_alerted(kind):
    world = training(**{kind.value: {"shadow": True}})
    world.find(kind, onset=20)
    (found,) = incidents(world)
    assert found.severity == "info"
    assert found.evidence["shadow"] is True
    assert found.reason.endswith("in shadow: people would be alerted")
    assert notices(world) == []


def test_the_release_of_a_hold_does_nothing_about_a_slow_run():
    world = training()
    world.do(world.event(RunHeld, run="run-1"))
    world.find(FindingKind.DATA_STALL, onset=20)
    world.do(world.event(RunReleased, run="run-1"))
    world.settle()
    assert world.attempt().number == 1
    assert world.run().state is RunState.RUNNING
    assert incidents(world)[0].state is IncidentState.OPEN


def test_checkpoints_of_a_slow_run_become_good():
    world = training()
    world.find(FindingKind.THROUGHPUT_DROP, onset=5)
    world.trained_to(90)
    assert any(each.trust is Trust.GOOD for each in world.state.checkpoints_of("run-1"))


def test_the_incident_is_over_when_the_run_ends():
    world = training()
    world.find(FindingKind.CHECKPOINT_STALL, onset=20)
    world.end()
    world.settle()
    assert incidents(world)[0].state is IncidentState.RESOLVED


def test_from_the_spec_over_the_monitor_to_the_incident():
    """The settings of a spec find a loader that becomes slow within 20 s."""
    world = training(data_stall={"after": "20s", "steps": 16, "share": 0.1})
    settings = monitor_settings(world.run().spec)
    run = Play(np.random.default_rng(1), monitors=RunMonitors(settings), look_seconds=1.0)
    run.begin()
    run.train(200)
    run.train(40, lambda number, step: setattr(step, "data", 0.4))
    (finding,) = run.found
    event = world.event(FindingRaised, run="run-1", attempt=1, finding=finding)
    world.do(event)
    (found,) = incidents(world)
    assert found.kind is FindingKind.DATA_STALL
    assert "the ranks wait for data for " in found.reason
    assert found.evidence["cost_seconds_an_hour"] > 900
