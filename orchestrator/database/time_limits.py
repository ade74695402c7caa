"""How long a server lets PostgreSQL take, and what ends a transaction that takes longer."""

from __future__ import annotations

import asyncio
import dataclasses
from types import TracebackType
from typing import Any, Self

from sqlalchemy.ext.asyncio import AsyncConnection


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """How long a server lets PostgreSQL take; all below the life of its lease but for reads.

    A connection that hangs, a lock that nobody releases or a frozen server must neither stop the
    line of transactions, nor keep another server from leading.
    """

    lease_seconds: float
    application_name: str
    """Name of the server's connections."""

    @property
    def options(self) -> str:
        """PostgreSQL's own limits, in its words."""
        milliseconds = int(1000 * self.lease_seconds)
        return (
            f"-c statement_timeout={milliseconds * 4 // 5} -c lock_timeout={milliseconds // 2}"
            f" -c idle_in_transaction_session_timeout={milliseconds // 2}"
        )

    @property
    def write_seconds(self) -> float:
        """One transaction that writes, with the connection before it."""
        return 2 * self.lease_seconds

    @property
    def lease_write_seconds(self) -> float:
        """One renewal of the lease: there is time for two more."""
        return self.lease_seconds / 3

    @property
    def read_seconds(self) -> float:
        """One transaction that reads."""
        return 6 * self.lease_seconds


class TransactionLimit:
    """Ends a transaction after a time, also where the other side says nothing at all.

    A driver that is cancelled asks the server to cancel, and waits for the answer. A server that
    does not answer is why it is cancelled: so the connection is cut first.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._timeout = asyncio.timeout(seconds)
        self._cutting: asyncio.TimerHandle | None = None
        self._raw: Any = None

    async def __aenter__(self) -> Self:
        if self._seconds is not None:
            # Before the time-out: calls of one moment are made in the order of their making.
            loop = asyncio.get_running_loop()
            self._cutting = loop.call_at(loop.time() + self._seconds, self._cut)
        await self._timeout.__aenter__()
        return self

    async def watch(self, connection: AsyncConnection) -> None:
        """Cut this connection when the time is over."""
        if self._seconds is not None:
            self._raw = (await connection.get_raw_connection()).driver_connection

    def _cut(self) -> None:
        if self._raw is not None:
            self._raw.pgconn.finish()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._cutting is not None:
            self._cutting.cancel()
        self._raw = None
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError as timeout:
            raise TimeoutError(f"no end within {self._seconds:g} s") from timeout
        if isinstance(error, Exception) and self._timeout.expired():
            # The driver may answer its being cancelled with an error over the cut connection.
            raise TimeoutError(f"no end within {self._seconds:g} s") from error
