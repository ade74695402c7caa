"""What the core decides does not depend on which events share a transaction."""

from __future__ import annotations

from collections.abc import Iterable

from jobs.clock import ManualClock
from jobs.events import AttemptStopped, CheckpointDeleted, Event, RankExited
from monitors.failures import Failure, FailureClass
from orchestrator.controller.transaction import TransactionEvents, TransactionRecord
from orchestrator.core.messages.events import RunCancelled, WorkerLost
from orchestrator.core.messages.instructions import Instruction
from tests.replay import Replay
from tests.world import World, reloaded, trained

CRASH = Failure(failure_class=FailureClass.UNKNOWN, reason="exit code 255", signature="unknown")


def together(world: World, events: Iterable[Event]) -> TransactionRecord:
    """The record of a transaction of these events, over a copy of the world's state."""
    record = TransactionRecord()
    record.play(reloaded(world.state), TransactionEvents.of(*events), ManualClock(world.now))
    return record


def one_by_one(world: World, events: Iterable[Event]) -> list[Instruction]:
    """What the core decides where each event has a transaction of its own."""
    alone = Replay()
    alone.state = reloaded(world.state)
    return [each for event in events for each in alone.handle(event, world.now)]


def late_reports(world: World) -> list[Event]:
    """An agent is gone, and what it had sent before arrives after that."""
    attempt = world.attempt()
    of_worker = {"run": "run-1", "worker": attempt.seats[1].worker, "attempt": attempt.number}
    died = {"rank": 1, "code": 255, "failure": CRASH, "last_step": 25}
    return [
        world.event(WorkerLost, run="run-1", worker=of_worker["worker"], confirmed=True, reason=""),
        world.event(RankExited, **of_worker, **died),
        world.event(AttemptStopped, **of_worker, last_step=25),
    ]


def test_late_reports_of_an_agent_that_is_gone() -> None:
    world = trained(25)
    events = late_reports(world)
    alone = one_by_one(world, events)
    assert [each.reason for each in alone if "not of the attempt: ignored" in each.reason]
    assert together(world, events).instructions == alone


def test_reports_of_a_run_that_has_ended() -> None:
    world = trained(25)
    gone = [
        world.event(WorkerLost, run="run-1", worker=seat.worker, confirmed=True, reason="")
        for seat in world.attempt().seats
    ]
    deleted = world.event(
        CheckpointDeleted,
        run="run-1",
        worker=world.attempt().seats[0].worker,
        attempt=1,
        checkpoint="run-1/1/directory/10",
    )
    events = [world.event(RunCancelled, run="run-1"), *gone, deleted]
    assert together(world, events).instructions == one_by_one(world, events)


def test_the_record_has_all_that_was_forgotten_between_its_events() -> None:
    world = trained(25)
    gone = world.attempt().seats[1].worker
    record = together(world, late_reports(world))
    assert gone in [getattr(entity, "id", "") for entity in record.over]
