"""What monitors and ranks tell of progress, anomalies and hangs."""

from __future__ import annotations

import dataclasses
import datetime as dt

from jobs.commands import CaptureStacks
from jobs.events import StacksCaptured
from jobs.spec import Action
from monitors.failures import Failure, FailureClass
from monitors.stacks import odd_rank
from monitors.types import Finding, FindingKind, Severity
from orchestrator.core.attempts import lifecycle as gang
from orchestrator.core.checkpoints import lifecycle as saving
from orchestrator.core.messages.events import FindingRaised, StepReached
from orchestrator.core.messages.gang_events import GangStacks
from orchestrator.core.model import time_ledger as ledger
from orchestrator.core.model.entities import Attempt, Decision, Incident, Restart, Run
from orchestrator.core.model.states import (
    RUNNABLE_ATTEMPT_STATES,
    AttemptState,
    IncidentState,
    RunState,
)
from orchestrator.core.model.time_ledger import Bucket
from orchestrator.core.supervision import failures as recovering
from orchestrator.core.turn import Turn

STACKS_SECONDS = 8.0
"""How long a hang waits for the stacks of its ranks."""
ASK_SECONDS = 900.0
"""An `ask` without an answer acts after this long.

A run that loses time at night must not wait for the morning.
"""
_RECORDED = frozenset({FindingKind.LOSS_BLIP, FindingKind.GRAD_NORM_SPIKE, FindingKind.STRAGGLER})


def on_step(turn: Turn, event: StepReached) -> None:
    """Rank 0 ended a step at or past the milestone."""
    attempt = turn.state.attempts[event.run]
    if attempt.state not in RUNNABLE_ATTEMPT_STATES:
        return
    run = turn.run(event.run)
    _book_saves(turn, run, attempt, event)
    attempt = turn.change_attempt(
        run.id,
        state=AttemptState.RUNNING,
        step=max(attempt.step, event.step),
        first_step_at=attempt.first_step_at or min(event.at, turn.now),
    )
    turn.change_run(run.id, best_step=max(run.best_step, event.step))
    if attempt.restart is None or event.step > attempt.restart.best_step:
        _at_new_steps(turn, run.id, min(event.at, turn.now))
    elif turn.run(run.id).state is not RunState.RUNNING:
        turn.change_run(
            run.id,
            state=RunState.RUNNING,
            reason=f"computing steps {attempt.start_step + 1} to {attempt.restart.best_step} again",
        )
    _end_hangs(turn, run.id, event.step)
    saving.promote(turn, run.id)
    saving.set_milestone(turn, run.id)


def _end_hangs(turn: Turn, run_id: str, step: int) -> None:
    """A hang about which nothing was done is over when a step ends."""
    for incident in turn.state.incidents_of(run_id):
        if (
            incident.kind == FindingKind.HANG.value
            and incident.state is IncidentState.OPEN
            and (incident.onset_step or 0) < step
        ):
            turn.cancel_timer(run_id, f"ask:{incident.id}")
            turn.resolve_incident(incident.id, f"step {step} has ended")


def on_silent(turn: Turn, run_id: str) -> None:
    """A script that never calls `babysit.init()` is watched by its exits alone: it runs."""
    attempt = turn.attempt(run_id)
    if attempt is None or attempt.state is not AttemptState.STARTING or attempt.ready_ranks:
        return
    turn.change_attempt(run_id, state=AttemptState.RUNNING, first_step_at=turn.now)
    _at_new_steps(turn, run_id, turn.now)
    why = "its ranks run; they report nothing, since their script does not call babysit.init()"
    turn.change_run(run_id, reason=why)


def _at_new_steps(turn: Turn, run_id: str, at: dt.datetime) -> None:
    """Past everything reached before: the recovery, if there was one, is over."""
    run, attempt = turn.run(run_id), turn.state.attempts[run_id]
    restart = attempt.restart
    recovered = restart is not None and restart.recovered_at is None
    if restart is not None and recovered:
        turn.change_attempt(run_id, restart=dataclasses.replace(restart, recovered_at=at))
        turn.resolve_incident(restart.incident, f"training passed step {restart.best_step} again")
        fallen_back = FailureClass.CHECKPOINT_CORRUPT.value  # found as this attempt loaded
        for other in turn.state.incidents_of(run_id):
            if other.attempt < attempt.number or other.kind == fallen_back:
                turn.resolve_incident(other.id, f"training passed step {restart.best_step} again")
    if run.ledger.bucket != Bucket.PRODUCTIVE:
        turn.change_run(run_id, ledger=ledger.switch(run.ledger, Bucket.PRODUCTIVE, at))
    if recovered or turn.run(run_id).state is not RunState.RUNNING:
        since = (
            "from the beginning" if attempt.start_step == 0 else f"from step {attempt.start_step}"
        )
        turn.change_run(
            run_id, state=RunState.RUNNING, reason=f"training, attempt {attempt.number} {since}"
        )


def _book_saves(turn: Turn, run: Run, attempt: Attempt, event: StepReached) -> None:
    more = event.blocked_seconds - attempt.blocked_seconds
    if more > 0:
        ended = min(event.at, turn.now)  # what came after that step may have been a stall
        closed = ledger.switch(run.ledger, Bucket(run.ledger.bucket), ended)
        booked = ledger.move(closed, Bucket(run.ledger.bucket), Bucket.CHECKPOINTING, more)
        turn.change_run(run.id, ledger=booked)
        turn.change_attempt(run.id, blocked_seconds=event.blocked_seconds)


def on_finding(turn: Turn, event: FindingRaised) -> None:
    """A monitor found something: record it, say what would be done, or do it."""
    run, attempt, finding = turn.run(event.run), turn.state.attempts[event.run], event.finding
    if attempt.state not in RUNNABLE_ATTEMPT_STATES:
        turn.record(run.id, f"{finding.reason}; the attempt is being stopped already")
        return
    incident = turn.open_incident(
        run,
        kind=finding.kind.value,
        severity=finding.severity,
        reason=finding.reason,
        subject=_subject(attempt, finding),
        onset_step=finding.onset_step,
        evidence={**finding.evidence, "finding": finding.model_dump(mode="json")},
    )
    if finding.kind in _RECORDED:
        turn.change_incident(incident.id, remedy="recorded")
        turn.resolve_incident(incident.id, "recorded only")
        return
    held = turn.held(run.id)
    action = _action(run, finding)
    if finding.kind is FindingKind.HANG:  # to hear at once if it goes on by itself
        soon = min(attempt.milestone, finding.detected_step + 1)
        turn.change_attempt(run.id, milestone=soon)
    if held or action is Action.OBSERVE:
        why = "held" if held else "the spec says observe"
        turn.change_incident(incident.id, remedy=f"none ({why}); would {_would(finding)}")
    elif action is Action.ASK:
        turn.change_incident(
            incident.id, remedy=f"asked; will {_would(finding)} in {ASK_SECONDS:.0f} s"
        )
        turn.notify(
            run.id,
            Severity.CRITICAL,
            f"{run.name}: {finding.reason}. Shall I {_would(finding)}?",
            incident.id,
        )
        turn.set_timer(run.id, f"ask:{incident.id}", ASK_SECONDS)
    else:
        act(turn, run, incident, finding)


def act(turn: Turn, run: Run, incident: Incident, finding: Finding) -> None:
    """Begin the remedy of a finding."""
    turn.change_incident(incident.id, state=IncidentState.MITIGATING, remedy=_would(finding))
    failure = Failure(
        failure_class=FailureClass.HANG
        if finding.kind is FindingKind.HANG
        else FailureClass.NUMERICS,
        reason=finding.reason,
        signature=f"{finding.kind}",
    )
    failed_at = min(dt.datetime.fromtimestamp(finding.onset_time, dt.UTC), turn.now)
    restart = Restart(
        attempt=run.attempt + 1,
        cause=failure.cause,
        failure_class=failure.failure_class,
        reason=finding.reason,
        rank=finding.rank,
        node=_node_of(turn.state.attempts[run.id], finding.rank),
        incident=incident.id,
        failed_at=failed_at,
        detected_at=turn.now,
        best_step=run.best_step,
    )
    anomaly = finding.kind is not FindingKind.HANG
    decision = Decision(
        restart=restart,
        failure=failure,
        onset_step=finding.onset_step if anomaly else None,
        onset_batch=finding.onset_batch if anomaly else 0,
    )
    turn.change_run(run.id, decision=decision)
    recovering.mark_down(turn, run.id, failed_at, finding.reason)
    if anomaly:
        gang.stop_attempt(turn, run.id, finding.reason)
    else:
        _capture_stacks(turn, run.id, finding.reason)


def act_unanswered(turn: Turn, run_id: str, incident_id: str) -> None:
    """Nobody answered an `ask` in time: do what was proposed, if the run still is where it was.

    Under a hold it waits for the release (`resume`).
    """
    incident = turn.state.incidents.get(incident_id)
    if incident is not None and not turn.held(run_id):
        _act_late(turn, run_id, [incident])


def resume(turn: Turn, run_id: str) -> None:
    """A hold has ended: do what it kept back, the anomalies first."""
    if turn.run(run_id).decision is not None:
        end_hang(turn, run_id)
        return
    timers = turn.run(run_id).timers
    waiting = [
        incident
        for incident in turn.state.incidents_of(run_id)
        if "finding" in incident.evidence
        and incident.acknowledged_by is None  # else someone has taken it on
        and f"ask:{incident.id}" not in timers
    ]
    waiting.sort(key=lambda i: (i.kind == FindingKind.HANG.value, i.onset_step or 0))
    _act_late(turn, run_id, waiting)


def _act_late(turn: Turn, run_id: str, incidents: list[Incident]) -> None:
    """Act on the first of these that is open still, in an attempt that runs still."""
    run, attempt = turn.run(run_id), turn.attempt(run_id)
    if attempt is None or attempt.state not in RUNNABLE_ATTEMPT_STATES or run.decision is not None:
        return
    for incident in incidents:
        if incident.state is IncidentState.OPEN and incident.attempt == attempt.number:
            finding = Finding.model_validate(incident.evidence["finding"])
            if _action(run, finding) is not Action.OBSERVE:
                act(turn, run, incident, finding)
                return


def _capture_stacks(turn: Turn, run_id: str, reason: str) -> None:
    attempt = turn.state.attempts[run_id]
    turn.set_timer(run_id, "stacks", STACKS_SECONDS)
    there = {seat.worker: () for seat in attempt.seats if seat.worker in turn.state.workers}
    turn.tell_gang(run_id, there, CaptureStacks, reason, attempt=attempt.number)


def on_stacks(turn: Turn, event: StacksCaptured | GangStacks) -> None:
    """Stacks are in.

    With the last ones, the odd rank is named and the attempt stopped.
    """
    attempt = turn.state.attempts[event.run]
    workers = (event.worker,) if isinstance(event, StacksCaptured) else event.workers
    attempt = turn.change_attempt(
        event.run,
        stacks=(*attempt.stacks, *event.stacks),
        stacks_from=attempt.stacks_from.union(workers),
    )
    everyone = turn.state.places_of(event.run).keys()
    if attempt.state in RUNNABLE_ATTEMPT_STATES and attempt.stacks_from >= everyone:
        end_hang(turn, event.run)


def end_hang(turn: Turn, run_id: str) -> None:
    """With the stacks that came: name the odd rank, and stop the attempt."""
    run, attempt = turn.run(run_id), turn.state.attempts[run_id]
    decision = run.decision
    if decision is None or attempt.state not in RUNNABLE_ATTEMPT_STATES:
        return
    if turn.held(run_id):
        turn.record(run_id, f"held: {decision.restart.reason}; no action until released")
        return
    rank, sentence = odd_rank(attempt.stacks)
    rank = decision.restart.rank if rank is None else rank
    reason = f"{decision.restart.reason}; {sentence}" if sentence else decision.restart.reason
    restart = dataclasses.replace(
        decision.restart, rank=rank, node=_node_of(attempt, rank), reason=reason
    )
    failure = Failure(
        failure_class=FailureClass.HANG,
        reason=reason,
        signature="hang",
        evidence=tuple(
            f"rank {s.rank} [{s.process_state}] {' < '.join(s.frames[:4])}" for s in attempt.stacks
        ),
    )
    turn.change_run(
        run_id,
        decision=dataclasses.replace(decision, restart=restart, failure=failure),
        reason=reason,
    )
    known = turn.state.incidents.get(restart.incident or "")
    if known is not None:
        evidence = {**known.evidence, "stacks": [s.model_dump() for s in attempt.stacks]}
        subject = f"rank {rank} on {restart.node}" if rank is not None else known.subject
        turn.change_incident(known.id, reason=reason, subject=subject, evidence=evidence)
    gang.stop_attempt(turn, run_id, reason)


def _action(run: Run, finding: Finding) -> Action:
    monitors = run.spec.monitors
    return monitors.hang.action if finding.kind is FindingKind.HANG else monitors.loss_spike.action


def _would(finding: Finding) -> str:
    return (
        "restart"
        if finding.kind is FindingKind.HANG
        else f"roll back to before step {finding.onset_step}"
    )


def _subject(attempt: Attempt, finding: Finding) -> str:
    node = _node_of(attempt, finding.rank)
    return f"rank {finding.rank} on {node}" if node else ""


def _node_of(attempt: Attempt, rank: int | None) -> str | None:
    return next((seat.node for seat in attempt.seats if rank in seat.ranks), None)
