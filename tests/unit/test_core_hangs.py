"""Hangs: stacks are captured before the gang is stopped, and people may be asked."""

from __future__ import annotations

from jobs.commands import CaptureStacks, StopAttempt
from monitors.failures import FailureClass
from monitors.types import FindingKind
from orchestrator.core.model.states import AttemptState
from tests.matching import command
from tests.world import World, spec, trained


def test_a_hang_captures_stacks_before_it_kills() -> None:
    world = trained(15)
    world.find(FindingKind.HANG, onset=15, rank=1)
    workers = [seat.worker for seat in world.attempt().seats]
    assert all(command(CaptureStacks, worker=worker) in world.carried for worker in workers)
    assert command(StopAttempt) not in world.carried
    world.settle()
    assert all(command(StopAttempt, worker=worker) in world.carried for worker in workers)
    assert world.attempt().number == 2
    restart = world.attempt().restart
    assert restart is not None
    assert restart.failure_class is FailureClass.HANG


def test_stacks_that_never_come_do_not_keep_a_hang_alive() -> None:
    world = trained(15)
    world.find(FindingKind.HANG, onset=15, rank=1)
    world.messages.clear()
    world.advance(9)
    world.settle()
    assert world.attempt().number == 2


def test_an_unanswered_question_is_acted_on_after_its_time() -> None:
    world = trained(15, monitors={"hang": {"action": "ask"}})
    world.find(FindingKind.HANG, onset=15, rank=1)
    assert world.attempt().state is AttemptState.RUNNING
    world.advance(901)
    world.settle()
    assert world.attempt().number == 2


def ask_spec(monitor: str) -> dict[str, object]:
    return {"monitors": {monitor: {"action": "ask"}}}


def test_an_unanswered_question_about_a_start_that_hangs_is_acted_on() -> None:
    world = World()
    world.submit(spec(**ask_spec("hang")))
    world.settle()
    assert world.attempt().state is AttemptState.STARTING
    world.find(FindingKind.HANG, onset=0)
    world.advance(905)
    world.settle()
    assert world.attempt().number == 2


def test_a_question_is_dropped_when_the_run_goes_on_by_itself() -> None:
    world = trained(30, **ask_spec("hang"))
    world.find(FindingKind.HANG, onset=30)
    world.reach(world.attempt().milestone)
    world.advance(1000)
    world.settle()
    assert world.attempt().number == 1
