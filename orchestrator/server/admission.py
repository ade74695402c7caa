"""How many requests of the API are served at a time, so that people never starve a recovery.

API, gateway and controller share one event loop. Each request that is under way takes a share of
every turn of the loop, and a transaction of the controller needs dozens of turns: with fifty
clients that ask without pause, a recovery would be fifty times as slow. So only a few requests are
under way at a time; the others wait in order of arrival, without a limit.
"""

from __future__ import annotations

import asyncio
from typing import Any

from orchestrator.server.guard import Message, Receive, Send

REQUESTS = 8
"""Requests under way at a time."""
_FREE = {"/healthz"}
"""Paths that wait for nothing: a probe must not fail because people ask much."""


class Admission:
    """An ASGI middleware that lets few HTTP requests in at a time. Agents' connections are free."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._places = asyncio.Semaphore(REQUESTS)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one connection of ASGI."""
        if scope["type"] != "http" or scope["path"] in _FREE:
            await self._app(scope, receive, send)
            return
        async with self._places:
            await self._app(scope, receive, send)
