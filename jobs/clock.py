"""The only clock: reads the time and waits on behalf of all other modules.

No other module in `jobs`, `monitors` or `orchestrator` reads the time or sleeps (ruff's banned-api
enforces it), so the same code runs under virtual time.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from typing import Protocol


class Clock(Protocol):
    """Reads the time and waits."""

    def now(self) -> dt.datetime:
        """The current time in UTC, with microseconds."""

    def monotonic(self) -> float:
        """Seconds on a clock that never runs backwards; only differences have a meaning."""

    async def sleep(self, seconds: float) -> None:
        """Wait for `seconds`."""


class SystemClock:
    """The real clock."""

    def now(self) -> dt.datetime:
        """The current time in UTC."""
        return dt.datetime.now(dt.UTC)

    def monotonic(self) -> float:
        """Seconds since an arbitrary moment."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Wait for `seconds` on the event loop."""
        await asyncio.sleep(seconds)


class ManualClock:
    """A clock for tests: it moves only when a test advances it or a task sleeps."""

    def __init__(self, start: dt.datetime | None = None) -> None:
        self._start = start or dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
        self._elapsed = 0.0

    def now(self) -> dt.datetime:
        """The start plus the advanced seconds."""
        return self._start + dt.timedelta(seconds=self._elapsed)

    def monotonic(self) -> float:
        """The advanced seconds."""
        return self._elapsed

    def advance(self, seconds: float) -> None:
        """Advance the clock by `seconds`."""
        self._elapsed += seconds

    async def sleep(self, seconds: float) -> None:
        """Advance the clock by `seconds` and let other tasks run."""
        self.advance(seconds)
        await asyncio.sleep(0)


async def wait_at_most(clock: Clock, event: asyncio.Event, seconds: float) -> None:
    """Wait for an event, for `seconds` at most."""
    waits = [asyncio.ensure_future(event.wait()), asyncio.ensure_future(clock.sleep(seconds))]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
