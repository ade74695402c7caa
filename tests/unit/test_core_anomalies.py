"""Anomalies in what a run computes: recorded, or rolled back from."""

from __future__ import annotations

import datetime as dt

from jobs.commands import StartAttempt, StopAttempt
from monitors.types import FindingKind, Severity
from orchestrator.core.messages.events import RollbackAsked, RunReleased
from orchestrator.core.messages.instructions import (
    Notify,
)
from orchestrator.core.model.states import AttemptState, RunState, Trust
from orchestrator.core.views.remedy_text import incident_remedy
from tests.matching import command, match
from tests.world import World, trained


def test_a_blip_is_only_recorded() -> None:
    world = trained(15)
    world.find(FindingKind.LOSS_BLIP, onset=12)
    assert world.attempt().state is AttemptState.RUNNING
    assert command(StopAttempt) not in world.carried


def test_observe_says_what_it_would_do_and_does_nothing() -> None:
    world = trained(15, monitors={"loss_spike": {"action": "observe"}})
    world.find(onset=12)
    (incident,) = world.state.incidents_of("run-1")
    assert "would roll back to before step 12" in incident_remedy(incident)
    assert command(StopAttempt) not in world.carried
    assert world.attempt().state is AttemptState.RUNNING


def test_a_spike_rolls_back_to_a_good_checkpoint_from_before_its_onset() -> None:
    world = trained(45)
    good = [c for c in world.state.checkpoints_of("run-1") if c.trust is Trust.GOOD]
    assert max(c.step for c in good) == 30
    world.remember(45)
    world.find(onset=41)
    world.settle()
    start = world.told("start_attempt")[-1].command
    assert [c.step for c in start.restore] == [30, 20, 10][: len(start.restore)]
    assert start.skip_batches == ()
    trusted = {c.step: c.trust for c in world.state.checkpoints_of("run-1") if c.attempt == 1}
    assert trusted.get(45, Trust.BAD) is Trust.BAD


def test_a_spike_that_comes_back_quarantines_its_batches_and_then_stops() -> None:
    world = trained(45, monitors={"loss_spike": {"skip_batches": 8}})
    world.find(onset=41)
    world.trained_to(43)
    world.find(onset=41)
    world.settle()
    assert world.run().skip_batches == ((41, 48),)
    assert command(StartAttempt, attempt=3, skip_batches=((41, 48),)) in world.carried
    for _ in range(2):
        world.trained_to(43)
        world.find(onset=41)
        world.settle()
    assert world.run().state is RunState.FAILED
    assert "came back after 3 rollbacks" in world.run().reason


def trusts(world: World) -> dict[int, Trust]:
    return {c.step: c.trust for c in world.state.checkpoints_of("run-1")}


def late(hours: float) -> World:
    """An anomaly since step 5 is found at step 45; the oldest checkpoint is of step 10."""
    world = trained(45)
    world.now += dt.timedelta(hours=hours)
    world.find(onset=5)
    world.settle()
    return world


def test_hours_of_work_are_not_begun_again_unasked() -> None:
    world = late(2)
    assert world.run().state is RunState.HELD
    assert "no good checkpoint is left from before step 5" in world.run().reason
    assert f"`babysit release {world.run().name}` begins again" in world.run().reason
    [page] = [i for i in world.carried if i == match(Notify, severity=Severity.CRITICAL)]
    assert "held by babysit" in page.text
    assert set(trusts(world).values()) & {Trust.VERIFIED, Trust.GOOD}, "people may want them"


def test_people_may_go_on_from_a_checkpoint_that_is_not_known_to_be_good() -> None:
    world = late(2)
    world.do(world.event(RollbackAsked, run="run-1", to_step=40))
    world.settle()
    assert (world.attempt().number, world.attempt().start_step) == (2, 40)


def test_people_may_begin_again() -> None:
    world = late(2)
    world.do(world.event(RunReleased, run="run-1"))
    world.settle()
    assert (world.attempt().number, world.attempt().start_step) == (2, 0)
    assert set(trusts(world).values()) <= {Trust.BAD}


def test_minutes_of_work_are_begun_again_at_once() -> None:
    world = late(0.1)
    assert (world.attempt().number, world.attempt().start_step) == (2, 0)
