"""Seeking the lead and leading, again and again, until the server stops."""

from __future__ import annotations

import asyncio

import structlog

from orchestrator.controller.leader_election import LeaderElector
from orchestrator.controller.leadership import Leadership, Ports
from orchestrator.controller.settings import ControllerSettings
from orchestrator.errors import DatabaseUnavailableError, NotLeaderError

_log = structlog.get_logger(__name__)


class Lead:
    """A controller's lead of the hour, or its search for one.

    Attributes:
        election: The controller's claim to the lead.
        leadership: All that decides while this controller leads; None while it does not.
    """

    def __init__(self, ports: Ports, settings: ControllerSettings) -> None:
        self._ports, self._settings = ports, settings
        self.election = LeaderElector(ports.store, ports.clock, settings)
        self.leadership: Leadership | None = None

    @property
    def is_fresh(self) -> bool:
        """True while this controller decides, as far as it knows: the epoch is the proof.

        False as soon as another may lead, by this controller's own clock.
        """
        leads = self.leadership is not None and not self.leadership.queue.closed
        return leads and self.election.is_fresh

    def or_refuse(self) -> Leadership:
        """The leadership.

        Raises:
            NotLeaderError: There is none.
        """
        if self.leadership is None or self.leadership.queue.closed:
            raise NotLeaderError("this server is not the leader (yet): try again")
        return self.leadership

    async def seek(self) -> None:
        """Seek the lead and lead, again and again, until cancelled."""
        while True:
            try:
                await self._lead(await self.election.acquire())
            except DatabaseUnavailableError as error:
                _log.warning("beginning to lead failed, will retry", error=str(error))
            except Exception:  # noqa: BLE001 (a server that leads nothing must say why, and try on)
                _log.exception("beginning to lead failed, will retry; please report this")
            # A lead that ended over a defect may end so again: never without a pause.
            await self.election.pause()

    async def _lead(self, epoch: int) -> None:
        """Lead under an epoch until the lease is lost, or a write shows that it is."""
        leadership = Leadership(
            self._ports, epoch, worker_lost_seconds=self._settings.worker_lost_seconds
        )
        await leadership.begin()
        self.leadership = leadership
        keeping = asyncio.create_task(self.election.keep(epoch))
        try:
            await asyncio.wait(
                {keeping, leadership.served, leadership.failed},
                return_when=asyncio.FIRST_COMPLETED,
            )
            if not self.election.is_fresh:
                # The database is away, and a transaction would wait for it while another leads.
                leadership.served.cancel()
        except asyncio.CancelledError:
            # The server stops. A transaction that waits for the database would wait for ever.
            leadership.served.cancel()
            raise
        finally:
            self.leadership = None
            keeping.cancel()
            await leadership.end()
        if leadership.served.done() and self.election.is_fresh:
            await self.election.release(epoch)  # no effect on the lease of another
