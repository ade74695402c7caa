"""Rows of the database about the events that the core takes and what it decides. Pure."""

from __future__ import annotations

import datetime as dt

from jobs.events import Event, WorkerEvent
from orchestrator.core.messages.events import FindingRaised
from orchestrator.core.messages.instructions import Instruction
from orchestrator.core.messages.node_events import NodeFindingRaised
from orchestrator.core.model.state import State
from orchestrator.database.port import FindingRecord, JournalEntry


def run_of(event: Event, state: State) -> str | None:
    """The run that an event is about, also if it only names an incident; None: it is about none."""
    run: str | None = getattr(event, "run", None)
    incident = state.incidents.get(getattr(event, "incident", ""))
    return (incident.run or None) if run is None and incident is not None else run


def event_entry(event: Event, now: dt.datetime, run: str | None) -> JournalEntry:
    """An event about a run, as handled at `now`."""
    attempt = getattr(event, "attempt", None)
    reason = getattr(event, "reason", "")
    if isinstance(event, FindingRaised | NodeFindingRaised):
        reason = event.finding.reason
    return JournalEntry(
        id=event.id,
        at=now,
        run=run,
        attempt=attempt,
        actor=f"worker:{event.worker}" if isinstance(event, WorkerEvent) else event.actor,
        kind="event",
        name=event.kind,
        cause=event.cause,
        reason=reason,
        payload=event.model_dump(mode="json"),
    )


def finding_record(event: FindingRaised, now: dt.datetime) -> FindingRecord:
    """A finding, for its table."""
    finding = event.finding
    return FindingRecord(
        id=event.id,
        run=event.run,
        attempt=event.attempt,
        at=now,
        kind=finding.kind.value,
        severity=finding.severity.value,
        body=finding.model_dump(mode="json"),
    )


def instruction_entry(instruction: Instruction, event: Event, now: dt.datetime) -> JournalEntry:
    """An instruction that `event` led to."""
    return JournalEntry(
        id=instruction.id,
        at=now,
        run=instruction.run,
        attempt=getattr(event, "attempt", None),
        actor="controller",
        kind="instruction",
        name=instruction.kind,
        cause=instruction.cause,
        reason=instruction.reason,
        payload=instruction.model_dump(mode="json"),
    )
