"""Leader election: one controller at a time holds the lease, and its epoch guards every write.

The lease alone does not keep two controllers from deciding at once: one may be paused beyond the
life of its lease and go on unaware. The epoch does: it grows with each new leader, and the
database refuses a transaction of an older one. So losing the lease is never dangerous, only
useless; a leader that cannot reach the database goes on leading, since nobody else can be stored
as the leader either.
"""

from __future__ import annotations

import contextlib

import structlog

from jobs.clock import Clock
from orchestrator.controller.settings import ControllerSettings
from orchestrator.database.port import Store
from orchestrator.errors import DatabaseUnavailableError

_log = structlog.get_logger(__name__)
RENEWALS = 3
"""Renewals of a lease within its life: two may fail before another controller takes over."""


class LeaderElector:
    """One controller's claim to the lead."""

    def __init__(self, store: Store, clock: Clock, settings: ControllerSettings) -> None:
        self._store, self._clock, self._settings = store, clock, settings

    async def acquire(self) -> int:
        """Wait until this controller holds the lease; the epoch it leads under."""
        while True:
            try:
                if (epoch := await self._take()) is not None:
                    return epoch
            except DatabaseUnavailableError as error:
                _log.warning("taking the lease failed, will retry", error=str(error))
            await self.pause()

    async def pause(self) -> None:
        """Wait as long as a controller without the lead waits between two tries."""
        await self._clock.sleep(self._settings.seek_seconds)

    async def keep(self, epoch: int) -> None:
        """Renew the lease until it is lost. Errors are logged and do not end the lead.

        Returns when another controller has held the lease since, even if it is free again.
        """
        while True:
            await self._clock.sleep(self._settings.lease_seconds / RENEWALS)
            try:
                if await self._take() != epoch:
                    return
            except DatabaseUnavailableError as error:
                _log.warning("renewing the lease failed, will retry", error=str(error))
            except Exception:  # noqa: BLE001 (a defect of ours must not stop leadership)
                _log.exception("renewing the lease failed, will retry; please report this")

    async def _take(self) -> int | None:
        settings = self._settings
        lease = await self._store.acquire(
            settings.holder, settings.lease_seconds, self._clock.now(), force=settings.alone
        )
        return None if lease is None else lease.epoch

    async def release(self, epoch: int) -> None:
        """Give the lease up, so that the next leader need not wait for its end. May fail."""
        with contextlib.suppress(DatabaseUnavailableError):
            await self._store.release(self._settings.holder, epoch)
