"""Trouble with the database, shown and told without the database.

While a transaction waits for the database, nothing that people usually look at can change: an
incident is a row, and a notice is another one. So this one condition lives in memory. It is in
`/healthz`, `babysit server status` and the metrics, and people are notified directly.
"""

from __future__ import annotations

import structlog

from jobs.clock import Clock
from monitors.types import Severity
from orchestrator.alerts.port import Notifier
from orchestrator.core.messages.instructions import Notify

_log = structlog.get_logger(__name__)
LOOK_SECONDS = 5.0
NOTIFY_SECONDS = 30.0
"""People hear of a database that does not answer after this time; of a full one at once."""
KIND = "database_trouble"


class DatabaseTrouble:
    """The condition of the database, as the transaction under way meets it."""

    def __init__(self) -> None:
        self.reason = ""
        """Why a transaction waits; empty: none does."""
        self.full = False
        """True if the database has no room."""
        self._since = 0.0
        self._told = False
        self._notices = 0

    def failed(self, reason: str, now: float, *, full: bool) -> None:
        """A transaction failed, and waits.

        Args:
            reason: The database's words.
            now: Monotonic seconds.
            full: There is no room, on its disk or in its quota.
        """
        if not self.reason:
            self._since = now
        self.reason, self.full = reason, full

    def over(self) -> None:
        """A transaction was stored."""
        self.reason, self.full, self._told = "", False, False

    def notice(self, now: float) -> Notify | None:
        """The notice that is due; None: none is. :meth:`told` says that it was delivered."""
        if not self.reason or self._told:
            return None
        if not self.full and now - self._since < NOTIFY_SECONDS:
            return None
        text = (
            f"babysit cannot store anything: {self.reason}. Training goes on, and agents keep what"
            " they report; no failure is handled until the database takes writes again"
        )
        return Notify(
            id=f"{KIND}-{self._notices}",
            cause=KIND,
            run=None,
            reason=self.reason,
            severity=Severity.CRITICAL,
            text=text,
            incident_kind=KIND,
        )

    def told(self) -> None:
        """The notice was delivered."""
        self._told = True
        self._notices += 1


async def tell(trouble: DatabaseTrouble, notifier: Notifier, clock: Clock) -> None:
    """Notify people of a database that takes no writes, until cancelled.

    No outbox can hold that notice; one that is not delivered is tried again.
    """
    while True:
        await clock.sleep(LOOK_SECONDS)
        notice = trouble.notice(clock.monotonic())
        if notice is None:
            continue
        try:
            await notifier.notify(notice)
        except Exception as error:  # noqa: BLE001 (whatever the channel raises)
            _log.warning("notice about the database not delivered", error=str(error))
        else:
            trouble.told()
