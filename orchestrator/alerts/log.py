"""The alert channel that always works: the server's log."""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from orchestrator.alerts.threads import Thread
from orchestrator.core.messages.instructions import IncidentUpdate, Notify
from orchestrator.settings import Settings

_log = structlog.get_logger(__name__)


def from_settings(_settings: Settings) -> LogNotifier:
    """The channel needs no setting of its own."""
    return LogNotifier()


class LogNotifier:
    """Writes notices, and incidents as they change, into the server's log.

    A line may come twice, and the lines of one incident in any order: `at` orders them.
    """

    channel = "log"
    ignored_fields: Mapping[str, str] = {
        "notify.slack": "notices go to the server's log (BABYSIT_ALERTS=log)",
    }

    async def notify(self, notice: Notify) -> None:
        """Write one line, level warning."""
        _log.warning(
            "notice",
            run=notice.run,
            severity=notice.severity,
            text=notice.text,
            incident_kind=notice.incident_kind,
            dedup_key=notice.dedup_key,
        )

    async def update(self, update: IncidentUpdate) -> None:
        """Write one line about an incident as it is now, level warning."""
        incident = update.incident
        thread = Thread(key=update.dedup_key)
        thread.take([update])
        _log.warning(
            "incident",
            run=update.run,
            incident=incident.id,
            incident_kind=incident.kind,
            severity=incident.severity,
            state=incident.state,
            text=thread.standing,
            cause=incident.reason,
            subject=incident.subject,
            step=update.step,
            lost_seconds=update.lost_seconds,
            at=update.at.isoformat(),
            dedup_key=update.dedup_key,
        )
