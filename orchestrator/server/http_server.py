"""HTTP over the sockets of a server, with limits for peers that have not said who they are.

The problem: a peer without a token must not be able to hold memory, descriptors or the event loop.
The design: a connection must send the head of a request within :data:`HEAD_SECONDS`, and frames of
an agent are small until the server has answered its hello. Bodies are the business of `guard`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from orchestrator.server.context import LOCAL
from orchestrator.server.gateway import ALLOW_LARGE_FRAMES
from orchestrator.server.listeners import Listeners
from orchestrator.settings import Settings

HEAD_SECONDS = 10.0
"""Seconds from the connection to the whole head of its first request."""
FIRST_FRAME_BYTES = 64 * 1024
"""Largest frame of an agent until the server has answered its hello."""
FRAME_BYTES = 256 * 2**20
"""Largest frame of an agent that the server knows: inventories of many shards are large."""


class _Hurried(H11Protocol):
    """Closes a connection whose first request does not come."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(HEAD_SECONDS, self._close_if_silent)

    def _close_if_silent(self) -> None:
        # After an upgrade to a WebSocket the transport has another protocol.
        if self.cycle is None and self.transport.get_protocol() is self:
            self.transport.close()


class _SmallAtFirst(WebSocketsSansIOProtocol):
    """Takes small frames only, until the application lifts the limit."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.conn.max_message_size = FIRST_FRAME_BYTES

    def handle_connect(self, event: Any) -> None:
        super().handle_connect(event)
        scope: Any = getattr(self, "scope", {})
        scope[ALLOW_LARGE_FRAMES] = self._allow_large_frames

    def _allow_large_frames(self) -> None:
        self.conn.max_message_size = FRAME_BYTES


class _Mark:
    """An ASGI application that says of each request whether the kernel vouches for the caller."""

    def __init__(self, app: Any, *, local: bool) -> None:
        self._app, self._local = app, local

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one connection of ASGI."""
        scope[LOCAL] = self._local
        await self._app(scope, receive, send)


class _Quiet(uvicorn.Server):
    """A server that leaves signals to its process, which has several of them."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Change nothing."""
        yield


class HttpServers:
    """One server for each socket, over one application."""

    def __init__(self, app: Any, settings: Settings, listeners: Listeners) -> None:
        self._streams = app.state.streams
        local = _config(_Mark(app, local=True), settings)
        self._servers = [(_Quiet(local), listeners.local)]
        if listeners.port is not None:
            config = _config(_Mark(app, local=False), settings, tls=True)
            self._servers.append((_Quiet(config), listeners.port))

    @property
    def stopping(self) -> bool:
        """True once :meth:`stop` was called."""
        return any(server.should_exit for server, _ in self._servers)

    @property
    def started(self) -> bool:
        """True once every socket is served."""
        return all(server.started for server, _ in self._servers)

    def stop(self) -> None:
        """Answer the requests that are open, and end; streams end within a second."""
        self._streams.end()
        for server, _ in self._servers:
            server.should_exit = True

    async def serve(self) -> None:
        """Serve until stopped."""
        await asyncio.gather(*(server.serve(sockets=[each]) for server, each in self._servers))


def _config(app: Any, settings: Settings, *, tls: bool = False) -> uvicorn.Config:
    more: dict[str, Any] = {}
    if tls and settings.tls_certificate is not None:
        more = {"ssl_certfile": settings.tls_certificate, "ssl_keyfile": settings.tls_key}
    return uvicorn.Config(
        app,
        log_level="warning",
        lifespan="off",
        http=_Hurried,
        ws=_SmallAtFirst,
        ws_max_size=FRAME_BYTES,
        timeout_graceful_shutdown=int(settings.drain_seconds) or None,
        **more,
    )
