"""Requests that a client sends again since it heard no answer: one key, one effect."""

from __future__ import annotations

import contextlib
import re
from typing import Annotated, Any

from fastapi import Header

from jobs.spec import RunSpec
from orchestrator.errors import ConflictError, InvalidError, NotFoundError
from orchestrator.server.context import REQUEST_KEY, Context
from orchestrator.server.error_responses import answer_to
from orchestrator.server.guard import LOOKING, Message, Receive, Send

_PATTERN = "^[0-7][0-9A-HJKMNP-TV-Z]{25}$"
Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern=_PATTERN,
        description="A ULID of the client's making, the same whenever the request is sent again: "
        "the id of the new run. Many requests with one key make one run.",
    ),
]


async def is_submitted(here: Context, run: str, spec: RunSpec) -> bool:
    """True if an earlier request with this key was stored, whatever its client heard of it.

    Raises ConflictError: the key is that of another submission.
    """
    with contextlib.suppress(NotFoundError):
        before = await here.store.run(run)
        if before.id == run and _names(before.spec) != _names(spec):
            raise ConflictError(
                f"the key {run} belongs to the run {before.name}: send another Idempotency-Key"
            )
        return before.id == run
    return False


def _names(spec: RunSpec) -> tuple[str, str, str]:
    """The name of a run, and the two names that tokens are limited to."""
    return spec.name, spec.project, spec.queue


class Keys:
    """An ASGI middleware that notes the key of a request that may change something.

    `Context.tell` finds it, and does once what comes twice.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one connection of ASGI."""
        key = None
        if scope["type"] == "http" and scope["method"] not in LOOKING:
            key = dict(scope["headers"]).get(b"idempotency-key")
        if key is not None and re.fullmatch(_PATTERN.encode(), key) is None:
            error = InvalidError("Idempotency-Key: expected a ULID, new for each request")
            await answer_to(error)(scope, receive, send)
            return
        noted = REQUEST_KEY.set(None if key is None else key.decode())
        try:
            await self._app(scope, receive, send)
        finally:
            REQUEST_KEY.reset(noted)
