"""Who leads: seeking and keeping the lease."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Awaitable, Callable

import structlog

from jobs.clock import Clock
from orchestrator.database.port import Store
from orchestrator.errors import DatabaseUnavailableError

_log = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ControllerSettings:
    """How a controller seeks and keeps the lead."""

    holder: str
    """Who this is, among those that may lead."""
    lease_seconds: float = 10.0
    """Another takes over after at most so long without a renewal."""
    seek_seconds: float = 0.5
    """How often a server that does not lead looks whether it may."""
    worker_lost_seconds: float = 15.0
    """Silence of an agent before the cluster is asked about it."""
    alone: bool = False
    """Something else proves that no other controller lives: do not wait for its lease to end."""


class LeaderElector:
    """One controller's claim to the lead."""

    def __init__(self, store: Store, clock: Clock, settings: ControllerSettings) -> None:
        self._store, self._clock, self._settings = store, clock, settings
        self.epoch = 0
        """Guards every write; grows with every new leader."""
        self.held = False

    async def seek(
        self, gain: Callable[[], Awaitable[None]], lose: Callable[[], Awaitable[None]]
    ) -> None:
        """Take or renew the lease for ever, calling `gain` and `lose` as it comes and goes."""
        while True:
            try:
                await self._try(gain, lose)
            except DatabaseUnavailableError as error:
                _log.warning("the database does not answer", error=str(error))
            except Exception:  # noqa: BLE001 (a server that leads nothing must say why, and try on)
                _log.exception("cannot begin to lead: trying again; please report this")
            settings = self._settings
            await self._clock.sleep(
                settings.lease_seconds / 3 if self.held else settings.seek_seconds
            )

    async def _try(
        self, gain: Callable[[], Awaitable[None]], lose: Callable[[], Awaitable[None]]
    ) -> None:
        settings = self._settings
        lease = await self._store.acquire(
            settings.holder, settings.lease_seconds, self._clock.now(), force=settings.alone
        )
        if self.held and (lease is None or lease.epoch != self.epoch):
            await lose()
        if lease is not None and not self.held:
            self.epoch = lease.epoch
            await gain()

    async def release(self) -> None:
        """Give the lease up, so that the next need not wait for its end."""
        with contextlib.suppress(DatabaseUnavailableError):
            await self._store.release(self._settings.holder, self.epoch)
