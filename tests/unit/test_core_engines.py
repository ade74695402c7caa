"""Runs whose processes Ray Train restarts: the core watches, and restarts nothing."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.commands import DeleteCheckpoint, StopAttempt, VerifyCheckpoint
from jobs.engine_events import (
    EngineFailed,
    EngineNamed,
    EngineResumed,
    EngineSaved,
    ProcessFailure,
)
from jobs.events import RankExited
from monitors.failures import Failure, FailureClass
from monitors.types import FindingKind
from orchestrator.core.messages.events import CheckpointRemovalAsked
from orchestrator.core.model.states import AttemptState, IncidentState, RunState, Trust
from orchestrator.core.model.time_ledger import Bucket
from orchestrator.core.model.vocabulary import Response
from orchestrator.core.views.remedy_text import incident_remedy
from orchestrator.errors import ConflictError
from tests.matching import command
from tests.world import World, trained

SIGNAL = Failure(failure_class=FailureClass.SIGNAL, reason="its process died", signature="s")
CASCADE = Failure(failure_class=FailureClass.CASCADE, reason="lost its peer", signature="c")


def say(world: World, kind: type[Any], **fields: Any) -> None:
    attempt = world.attempt()
    world.do(
        world.event(
            kind,
            run="run-1",
            worker=attempt.seats[0].worker,
            attempt=attempt.number,
            engine="ray",
            **fields,
        )
    )


@pytest.fixture
def world() -> World:
    found = trained(25, resources={"nodes": 1})
    say(found, EngineNamed)
    return found


def fail(world: World, step: int = 25) -> None:
    failures = (
        ProcessFailure(rank=0, failure=CASCADE),
        ProcessFailure(rank=1, node="10.0.0.5", failure=SIGNAL),
    )
    say(world, EngineFailed, step=step, failures=failures)


def test_a_failure_is_an_incident_with_its_root_cause_and_no_restart(world: World) -> None:
    fail(world)
    (incident,) = world.state.incidents_of("run-1")
    assert (incident.kind, incident.subject) == (
        FailureClass.SIGNAL,
        "rank 1 of ray on 10.0.0.5",
    )
    assert "failed after step 25: its process died (1 more with it)" in incident.reason
    assert incident_remedy(incident) == "left to its engine"
    assert incident.state is IncidentState.MITIGATING
    assert world.attempt().state is AttemptState.RUNNING
    assert world.run().state is RunState.RUNNING
    assert world.run().ledger.bucket is Bucket.STARTING
    assert command(StopAttempt) not in world.carried


def test_the_incident_ends_with_a_new_step_and_what_was_computed_again_is_lost(
    world: World,
) -> None:
    fail(world)
    say(world, EngineResumed, step=21)
    assert world.run().ledger.bucket is Bucket.LOST
    assert "computing steps 21 to 25 again" in world.run().reason
    world.reach(26)  # the core asked to hear of it
    (incident,) = world.state.incidents_of("run-1")
    assert incident.state is IncidentState.RESOLVED
    assert world.run().ledger.bucket is Bucket.PRODUCTIVE
    assert world.run().best_step == 26


@pytest.mark.parametrize("kind", [FindingKind.NON_FINITE, FindingKind.LOSS_SPIKE])
def test_an_anomaly_is_told_and_nothing_is_done(world: World, kind: FindingKind) -> None:
    world.find(kind, onset=25)
    (incident,) = world.state.incidents_of("run-1")
    assert incident.response is Response.OBSERVED
    assert incident_remedy(incident).startswith("none (ray restarts the run); would roll back")
    assert command(StopAttempt) not in world.carried


def test_checkpoints_of_an_engine_are_listed_and_never_touched(world: World) -> None:
    for step in (10, 20, 30, 40, 50):
        gone = (step - 20,) if step > 20 else ()
        say(world, EngineSaved, step=step, path=f"store/{step}", bytes=7, gone=gone)
    kept = [c for c in world.state.checkpoints_of("run-1") if c.keeper == "ray"]
    assert [(c.step, c.bytes, c.trust) for c in kept if c.deleted_at is None] == [
        (40, 7, Trust.COMPLETE),
        (50, 7, Trust.COMPLETE),
    ]
    ours = {"store/10", "store/20", "store/30", "store/40", "store/50"}
    for sent in (*world.told("delete_checkpoint"), *world.told("verify_checkpoint")):
        assert isinstance(sent.command, DeleteCheckpoint | VerifyCheckpoint)
        assert sent.command.path not in ours
    with pytest.raises(ConflictError, match="ray keeps it"):
        world.do(
            world.event(CheckpointRemovalAsked, run="run-1", checkpoint=kept[-1].id, actor="ann")
        )


def exit_driver(world: World, code: int) -> None:
    attempt = world.attempt()
    raised = Failure(
        failure_class=FailureClass.NETWORK, reason="WorkerGroupError: gave up", signature="w"
    )
    world.do(
        world.event(
            RankExited,
            run="run-1",
            worker=attempt.seats[0].worker,
            attempt=attempt.number,
            rank=0,
            code=code,
            failure=raised if code > 0 else SIGNAL,
            last_step=25,
        )
    )
    world.settle()


def test_a_driver_that_gives_up_ends_the_run(world: World) -> None:
    exit_driver(world, 1)
    assert world.run().state is RunState.FAILED
    assert "its driver gave up" in world.run().reason


def test_a_driver_that_is_killed_is_started_again(world: World) -> None:
    exit_driver(world, -9)
    assert world.attempt().number == 2
    assert world.run().state is not RunState.FAILED
