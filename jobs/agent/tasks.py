"""The tasks of an agent, and the end of the agent."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


class Tasks:
    """Background tasks; when one fails, all are over: a visible crash is better than half an agent.

    Attributes:
        over: Set when the agent is to end.
        crash: The first failure of a task, which is a bug; None: there was none.
    """

    def __init__(self) -> None:
        self.over = asyncio.Event()
        self.crash: BaseException | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Begin a task."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.crash = self.crash or error
            self.over.set()

    async def cancel(self, spare: asyncio.Task[None] | None = None) -> None:
        """End all tasks but one."""
        ending = [task for task in self._tasks if task is not spare]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
