"""The line of turns: one at a time, each to its end; the scheduler looks when the line is empty."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from jobs.clock import Clock

T = TypeVar("T")
PASS_SECONDS = 1.0
"""So long a scheduling pass waits at most for the line to end."""


class TurnQueue:
    """Turns that wait for each other.

    What comes together (hundreds of agents that end) costs one scheduling pass: it follows the last
    turn in line. Under a load without end it follows a second after it was first wanted.

    Args:
        clock: Tells how long a pass has waited.
        may_begin: Raises an error once nobody may take a turn any more.
        wanted: Whether the scheduler should look.
        look: Has it look.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        may_begin: Callable[[], None],
        wanted: Callable[[], bool],
        look: Callable[[], Awaitable[None]],
    ) -> None:
        self._clock, self._may_begin = clock, may_begin
        self._wanted, self._look = wanted, look
        self._lock = asyncio.Lock()
        self._waiting = 0
        self._since: float | None = None
        """When a pass was first seen to be wanted."""
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self, turn: Callable[[], Awaitable[T]]) -> T:
        """Take a turn, to its end: a caller that goes away leaves no half turn."""

        async def alone() -> T:
            self._waiting += 1
            try:
                await self._lock.acquire()
            finally:
                self._waiting -= 1
            try:
                self._may_begin()
                try:
                    result = await turn()
                except Exception:  # not where it is cancelled: then everything ends
                    await self._look_if_wanted()
                    raise
                await self._look_if_wanted()
                return result
            finally:
                self._lock.release()

        task = asyncio.create_task(alone())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    @contextlib.asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        """A moment between turns, in which nothing is decided."""
        async with self._lock:
            yield

    async def stop(self) -> None:
        """End the turns under way: one that waits for the database would wait for ever."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _look_if_wanted(self) -> None:
        if not self._wanted():
            self._since = None
            return
        now = self._clock.monotonic()
        self._since = now if self._since is None else self._since
        if self._waiting == 0 or now - self._since >= PASS_SECONDS:
            self._since = None
            await self._look()
