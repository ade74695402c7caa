"""Leader election: one controller at a time holds the lease, and its epoch guards every write.

The lease alone does not keep two controllers from deciding at once: one may be paused beyond the
life of its lease and go on unaware. The epoch does: it grows with each new leader, and the
database refuses a transaction of an older one. So losing the lease is never dangerous for what is
stored. What a leader does outside the database has no such guard: so a leader that cannot renew
its lease steps down by its own monotonic clock, when another controller may lead. One that is
`alone` goes on: nobody else can lead, and its work waits for the database.
"""

from __future__ import annotations

import contextlib

import structlog

from jobs.clock import Clock
from orchestrator.controller.settings import ControllerSettings
from orchestrator.database.port import Lease, Store
from orchestrator.errors import DatabaseUnavailableError

_log = structlog.get_logger(__name__)
RENEWALS = 3
"""Renewals of a lease within its life: two may fail before another controller takes over."""
LEADER_SECONDS = 1.0
"""The address of the leader is read again after this time."""
SAY_SECONDS = 60.0
"""Interval at which a controller that waits for the lead says in its log that it is a spare."""


class LeaderElector:
    """One controller's claim to the lead."""

    def __init__(self, store: Store, clock: Clock, settings: ControllerSettings) -> None:
        self._store, self._clock, self._settings = store, clock, settings
        self._renewed = 0.0
        """When the request began that last took or renewed the lease; monotonic seconds."""
        self._said = -SAY_SECONDS
        self._seen: tuple[Lease | None, float] = (None, 0.0)
        """Another's lease, and since when it is as it is; monotonic seconds."""
        self._leader = (-LEADER_SECONDS, "")
        """When the address of the leader was read, and that; monotonic seconds."""
        self.servers: tuple[str, ...] = ()
        """URLs of all servers, as of the last renewal of this controller."""

    @property
    def is_fresh(self) -> bool:
        """True if no other controller can hold the lease, as far as this one's clock tells."""
        age = self._clock.monotonic() - self._renewed
        return self._settings.alone or age <= self._settings.lease_seconds

    async def acquire(self) -> int:
        """Wait until this controller holds the lease; the epoch it leads under."""
        while True:
            try:
                if (epoch := await self._take(force=await self._is_dead())) is not None:
                    return epoch
            except DatabaseUnavailableError as error:
                _log.warning("taking the lease failed, will retry", error=str(error))
            else:
                self._say_spare()
            await self.pause()

    async def _is_dead(self) -> bool:
        """True if the holder has not renewed its lease for the whole life of one.

        The expiry alone does not tell where servers keep it by the clock of their machine: once
        that is set back by an hour, the lease of a dead holder would last an hour longer.
        """
        now, lease = self._clock.monotonic(), await self._store.leader()
        if lease != self._seen[0]:
            self._seen = (lease, now)
        return lease is not None and now - self._seen[1] > self._settings.lease_seconds

    def _say_spare(self) -> None:
        if self._clock.monotonic() - self._said >= SAY_SECONDS:
            self._said = self._clock.monotonic()
            _log.info("spare: another server leads", holder=self._settings.holder)

    async def pause(self) -> None:
        """Wait as long as a controller without the lead waits between two tries."""
        await self._clock.sleep(self._settings.seek_seconds)

    async def keep(self, epoch: int) -> None:
        """Renew the lease until it is lost. Errors are logged and end no lead by themselves.

        Returns when another controller has held the lease since, even if it is free again; or when
        the lease could not be renewed for its whole life.
        """
        pause = self._settings.lease_seconds / RENEWALS
        while True:
            await self._clock.sleep(pause)
            pause = self._settings.lease_seconds / RENEWALS
            try:
                if await self._take() != epoch:
                    return
            except DatabaseUnavailableError as error:
                _log.warning("renewing the lease failed, will retry", error=str(error))
                pause = min(pause, self._settings.seek_seconds)
            except Exception:  # noqa: BLE001 (a defect of ours must not stop leadership)
                _log.exception("renewing the lease failed, will retry; please report this")
            if not self.is_fresh:
                _log.warning("the lease could not be renewed in time: stepping down", epoch=epoch)
                return

    async def _take(self, *, force: bool = False) -> int | None:
        settings, began = self._settings, self._clock.monotonic()
        lease = await self._store.acquire(
            settings.holder,
            settings.lease_seconds,
            self._clock.now(),
            force=force or settings.alone,
            address=settings.address,
        )
        if lease is None:
            return None
        self._renewed, self.servers = began, tuple(lease.servers)
        return lease.epoch

    async def release(self, epoch: int) -> None:
        """Give the lease up, so that the next leader need not wait for its end. May fail."""
        with contextlib.suppress(DatabaseUnavailableError):
            await self._store.release(self._settings.holder, epoch)

    async def leader_address(self) -> str:
        """URL at which agents reach the server that leads; empty: none, this one, or unknown."""
        now = self._clock.monotonic()
        if now - self._leader[0] > LEADER_SECONDS:
            self._leader = (now, "")  # of many agents that ask at once, one looks
            with contextlib.suppress(DatabaseUnavailableError):
                lease = await self._store.leader()
                self._leader = (now, "" if lease is None else lease.address)
        address = self._leader[1]
        return "" if address == self._settings.address else address
