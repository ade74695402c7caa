"""Anomalies in what a run computes: recorded, or rolled back from."""

from __future__ import annotations

import datetime as dt

import pytest

from jobs.commands import StartAttempt, StopAttempt
from monitors.failures import Failure, FailureClass
from monitors.types import FindingKind, Severity
from orchestrator.core.messages.events import RollbackAsked, RunHeld, RunReleased
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


AWAITED = {"form": "awaited", "until_step": 900}


def newest_good(world: World) -> int:
    return max(step for step, trust in trusts(world).items() if trust is Trust.GOOD)


def test_a_rise_that_has_time_to_come_back_spoils_no_checkpoint_from_before_it() -> None:
    """Else retention would delete all of them meanwhile, and a late rollback could go nowhere."""
    world = trained(45)
    world.find(FindingKind.LOSS_BLIP, onset=41, evidence=AWAITED)
    world.trained_to(400)
    assert newest_good(world) == 30
    world.do(world.event(RunHeld, run="run-1"))
    world.do(world.event(RunReleased, run="run-1"))
    assert world.attempt().state is AttemptState.RUNNING
    world.find(onset=41)
    world.settle()
    assert (world.attempt().number, world.attempt().start_step) == (2, 30)


@pytest.mark.parametrize("end", [{"form": "returned"}, None], ids=["it came back", "its time ends"])
def test_a_rise_that_is_over_spoils_nothing_any_more(end: dict[str, object] | None) -> None:
    world = trained(45)
    until = 900 if end else 100
    world.find(FindingKind.LOSS_BLIP, onset=41, evidence={**AWAITED, "until_step": until})
    (incident,) = world.state.incidents_of("run-1")
    if end:
        world.find(FindingKind.LOSS_BLIP, onset=41, evidence=end)
    world.trained_to(400)
    assert incident.id not in {i.id for i in world.state.incidents_of("run-1") if i.state == "open"}
    assert newest_good(world) > 300


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
    left = {c.step for c in world.state.checkpoints_of("run-1") if c.superseded}
    assert left == {40, 45}
    assert Trust.BAD not in trusts(world).values(), "nothing is known to be wrong with their bytes"


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
    assert all(c.superseded or c.deleted_at for c in world.state.checkpoints_of("run-1"))
    assert Trust.BAD not in trusts(world).values()


def test_where_something_was_saved_a_run_never_begins_again_unasked() -> None:
    world = late(0.1)
    assert world.run().state is RunState.HELD
    assert (world.attempt().number, world.offered()) == (1, [])


@pytest.mark.parametrize(("hours", "state"), [(0.1, RunState.RECOVERING), (2, RunState.HELD)])
def test_a_run_that_saved_nothing_begins_again_while_little_is_lost(
    hours: float, state: RunState
) -> None:
    world = trained(9)
    world.now += dt.timedelta(hours=hours)
    world.find(onset=5)
    world.settle()
    assert world.run().state is state


def test_unrelated_anomalies_with_progress_between_them_never_add_up() -> None:
    """A script that draws its own batches reports none, so steps say what is the same anomaly."""
    world = trained(99)
    for onset in (101, 181, 261, 341, 421):
        world.trained_to(onset + 3)
        world.find(onset=onset, batch=0)
        world.settle()
        assert world.run().state is RunState.RECOVERING, world.run().reason
        assert onset - 21 <= world.attempt().start_step < onset
    assert [a.onset_step for a in world.run().anomalies] == [421]


def test_an_anomaly_that_comes_back_where_no_batch_is_known_still_stops_the_run() -> None:
    world = trained(45)
    for _ in range(4):
        world.find(onset=41, batch=0)
        world.settle()
        if world.run().state is not RunState.FAILED:
            world.trained_to(43)
    assert "came back after 3 rollbacks" in world.run().reason


NAN = Failure(
    failure_class=FailureClass.NUMERICS, reason="ValueError: loss is NaN", signature="nan"
)


def test_a_nan_that_the_script_asserts_rolls_back_to_before_it() -> None:
    world = trained(45)
    world.die(failure=NAN, last_step=45)
    world.settle()
    assert world.attempt().start_step == 30, "the newest good one; 40 is not yet known to be"
    restart = world.attempt().restart
    assert restart is not None
    assert restart.remedy == "roll back"


def test_a_nan_without_a_good_checkpoint_before_it_goes_on_from_the_newest() -> None:
    world = trained(12)
    world.die(failure=NAN, last_step=12)
    world.settle()
    assert (world.attempt().number, world.attempt().start_step) == (2, 10)
