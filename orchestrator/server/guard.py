"""The guard in front of the API: it asks who is calling before it reads what they send.

FastAPI reads and parses a body before it asks for a token. Then a peer without one could hold the
event loop and the memory of the server with a large body.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any

from orchestrator.database.credentials import Token
from orchestrator.errors import BabysitError, InvalidError
from orchestrator.server.audit import BODY, SESSION_PATH
from orchestrator.server.context import CALLER, LOCAL, Context, UnauthenticatedError
from orchestrator.server.error_responses import answer_to, too_large
from orchestrator.server.page import is_page
from orchestrator.server.same_site import cookie_name, refuse_other_site
from orchestrator.settings import Settings

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
RECHECK = "babysit.recheck"
"""Key of an ASGI scope: finds the caller of a request again, or raises UnauthenticatedError."""
UPLOADS = "/api/v1/bundles/"
"""Paths whose bodies are files: they are streamed to the disk by their route."""
DOWNLOADS = "/agent/bundles/"
"""Paths that agents ask for with a token of their worker, which their route checks."""
NODES = "/agent/nodes/"
"""Paths of node monitors, whose routes check the token of the node and the size of the body."""
_OPEN = {
    *("/healthz", "/leaderz", "/api/v1/openapi.json"),
    *("/sign-in", "/sign-in/oidc", "/sign-in/oidc/callback"),
}
"""Paths that need no token."""
_MOST_OF_STRANGERS = 16 * 1024
"""Bytes of a body that is read before anybody has signed in."""
LOOKING = {"GET", "HEAD"}
"""Methods that change nothing."""


class Guard:
    """An ASGI middleware: who calls, and how much they send.

    Args:
        app: The application behind it.
        context: Authenticates.
    """

    def __init__(self, app: Any, context: Context) -> None:
        self._app, self._context = app, context

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one connection of ASGI."""
        if scope["type"] != "http" or _is_open(scope):
            await self._app(scope, receive, send)
            return
        try:
            scope[CALLER] = await self._caller_or_none(scope)
            scope[RECHECK] = functools.partial(self._caller, scope)
        except BabysitError as error:
            await answer_to(error)(scope, _nothing, send)
            return
        if scope["path"].startswith(UPLOADS):  # its route reads it, within limits of its own
            scope[BODY] = b""
            await self._app(scope, receive, send)
            return
        most = self._context.settings.max_body_bytes
        if scope[CALLER] is None:
            most = min(most, _MOST_OF_STRANGERS)
        body = await _body(scope, receive, most)
        if body is None:
            await too_large(most)(scope, _nothing, send)
            return
        scope[BODY] = body
        if _has_half_characters(body):
            halves = InvalidError("\\ud800 to \\udfff are halves of characters: send both")
            await answer_to(halves)(scope, _nothing, send)
            return
        await self._app(scope, _replay(body, receive), send)

    async def _caller_or_none(self, scope: Message) -> Token | None:
        if scope["path"] != SESSION_PATH:
            return await self._caller(scope)
        if scope["method"] not in LOOKING:
            refuse_other_site(scope, self._context.settings)
        try:
            return await self._caller(scope)
        except UnauthenticatedError:
            return None

    async def _caller(self, scope: Message) -> Token:
        """The caller, by a token or by a browser's session.

        Raises:
            UnauthenticatedError: There is neither, or none that is valid.
            PermissionDeniedError: Another site may have made the browser send the request.
        """
        secret = _secret(scope)
        session = session_of(scope, self._context.settings) if secret is None else None
        if session and (caller := await self._context.caller_of(session)) is not None:
            scope[CALLER] = caller  # also of a request that is refused
            if scope["method"] not in LOOKING:
                refuse_other_site(scope, self._context.settings)
            return caller
        return await self._context.authenticate(secret, local=scope.get(LOCAL, False))


def _is_open(scope: Message) -> bool:
    """True for what needs no token: files of the page hold no data; its scripts ask for them."""
    if scope["path"] in _OPEN or scope["path"].startswith((DOWNLOADS, NODES)):
        return True
    return scope["method"] in LOOKING and is_page(scope["path"])


def session_of(scope: Message, settings: Settings) -> str | None:
    """The secret of the browser's session; None: it sends none."""
    return cookie_of(scope, cookie_name(settings))


def cookie_of(scope: Message, name_: str) -> str | None:
    """The value of a cookie; None: the browser sends none."""
    found = SimpleCookie()
    for name, value in scope["headers"]:
        if name == b"cookie":
            with contextlib.suppress(CookieError):
                found.load(value.decode("latin-1"))
    cookie = found.get(name_)
    return cookie.value if cookie else None


def _secret(scope: Message) -> str | None:
    for name, value in scope["headers"]:
        kind, _, secret = value.partition(b" ")
        if name == b"authorization" and kind.lower() == b"bearer":
            return str(secret.decode("latin-1").strip())
    return None


async def _nothing() -> Message:
    return {"type": "http.disconnect"}


async def _body(scope: Message, receive: Receive, most: int) -> bytes | None:
    """The whole body; None: it is larger than `most` bytes, or says that it is."""
    announced = dict(scope["headers"]).get(b"content-length", b"0")
    if announced.isdigit() and int(announced) > most:
        return None
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        part = message.get("body", b"")
        size += len(part)
        if size > most:
            return None
        parts.append(part)
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return b"".join(parts)


def _has_half_characters(body: bytes) -> bool:
    """True if JSON names half of a character, which no file, no database and no answer can hold."""
    if _SURROGATE.search(body) is None:
        return False
    try:
        json.dumps(json.loads(body), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    except (ValueError, RecursionError):  # no JSON: the application says so
        return False
    return False


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body at once, and afterwards what comes."""
    given = False

    async def replayed() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed
