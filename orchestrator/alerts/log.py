"""The alert channel that always works: the server's log."""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from orchestrator.core.messages.instructions import Notify
from orchestrator.settings import Settings

_log = structlog.get_logger(__name__)


def from_settings(_settings: Settings) -> LogNotifier:
    """The channel needs no setting of its own."""
    return LogNotifier()


class LogNotifier:
    """Writes notices into the server's log."""

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
