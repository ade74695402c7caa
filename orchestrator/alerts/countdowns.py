"""Which messages count down to a remedy, and when each is edited.

The problem: a question says when its remedy starts, and the time left changes each minute, also
after another server has taken over. Edits must not crowd out messages, and must end with the
question.

The design: the threads that count down are stored. At each full minute the server that leads edits
the soonest of them, one after the other, so that a rate limit delays the round and piles up
nothing. Each thread is read again before its edit: one that is answered is left alone.

Limits: beyond `EDITS` messages, the later ones are edited when they are among the soonest; their
text says at which time it was true.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Awaitable, Callable

import structlog

from jobs.clock import Clock
from orchestrator.alerts.port import AlertMemory, NotDeliveredError
from orchestrator.alerts.threads import Thread

_log = structlog.get_logger(__name__)
EDITS = 20
"""Edits in a minute; Slack allows `chat.update` some 50 in a minute (its tier 3)."""
_KEY = "slack/countdowns"
_MINUTE = 60.0


class Countdowns:
    """The threads whose message says how much time is left."""

    def __init__(self, memory: AlertMemory) -> None:
        self._memory = memory
        self._lock = asyncio.Lock()

    async def note(self, thread: Thread) -> None:
        """Store whether, and until when, a thread counts down."""
        due = None if thread.starts_at is None else thread.starts_at.isoformat()
        async with self._lock:
            known = dict(await self._memory.read(_KEY) or {})
            if known.get(thread.key) == due:
                return
            if due is None:
                del known[thread.key]
            else:
                known[thread.key] = due
            await self._memory.write(_KEY, known)

    async def soonest(self, now: dt.datetime) -> list[str]:
        """Keys of the threads that are edited now; those whose time is over are left out."""
        known = await self._memory.read(_KEY) or {}
        waiting = {key: dt.datetime.fromisoformat(due) for key, due in known.items()}
        left = [key for key, due in waiting.items() if due > now]
        return sorted(left, key=lambda key: (waiting[key], key))[:EDITS]

    async def run(
        self, clock: Clock, leads: Callable[[], bool], edit: Callable[[str], Awaitable[None]]
    ) -> None:
        """Edit at each full minute while `leads()`, until cancelled. A failed edit is left out."""
        while True:
            await clock.sleep(_MINUTE - clock.now().timestamp() % _MINUTE)
            try:
                for key in await self.soonest(clock.now()):
                    if leads():
                        await _edit(key, edit)
            except NotDeliveredError as error:  # Slack is away: the next minute tries again
                _log.info("the time left is not shown", error=str(error))
            except Exception:  # noqa: BLE001 (the database is away; the next minute tries again)
                _log.exception("the time left is not shown")


async def _edit(key: str, edit: Callable[[str], Awaitable[None]]) -> None:
    """Edit a message; where Slack refuses, the others are edited all the same."""
    try:
        await edit(key)
    except NotDeliveredError as error:
        if not getattr(error, "code", ""):
            raise
        _log.info("the time left is not shown", thread=key, error=str(error))
