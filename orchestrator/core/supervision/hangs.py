"""Hangs: stacks of all ranks are captured, the odd rank is named, then the attempt is stopped.

The stacks must come first: a kill destroys the only evidence of which rank kept the others waiting.
"""

from __future__ import annotations

import dataclasses

from jobs.commands import CaptureStacks
from monitors.failures import Evidence, Failure, FailureClass
from monitors.stacks import odd_rank
from monitors.types import FindingKind
from orchestrator.core.attempts import lifecycle as gang
from orchestrator.core.messages.gang_events import GangStacks
from orchestrator.core.model.decisions import Retry, Unjudged
from orchestrator.core.model.entities import Attempt
from orchestrator.core.model.states import (
    RUNNABLE_ATTEMPT_STATES,
    IncidentState,
)
from orchestrator.core.model.vocabulary import Timer
from orchestrator.core.turn import Turn

STACKS_SECONDS = 8.0
"""Seconds that a hang waits for the stacks of its ranks, before it is ended without them."""


def end_hangs(turn: Turn, run_id: str, step: int) -> None:
    """Resolve the hangs about which nothing was done, since a step has ended after their onset.

    A question to people about such a hang is withdrawn.
    """
    for incident in turn.state.incidents_of(run_id):
        if (
            incident.kind == FindingKind.HANG
            and incident.state is IncidentState.OPEN
            and (incident.onset_step or 0) < step
        ):
            turn.cancel_timer(run_id, Timer.ASK, subject=incident.id)
            turn.resolve_incident(incident.id, f"step {step} has ended")


def capture_stacks(turn: Turn, run_id: str, reason: str) -> None:
    """Have every agent of the attempt capture the stacks of its ranks.

    `end_hang` follows when all agents have answered, or after `STACKS_SECONDS` with what came.
    """
    attempt = turn.state.attempts[run_id]
    turn.set_timer(run_id, Timer.STACKS, STACKS_SECONDS)
    there = {seat.worker: () for seat in attempt.seats if seat.worker in turn.state.workers}
    turn.broadcast(run_id, there, CaptureStacks, reason, attempt=attempt.number)


def on_stacks(turn: Turn, event: GangStacks) -> None:
    """Stacks of some ranks are in; with the last agent's the hang is ended.

    Stacks that come later, when the attempt is being stopped already, are kept as evidence only.
    """
    attempt = turn.state.attempts[event.run]
    attempt = turn.change_attempt(
        event.run,
        stacks=(*attempt.stacks, *event.stacks),
        stacks_from=attempt.stacks_from.union(event.workers),
    )
    everyone = turn.state.places_of(event.run).keys()
    if attempt.state in RUNNABLE_ATTEMPT_STATES and attempt.stacks_from >= everyone:
        end_hang(turn, event.run)


def end_hang(turn: Turn, run_id: str) -> None:
    """Name the odd rank by the stacks that came, and stop the attempt.

    There are three ways to get here: the last agent has answered, `STACKS_SECONDS` have passed, and
    a hold that kept the run waiting has ended. Under a hold nothing is stopped. Without a rank that
    differs from the others, the monitor's suspect stays.
    """
    run, attempt = turn.run(run_id), turn.state.attempts[run_id]
    decision = run.decision
    # An anomaly found meanwhile has stopped the attempt, and goes before the hang.
    if not isinstance(decision, Retry) or attempt.state not in RUNNABLE_ATTEMPT_STATES:
        return
    if turn.held(run_id):
        turn.record(run_id, f"held: {decision.restart.reason}; no action until released")
        return
    rank, sentence = odd_rank(attempt.stacks)
    rank = decision.restart.rank if rank is None else rank
    reason = f"{decision.restart.reason}; {sentence}" if sentence else decision.restart.reason
    restart = dataclasses.replace(
        decision.restart, rank=rank, node=node_of(attempt, rank), reason=reason
    )
    failure = Failure(
        failure_class=FailureClass.HANG,
        reason=reason,
        signature="hang",
        source=Evidence.BABYSIT,
        evidence=tuple(
            f"rank {s.rank} [{s.process_state}] {' < '.join(s.frames[:4])}" for s in attempt.stacks
        ),
    )
    turn.change_run(
        run_id,
        decision=Retry(restart=restart, stage=Unjudged(failure=failure)),
        reason=reason,
    )
    known = turn.state.incidents.get(restart.incident or "")
    if known is not None:
        evidence = {**known.evidence, "stacks": [s.model_dump() for s in attempt.stacks]}
        subject = f"rank {rank} on {restart.node}" if rank is not None else known.subject
        turn.change_incident(known.id, reason=reason, subject=subject, evidence=evidence)
    gang.stop_attempt(turn, run_id, reason)


def node_of(attempt: Attempt, rank: int | None) -> str | None:
    """The node on which a rank of the attempt runs; None where the rank is not known."""
    return next((seat.node for seat in attempt.seats if rank in seat.ranks), None)
