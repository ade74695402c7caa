"""Findings of monitors: recorded, asked about, or acted on, as the remedy table has it."""

from __future__ import annotations

import datetime as dt

from jobs.spec import Action
from monitors.failures import Evidence, Failure
from monitors.types import Finding, Severity
from orchestrator.core.attempts import lifecycle as gang
from orchestrator.core.messages.events import FindingRaised
from orchestrator.core.model.decisions import Decision, Restart, Retry, Rollback, Unjudged
from orchestrator.core.model.entities import Attempt, Incident, Run
from orchestrator.core.model.states import (
    RUNNABLE_ATTEMPT_STATES,
    IncidentState,
)
from orchestrator.core.model.vocabulary import Remedy, Response, Timer
from orchestrator.core.policy import remedies
from orchestrator.core.supervision import failures as recovering
from orchestrator.core.supervision.hangs import capture_stacks, end_hang, node_of
from orchestrator.core.turn import Turn

ASK_SECONDS = 900.0
"""Seconds after which an `ask` acts without an answer.

A run that loses time at night must not wait for the morning.
"""


def on_finding(turn: Turn, event: FindingRaised) -> None:
    """Open an incident for what a monitor found, and follow the row of its kind in the table.

    Depending on the row, the spec and holds, the incident is only recorded, says what would be
    done, asks people first, or starts the remedy. Findings about an attempt that is being stopped
    are recorded in the journal only: its failure is judged already.
    """
    run, attempt, finding = turn.run(event.run), turn.state.attempts[event.run], event.finding
    if attempt.state not in RUNNABLE_ATTEMPT_STATES:
        turn.record(run.id, f"{finding.reason}; the attempt is being stopped already")
        return
    rule = remedies.FINDINGS[finding.kind]
    incident = turn.open_incident(
        run,
        kind=finding.kind,
        severity=finding.severity,
        reason=finding.reason,
        subject=_subject(attempt, finding),
        onset_step=finding.onset_step,
        remedy=rule.remedy,
        evidence={**finding.evidence, "finding": finding.model_dump(mode="json")},
    )
    if rule.only_recorded:
        turn.resolve_incident(incident.id, "recorded only")
        return
    if rule.remedy is Remedy.RESTART:  # so that a step that ends after all is noticed at once
        soon = min(attempt.milestone, finding.detected_step + 1)
        turn.change_attempt(run.id, milestone=soon)
    action = remedies.action_of(run.spec, finding.kind)
    if turn.held(run.id):
        turn.change_incident(incident.id, response=Response.HELD)
    elif action is Action.OBSERVE:
        turn.change_incident(incident.id, response=Response.OBSERVED)
    elif action is Action.ASK:
        _ask(turn, run, incident)
    else:
        act(turn, run, incident, finding)


def _ask(turn: Turn, run: Run, incident: Incident) -> None:
    turn.change_incident(incident.id, response=Response.ASKED, remedy_seconds=ASK_SECONDS)
    proposal = remedies.in_words(incident.remedy or Remedy.RECORD, incident.onset_step)
    text = f"{run.name}: {incident.reason}. Shall I {proposal}?"
    turn.notify(run.id, Severity.CRITICAL, text, incident.id)
    turn.set_timer(run.id, Timer.ASK, ASK_SECONDS, subject=incident.id)


def act(turn: Turn, run: Run, incident: Incident, finding: Finding) -> None:
    """Start the remedy of a finding: decide, book the time since the onset, end the attempt.

    There are three ways to get here: a finding under `act`, an `ask` that nobody answered
    (:func:`act_unanswered`), and the end of a hold (:func:`resume`). The attempt must be starting
    or running. What follows is judged when it is dead, by
    :func:`orchestrator.core.supervision.failures.decide`.

    Raises:
        KeyError: No row of the remedy table says what the finding is judged as.
    """
    rule = remedies.FINDINGS[finding.kind]
    if rule.failure_class is None:
        raise KeyError(f"{finding.kind} is only recorded: there is no remedy to start")
    turn.change_incident(incident.id, state=IncidentState.MITIGATING, response=Response.ACTED)
    failure = Failure(
        failure_class=rule.failure_class,
        reason=finding.reason,
        signature=f"{finding.kind}",
        source=Evidence.BABYSIT,
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
    stage = Unjudged(failure=failure)
    decision: Decision = Retry(restart=restart, stage=stage)
    if rule.spoils_checkpoints:
        decision = Rollback(
            restart=restart,
            onset_step=finding.onset_step,
            onset_batch=finding.onset_batch,
            stage=stage,
        )
    turn.change_run(run.id, decision=decision)
    recovering.book_downtime(turn, run.id, failed_at, finding.reason)
    if rule.spoils_checkpoints:
        gang.stop_attempt(turn, run.id, finding.reason)
    else:  # the processes are the evidence of why nothing moves: look before they are killed
        capture_stacks(turn, run.id, finding.reason)


def act_unanswered(turn: Turn, run_id: str, incident_id: str) -> None:
    """Start the remedy of an incident about which nobody answered an `ask` in time.

    Does nothing if the attempt is not the same any more, or under a hold: its release
    (:func:`resume`) looks again.
    """
    incident = turn.state.incidents.get(incident_id)
    if incident is not None and not turn.held(run_id):
        _act_late(turn, run_id, [incident])


def resume(turn: Turn, run_id: str) -> None:
    """Start the remedies that a hold kept back, anomalies first: a rollback makes up for a hang.

    Incidents that someone has acknowledged, or whose `ask` is still open, are left to them.
    """
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
    waiting.sort(key=lambda i: (i.kind not in remedies.SPOILING, i.onset_step or 0))
    _act_late(turn, run_id, waiting)


def _act_late(turn: Turn, run_id: str, incidents: list[Incident]) -> None:
    """Act on the first incident that is open, if it belongs to the attempt that runs."""
    run, attempt = turn.run(run_id), turn.attempt(run_id)
    if attempt is None or attempt.state not in RUNNABLE_ATTEMPT_STATES or run.decision is not None:
        return
    for incident in incidents:
        if incident.state is IncidentState.OPEN and incident.attempt == attempt.number:
            finding = Finding.model_validate(incident.evidence["finding"])
            if remedies.action_of(run.spec, finding.kind) is not Action.OBSERVE:
                act(turn, run, incident, finding)
                return


def _subject(attempt: Attempt, finding: Finding) -> str:
    node = node_of(attempt, finding.rank)
    return f"rank {finding.rank} on {node}" if node else ""
