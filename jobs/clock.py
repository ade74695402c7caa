"""The one clock: time and waiting, passed in everywhere else.

Nothing else in `jobs`, `monitors` or `orchestrator` reads the time or sleeps (ruff's banned-api
holds it), so the same code runs under virtual time.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from typing import Protocol


class Clock(Protocol):
    """Time and waiting."""

    def now(self) -> dt.datetime:
        """The current time, UTC, with microseconds."""

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""


class SystemClock:
    """The real clock."""

    def now(self) -> dt.datetime:
        """The current time, UTC."""
        return dt.datetime.now(dt.UTC)

    def monotonic(self) -> float:
        """Seconds since some point."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Wait on the event loop."""
        await asyncio.sleep(seconds)


class ManualClock:
    """A clock for tests: stands still until told to move. Sleeping moves it."""

    def __init__(self, start: dt.datetime | None = None) -> None:
        self._start = start or dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
        self._elapsed = 0.0

    def now(self) -> dt.datetime:
        """The start plus what has been advanced."""
        return self._start + dt.timedelta(seconds=self._elapsed)

    def monotonic(self) -> float:
        """Seconds advanced."""
        return self._elapsed

    def advance(self, seconds: float) -> None:
        """Move on."""
        self._elapsed += seconds

    async def sleep(self, seconds: float) -> None:
        """Move on and let others run."""
        self.advance(seconds)
        await asyncio.sleep(0)
