"""The time of a run: every second is booked once, on what it was spent for."""

from __future__ import annotations

import pytest

from orchestrator.controller.sample_pipeline import Progress
from orchestrator.core.messages.events import RunHeld
from orchestrator.core.model.states import AttemptState, RunState
from orchestrator.core.model.time_ledger import Bucket, ettr, totals
from tests.world import World, trained


def test_every_second_is_booked() -> None:
    world = trained(20)
    world.die(rank=1, last_step=20)
    world.advance(3)
    world.settle()
    world.trained_to(30)
    seconds = totals(world.run().ledger, world.now)
    assert sum(seconds.values()) == pytest.approx(
        (world.now - world.run().submitted_at).total_seconds()
    )
    assert seconds["starting"] >= 3
    ratio = ettr(world.run().ledger, world.now)
    assert ratio is not None
    assert 0 < ratio < 1


def test_time_held_with_nothing_running_is_not_allocated() -> None:
    world = trained(5)
    world.do(world.event(RunHeld, run="run-1"))
    world.die()
    world.settle()
    before = totals(world.run().ledger, world.now)["queued"]
    world.advance(1000)
    assert totals(world.run().ledger, world.now)["queued"] - before == pytest.approx(1000)


def test_ranks_that_report_before_they_are_ready_do_not_upset_the_ledger() -> None:
    world = World()
    world.submit()
    late = []
    while world.messages:
        message = world.messages.pop(0)
        (late.append if message.kind == "rank_ready" else world.do)(message)
    world.reach(1)
    for message in late:
        world.do(message)
    assert world.run().ledger.bucket == "productive"


def test_an_agent_that_dies_between_milestones_loses_what_was_computed() -> None:
    world = trained(40, resources={"nodes": 1}, checkpoint={"directory": None})
    world.kill_agent(world.attempt().seats[0].worker)
    world.settle()
    restart = world.attempt().restart
    assert restart is not None
    assert (restart.best_step, restart.lost_steps) == (40, 40)


def test_a_run_says_when_it_has_computed_its_lost_steps_again() -> None:
    world = trained(25)
    world.die(rank=1, last_step=25)
    world.settle()
    world.reach(21)
    assert world.run().reason == "computing steps 21 to 25 again"
    world.reach(26)
    assert world.run().reason == "training, attempt 2 from step 20"


def test_a_script_that_reports_but_never_restores_computes_lost_steps_again() -> None:
    """Its time was booked as restoring for as long as it had not passed its best step again."""
    world = World(restores=False)
    world.submit()
    world.settle()
    world.trained_to(15)
    world.die(1, last_step=15)
    world.settle()
    world.advance(5)
    world.reach(1)
    assert world.run().ledger.bucket is Bucket.LOST
    restart = world.attempt().restart
    assert restart is not None
    assert (restart.resumed_step, restart.lost_steps) == (0, 15)


def test_a_script_that_restores_by_itself_lost_what_came_after_its_own_restart() -> None:
    """The core hears of the first step late: the newest step of a report says nothing of it."""
    world = World(restores=False)
    world.submit()
    world.settle()
    world.progress["run-1"] = Progress(1, 7, world.now.timestamp(), first_step=1)
    world._tell_progress("run-1")
    world.die(1, last_step=15)
    world.settle()
    world.progress["run-1"] = Progress(2, 14, world.now.timestamp(), first_step=11)
    world._tell_progress("run-1")
    restart = world.attempt().restart
    assert restart is not None
    assert (restart.resumed_step, restart.lost_steps) == (10, 5)


def test_what_a_silent_script_does_is_unknown() -> None:
    world = World(joins=False)
    world.submit()
    world.settle()
    world.advance(90)
    assert world.run().ledger.bucket is Bucket.UNKNOWN
    world.advance(100)
    assert ettr(world.run().ledger, world.now) is None


def test_a_silent_script_does_not_change_the_reason_of_a_hold() -> None:
    world = World(joins=False)
    world.submit()
    world.settle()
    world.do(world.event(RunHeld, run="run-1", reason="a look"))
    reason = world.run().reason
    world.advance(90)
    assert world.attempt().state is AttemptState.RUNNING
    assert (world.run().state, world.run().reason) == (RunState.HELD, reason)


def test_a_recovery_that_is_over_before_the_last_rank_has_spoken_knows_what_it_lost() -> None:
    """Agents speak in turn: rank 0 may end a new step before rank 1 is known to have loaded."""
    world = trained(25)
    world.die(rank=1, last_step=25)
    late = []
    while world.messages:
        message = world.messages.pop(0)
        if message.kind == "rank_restored" and message.rank == 1:
            late.append(message)
        else:
            world.do(message)
    assert len(late) == 1
    world.reach(26)
    restart = world.attempt().restart
    assert restart is not None
    assert restart.recovered_at is not None
    assert (restart.resumed_step, restart.lost_steps) == (20, 5)
    world.do(late[0])
    restart = world.attempt().restart
    assert restart is not None
    assert (restart.resumed_step, restart.lost_steps) == (20, 5)


def test_a_step_that_comes_before_any_rank_has_told_what_it_loaded_is_no_start_from_nothing() -> (
    None
):
    """Rank 0's agent told of its first step before the loads, in an attempt after others."""
    world = trained(25)
    world.die(rank=1, last_step=25)
    late = []
    while world.messages:
        message = world.messages.pop(0)
        if message.kind == "rank_restored":
            late.append(message)
        else:
            world.do(message)
    assert len(late) == 2
    world.progress["run-1"] = Progress(2, 21, world.now.timestamp(), first_step=21)
    world._tell_progress("run-1")
    assert world.run().reason == "computing steps 21 to 25 again"
    for message in late:
        world.do(message)
    restart = world.attempt().restart
    assert restart is not None
    assert (restart.resumed_step, restart.lost_steps) == (20, 5)
    world.reach(26)
    restart = world.attempt().restart
    assert restart is not None
    assert restart.recovered_at is not None
    assert (restart.resumed_step, restart.lost_steps) == (20, 5)
