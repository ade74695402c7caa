"""Findings of monitors: recorded, asked about, or acted on, as the remedy table has it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any, Literal

from jobs.spec import Action
from monitors.exits import classify
from monitors.failures import Evidence, Failure, FailureClass
from monitors.loss_findings import RETURNED
from monitors.replica_findings import DIVERGED
from monitors.types import Finding, FindingKind, Severity
from orchestrator.core.attempts import lifecycle as attempt_lifecycle
from orchestrator.core.checkpoints import rollback
from orchestrator.core.messages.events import FindingRaised
from orchestrator.core.messages.notice_events import AskDelivered
from orchestrator.core.model.decisions import Decision, Restart, Retry, Rollback, Unjudged
from orchestrator.core.model.entities import Attempt, Incident, Run
from orchestrator.core.model.states import (
    RUNNABLE_ATTEMPT_STATES,
    IncidentState,
)
from orchestrator.core.model.vocabulary import Remedy, Response, Timer
from orchestrator.core.policy import remedies
from orchestrator.core.supervision import corruption, failures, slowdowns, swaps
from orchestrator.core.turn import Turn

Ask = Literal["no", "yes", "wait", "unproven"]
"""`yes`: people are asked before a remedy starts. It never starts without an answer where it was
tried in vain (`wait`), and where nothing but silence speaks for it (`unproven`)."""
ASK_SECONDS = 900.0
"""Seconds after which an `ask` acts without an answer, from when it was delivered.

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
    if finding.kind is FindingKind.REPLAY:
        corruption.on_replay(turn, event)
        return
    if remedies.is_slowdown(finding.kind):
        slowdowns.on_finding(turn, run, attempt, finding)
        return
    raise_incident(turn, run, attempt, finding)


def raise_incident(
    turn: Turn, run: Run, attempt: Attempt, finding: Finding, *, ask: Ask = "no"
) -> None:
    """Open the incident of a finding, and respond as the table, the spec and holds say.

    Args:
        turn: The turn.
        run: The run.
        attempt: Its live attempt.
        finding: What was found; of a hang, with the verdict about it.
        ask: Ask people even where the spec says `act`: what babysit did before did not help.
            `wait` starts nothing without their answer: it was tried twice. Neither does `unproven`.
    """
    rule = remedies.FINDINGS[finding.kind]
    returned = finding.evidence.get("form") == RETURNED
    if returned or rule.spoils_checkpoints:
        _end_respite(turn, attempt, finding.reason)
    if returned or finding.evidence.get("form") == DIVERGED:
        turn.record(run.id, finding.reason)
        return
    evidence = corruption.evidence_of(attempt, finding)
    incident = turn.open_incident(
        run,
        kind=finding.kind,
        severity=finding.severity,
        reason=finding.reason,
        subject=subject(attempt, finding.rank),
        onset_step=finding.onset_step,
        remedy=rule.remedy,
        evidence={
            **evidence,
            "finding": finding.model_dump(mode="json"),
            **({"engine": run.engine} if run.engine else {}),
        },
    )
    if finding.kind is FindingKind.STRAGGLER and (why := swaps.refusal(turn, run, finding)):
        turn.change_incident(incident.id, remedy=Remedy.RECORD)
        turn.notify(run.id, Severity.WARNING, f"{run.name}: {finding.reason}; {why}", incident.id)
        turn.resolve_incident(incident.id, f"recorded only: {why}")
        return
    if rule.only_recorded:
        if not remedies.is_awaited(incident):
            turn.resolve_incident(incident.id, "recorded only")
        return
    action = _action(run, finding.kind)
    if turn.held(run.id):
        turn.change_incident(incident.id, response=Response.HELD)
    elif action is Action.OBSERVE:
        turn.change_incident(incident.id, response=Response.OBSERVED)
    elif action is Action.ASK or ask != "no":
        _ask(turn, run, incident, _WITHOUT_ANSWER.get(ask, ""))
    else:
        act(turn, run, incident, finding)


def _action(run: Run, kind: FindingKind) -> Action:
    """The action of the spec. A script that cannot be sent back to a checkpoint is only watched.

    So is a run whose processes another engine restarts: a second restart would end its work.
    """
    can_go_back = run.instrumented or run.spec.resumes_by_step
    if run.engine or (kind in remedies.SPOILING and not can_go_back):
        return Action.OBSERVE
    return remedies.action_of(run.spec, kind)


def _end_respite(turn: Turn, attempt: Attempt, why: str) -> None:
    for incident in turn.state.incidents_of(attempt.run):
        if remedies.is_awaited(incident) and incident.attempt == attempt.number:
            turn.resolve_incident(incident.id, why)


_WITHOUT_ANSWER: Mapping[Ask, str] = {
    "wait": "It did not help before",
    "unproven": "The run has never reported a step, and silence proves nothing",
}
"""Why a remedy never starts without an answer."""


def _ask(turn: Turn, run: Run, incident: Incident, waits: str) -> None:
    seconds = None if waits else ASK_SECONDS
    spoils = incident.kind in remedies.SPOILING
    step = rollback.would_load(turn, run.id, incident.onset_step if spoils else None)
    turn.change_incident(
        incident.id, response=Response.ASKED, remedy_seconds=seconds, remedy_step=step
    )
    remedy = incident.remedy or Remedy.RECORD
    proposal = remedies.in_words(remedy, incident.onset_step, step)
    text = f"{run.name}: {incident.reason}. Shall I {proposal}?"
    if waits:
        text += f" {waits}, so nothing is done until `babysit restart {run.name}`"
    else:
        text += f" It starts {ASK_SECONDS / 60:.0f} min after this is delivered, unless held"
    turn.notify(run.id, Severity.CRITICAL, text, incident.id, asks=not waits)


def on_ask_delivered(turn: Turn, event: AskDelivered) -> None:
    """Start the time for an answer: people were reached. A question that nobody got starts nothing.

    A second delivery, and one of a question that was answered or is over, has no effect.
    """
    incident = turn.state.incidents.get(event.incident)
    if (
        incident is None
        or incident.state is not IncidentState.OPEN
        or incident.response is not Response.ASKED
        or incident.acknowledged_by is not None
        or incident.remedy_seconds is None
        or incident.remedy_at is not None
    ):
        turn.record(event.run, "the question is answered or over: no time is set for an answer")
        return
    starts_at = turn.now + dt.timedelta(seconds=incident.remedy_seconds)
    turn.change_incident(incident.id, remedy_at=starts_at)
    turn.set_timer(event.run, Timer.ASK, incident.remedy_seconds, subject=incident.id)


def act(turn: Turn, run: Run, incident: Incident, finding: Finding) -> None:
    """Start the remedy of a finding: decide, book the time since the onset, end the attempt.

    There are three ways to get here: a finding under `act`, an `ask` that nobody answered
    (:func:`act_unanswered`), and the end of a hold (:func:`resume`). The attempt must be starting
    or running. What follows is judged when it is dead, by
    :func:`orchestrator.core.supervision.judgement.decide`.

    Raises:
        KeyError: No row of the remedy table says what the finding is judged as.
    """
    rule = remedies.FINDINGS[finding.kind]
    if rule.remedy is Remedy.SWAP_NODE:
        swaps.plan(turn, run, incident)
        return
    if rule.failure_class is None:
        raise KeyError(f"{finding.kind} is only recorded: there is no remedy to start")
    turn.change_incident(incident.id, state=IncidentState.MITIGATING, response=Response.ACTED)
    verdict = finding.evidence.get("verdict", {})
    failure = _exception(finding, verdict) or Failure(
        failure_class=FailureClass.USER_CODE if verdict.get("users") else rule.failure_class,
        reason=finding.reason,
        signature=verdict.get("signature") or f"{finding.kind}",
        source=Evidence.BABYSIT,
        evidence=tuple(_witness(look) for look in finding.evidence.get("stacks", ())),
    )
    failed_at = min(dt.datetime.fromtimestamp(finding.onset_time, dt.UTC), turn.now)
    restart = Restart(
        attempt=run.attempt + 1,
        cause=failure.cause,
        failure_class=failure.failure_class,
        reason=finding.reason,
        rank=finding.rank,
        node=_culprit(turn.state.attempts[run.id], finding, verdict),
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
    if finding.kind is FindingKind.CORRUPTION:
        corruption.trust_agreement(turn, finding, run.id)
    turn.change_run(run.id, decision=decision)
    failures.book_downtime(turn, run.id, failed_at, finding.reason)
    attempt_lifecycle.stop_attempt(turn, run.id, finding.reason)


def _culprit(attempt: Attempt, finding: Finding, verdict: Mapping[str, Any]) -> str | None:
    """The node that may be to blame. Of a hang, it is one only where the verdict says so."""
    if finding.kind is FindingKind.CORRUPTION:
        return corruption.culprit(attempt, finding)
    return verdict["node"] if verdict else node_of(attempt, finding.rank)


def _exception(finding: Finding, verdict: Mapping[str, Any]) -> Failure | None:
    """The failure of a rank whose main thread died of an exception; None: there was none."""
    raised = verdict.get("raised", "")
    found = classify(raised, 1) if raised else None
    if found is None:
        return None
    return found.model_copy(update={"reason": f"{found.reason} ({finding.reason})"})


def _witness(look: Mapping[str, Any]) -> str:
    """One rank's stack in a line."""
    return f"rank {look['rank']} [{look['process_state']}] {' < '.join(look['frames'][:4])}"


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
    waiting = [
        incident
        for incident in turn.state.incidents_of(run_id)
        if "finding" in incident.evidence
        and not remedies.is_slowdown(incident.kind)
        and not remedies.is_awaited(incident)
        and incident.acknowledged_by is None  # else someone has taken it on
        and run.due(Timer.ASK, incident.id) is None
        and not _waits_for_an_answer(incident)
    ]
    waiting.sort(key=lambda i: (i.kind not in remedies.SPOILING, i.onset_step or 0))
    _act_late(turn, run_id, waiting)


def _waits_for_an_answer(incident: Incident) -> bool:
    """True if no remedy starts by itself: an answer is needed, or nobody was reached yet."""
    return incident.response is Response.ASKED and incident.remedy_at is None


def _act_late(turn: Turn, run_id: str, incidents: list[Incident]) -> None:
    """Act on the first incident that is open, if it belongs to the attempt that runs."""
    run, attempt = turn.run(run_id), turn.attempt(run_id)
    if attempt is None or attempt.state not in RUNNABLE_ATTEMPT_STATES or run.decision is not None:
        return
    for incident in incidents:
        if incident.state is IncidentState.OPEN and incident.attempt == attempt.number:
            finding = Finding.model_validate(incident.evidence["finding"])
            if _action(run, finding.kind) is not Action.OBSERVE:
                act(turn, run, incident, finding)
                return


def end_by_progress(turn: Turn, run_id: str, incident: Incident, why: str) -> None:
    """A hang about which nothing was done is over once there is progress."""
    if incident.kind == FindingKind.HANG and incident.state is IncidentState.OPEN:
        turn.cancel_timer(run_id, Timer.ASK, subject=incident.id)
        turn.resolve_incident(incident.id, why, went_on=True)


def subject(attempt: Attempt, rank: int | None, node: str | None = None) -> str:
    """The subject of an incident in words: a rank and its node, or a node."""
    known = node_of(attempt, rank)
    return f"rank {rank} on {known}" if known else node or ""


def node_of(attempt: Attempt, rank: int | None) -> str | None:
    """The node on which a rank of the attempt runs; None where the rank is not known."""
    return next((seat.node for seat in attempt.seats if rank in seat.ranks), None)
