"""The alert channel that always works: the server's log."""

from __future__ import annotations

import structlog

from orchestrator.core.messages.instructions import Notify

_log = structlog.get_logger(__name__)


class LogNotifier:
    """Writes notices into the server's log."""

    channel = "log"

    async def notify(self, notice: Notify) -> None:
        """One log line."""
        _log.warning("notice", run=notice.run, severity=notice.severity, text=notice.text)
