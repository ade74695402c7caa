"""Agents without a seat beside a run that trains: standbys, and workers for later growth."""

from __future__ import annotations

from monitors.failures import Failure
from monitors.types import Severity
from orchestrator.core.model.entities import Worker
from orchestrator.core.model.vocabulary import Remedy, Timer
from orchestrator.core.placement.snapshot import STANDBY_SECONDS
from orchestrator.core.turn import Turn

LONGEST_SECONDS = 3600.0
"""Maximum seconds before the next standby; one that lasted this long resets the back-off."""


def lost(turn: Turn, worker: Worker, failure: Failure) -> None:
    """Record that a standby was lost while training continues, and schedule the next one.

    The pause doubles with each loss in a row, from `STANDBY_SECONDS` to `LONGEST_SECONDS`. It never
    counts against the run's restart budget, however often it happens.
    """
    attempt, joined = turn.state.attempts[worker.run], worker.joined_at
    lasted = joined is not None and (turn.now - joined).total_seconds() >= LONGEST_SECONDS
    count = 1 if lasted else attempt.standbys_lost + 1
    turn.change_attempt(worker.run, standbys_lost=count)
    pause = min(LONGEST_SECONDS, STANDBY_SECONDS * 2.0 ** min(count - 1, 10))
    turn.set_timer(worker.run, Timer.STANDBY, pause)
    incident = turn.open_incident(
        turn.run(worker.run),
        kind=failure.failure_class,
        severity=Severity.WARNING,
        reason=failure.reason,
        subject=worker.node,
        remedy=Remedy.NEW_AGENT,
        remedy_seconds=pause,
        evidence={"signature": failure.signature},
    )
    turn.resolve_incident(incident.id, "training goes on without it")
