"""The daily summary: one notice for each day, through the outbox like every other."""

from __future__ import annotations

import dataclasses

from monitors.types import Severity
from orchestrator.core.messages.instructions import Notify
from orchestrator.core.messages.notice_events import SummaryDue
from orchestrator.core.turn import Turn


def on_summary_due(turn: Turn, event: SummaryDue) -> None:
    """Send the summary of a day, unless it was sent: two servers may each say that it is due."""
    fleet = turn.state.fleet
    if event.day <= fleet.summarised:
        turn.record(None, f"the summary of {event.day} was sent before")
        return
    turn.put(dataclasses.replace(fleet, summarised=event.day))
    turn.emit(
        Notify,
        None,
        f"daily summary of {event.day}",
        severity=Severity.INFO,
        text=event.text,
        incident_kind="daily_summary",
        cascade=f"daily_summary/{event.day}",
        report=True,
    )
