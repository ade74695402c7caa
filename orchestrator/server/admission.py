"""How many requests of the API are served at a time, so that people never starve a recovery.

API, gateway and controller share one event loop. Each request that is under way takes a share of
every turn of the loop, and a transaction of the controller needs dozens of turns: with fifty
clients that ask without pause, a recovery would be fifty times as slow. So only a few requests are
under way at a time; the others wait in order of arrival, without a limit.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from orchestrator.server.guard import DOWNLOADS, UPLOADS, Message, Receive, Send

REQUESTS = 8
"""Requests under way at a time."""
_FREE = {"/healthz", "/leaderz", "/sign-in/oidc", "/sign-in/oidc/callback"}
"""Paths that take no place: a probe must not fail because people ask much, and nobody else waits
while an identity provider takes its time."""


class Admission:
    """An ASGI middleware that lets few HTTP requests in at a time. Agents' connections are free."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._places = asyncio.Semaphore(REQUESTS)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one connection of ASGI."""
        if scope["type"] != "http" or scope["path"] in _FREE or is_transfer(scope["path"]):
            await self._app(scope, receive, send)
            return
        async with contextlib.AsyncExitStack() as place:
            await place.enter_async_context(self._places)

            async def sent(message: Message) -> None:
                await send(message)
                if _begins_stream(message):
                    await place.aclose()

            await self._app(scope, receive, sent)


def is_transfer(path: str) -> bool:
    """True for bundles of code: they take seconds, and their routes limit them by themselves."""
    return path.startswith((UPLOADS, DOWNLOADS))


def _begins_stream(message: Message) -> bool:
    """True for the head of an answer of events: it goes on for hours, and gives its place back."""
    if message["type"] != "http.response.start":
        return False
    kind: bytes = dict(message["headers"]).get(b"content-type", b"")
    return kind.startswith(b"text/event-stream")
