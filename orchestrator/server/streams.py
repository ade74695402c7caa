"""Open streams of server-sent events: how many there may be, and when each has to end.

The problem: a stream outlives the request that opened it. It must not outlive the session or the
token behind it, nor hold up a server that wants to end; and a crowd of tabs must not fill the
server. The design: each stream looks once a second whether it may go on, and asks for the caller
again every :data:`RECHECK_SECONDS`. Silence of a stream is at most :data:`ALIVE_SECONDS`, so that
proxies keep it open and a page knows how old its data is.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.types import Scope

from jobs.clock import Clock
from orchestrator.errors import BabysitError, PermissionDeniedError, TemporaryError
from orchestrator.server.context import CALLER, UnauthenticatedError
from orchestrator.server.guard import RECHECK

MOST = 400
"""Streams open at a time."""
MOST_OF_A_CALLER = 40
"""Streams of one token or session at a time: a person has a few tabs and a phone."""
RECHECK_SECONDS = 5.0
ALIVE_SECONDS = 10.0
RETRY_MILLISECONDS = 2000
_HEADERS = {
    "Cache-Control": "no-store, no-transform",
    "X-Accel-Buffering": "no",  # nginx would hold events back
}


class Streams:
    """Counts the open streams, and ends them with the server."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()
        self.ending = False
        """True once the server wants to end."""

    @property
    def count(self) -> int:
        """How many are open."""
        return self._open.total()

    def end(self) -> None:
        """Have all streams end within a second."""
        self.ending = True

    @contextlib.contextmanager
    def place(self, caller: str) -> Iterator[None]:
        """A place for a stream of a caller.

        Raises:
            TemporaryError: All places are taken.
        """
        if self.count >= MOST or self._open[caller] >= MOST_OF_A_CALLER:
            raise TemporaryError(
                f"{self._open[caller]} streams of yours and {self.count} in all are open: close"
                " some pages, or poll `/api/v1/fleet`"
            )
        self._open[caller] += 1
        try:
            yield
        finally:
            self._open[caller] -= 1
            if not self._open[caller]:
                del self._open[caller]


def event(kind: str, data: Any, id_: str = "") -> str:
    """One event of a stream; `data` is JSON, which has no line breaks."""
    head = f"id: {id_}\n" if id_ else ""
    return f"{head}event: {kind}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n"


def answer(
    streams: Streams, clock: Clock, scope: Scope, look: Callable[[], Awaitable[str]]
) -> StreamingResponse:
    """The answer to a request for a stream.

    Args:
        streams: Has a place for it.
        clock: What time it is.
        scope: Of the request.
        look: Gives the events that are new; called about once a second. Empty: there are none.

    Raises:
        TemporaryError: All places are taken.
    """
    place = contextlib.ExitStack()
    place.enter_context(streams.place(_caller(scope)))
    body = _body(streams, clock, scope, look)
    return _Stream(place, body, media_type="text/event-stream", headers=_HEADERS)


class _Stream(StreamingResponse):
    """Gives its place back, however it ends, also before its first event."""

    def __init__(
        self, place: contextlib.ExitStack, body: AsyncIterator[str], **options: Any
    ) -> None:
        super().__init__(body, **options)
        self._place = place

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        with self._place:
            await super().__call__(scope, receive, send)


def _caller(scope: Scope) -> str:
    return str(scope[CALLER].id)


async def _body(
    streams: Streams, clock: Clock, scope: Scope, look: Callable[[], Awaitable[str]]
) -> AsyncIterator[str]:
    yield f"retry: {RETRY_MILLISECONDS}\n\n" + event("alive", {"at": clock.now().isoformat()})
    spoke = checked = clock.monotonic()
    while not streams.ending:
        try:
            if clock.monotonic() - checked >= RECHECK_SECONDS:
                await scope[RECHECK]()
                checked = clock.monotonic()
            text = await look()
        except (UnauthenticatedError, PermissionDeniedError) as error:
            yield event("over", {"message": str(error)})
            return
        except BabysitError as error:
            # The database is away, say. The page shows how old it is; it gets nothing new before
            # the caller is known again, and nobody is signed out.
            text = event("trouble", {"message": str(error)})
        if text or clock.monotonic() - spoke >= ALIVE_SECONDS:
            yield text or event("alive", {"at": clock.now().isoformat()})
            spoke = clock.monotonic()
        await clock.sleep(1.0)
    yield event("leaving", {})
