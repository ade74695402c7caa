"""What monitors found: recorded, asked about, or acted on."""

from __future__ import annotations

import datetime as dt

from jobs.spec import Action
from monitors.failures import Failure, FailureClass
from monitors.types import Finding, FindingKind, Severity
from orchestrator.core.attempts import lifecycle as gang
from orchestrator.core.messages.events import FindingRaised
from orchestrator.core.model.decisions import Restart, Retry, Rollback, Unjudged
from orchestrator.core.model.entities import Attempt, Incident, Run
from orchestrator.core.model.states import (
    RUNNABLE_ATTEMPT_STATES,
    IncidentState,
)
from orchestrator.core.model.vocabulary import Timer
from orchestrator.core.supervision import failures as recovering
from orchestrator.core.supervision.hangs import capture_stacks, end_hang, node_of
from orchestrator.core.turn import Turn

ASK_SECONDS = 900.0
"""An `ask` without an answer acts after this long.

A run that loses time at night must not wait for the morning.
"""


_RECORDED = frozenset({FindingKind.LOSS_BLIP, FindingKind.GRAD_NORM_SPIKE, FindingKind.STRAGGLER})


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
        turn.set_timer(run.id, Timer.ASK, ASK_SECONDS, subject=incident.id)
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
        node=node_of(turn.state.attempts[run.id], finding.rank),
        incident=incident.id,
        failed_at=failed_at,
        detected_at=turn.now,
        best_step=run.best_step,
    )
    anomaly = finding.kind is not FindingKind.HANG
    decision = (
        Rollback(
            restart=restart,
            onset_step=finding.onset_step,
            onset_batch=finding.onset_batch,
            stage=Unjudged(failure=failure),
        )
        if anomaly
        else Retry(restart=restart, stage=Unjudged(failure=failure))
    )
    turn.change_run(run.id, decision=decision)
    recovering.book_downtime(turn, run.id, failed_at, finding.reason)
    if anomaly:
        gang.stop_attempt(turn, run.id, finding.reason)
    else:
        capture_stacks(turn, run.id, finding.reason)


def act_unanswered(turn: Turn, run_id: str, incident_id: str) -> None:
    """Nobody answered an `ask` in time: do what was proposed, if the run still is where it was.

    Under a hold it waits for the release (`resume`).
    """
    incident = turn.state.incidents.get(incident_id)
    if incident is not None and not turn.held(run_id):
        _act_late(turn, run_id, [incident])


def resume(turn: Turn, run_id: str) -> None:
    """A hold has ended: do what it kept back, the anomalies first."""
    run = turn.run(run_id)
    if run.decision is not None:
        end_hang(turn, run_id)
        return
    waiting = [
        incident
        for incident in turn.state.incidents_of(run_id)
        if "finding" in incident.evidence
        and incident.acknowledged_by is None  # else someone has taken it on
        and run.due(Timer.ASK, incident.id) is None
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
    node = node_of(attempt, finding.rank)
    return f"rank {finding.rank} on {node}" if node else ""
