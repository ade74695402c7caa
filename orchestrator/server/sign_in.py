"""Sign-in for a browser: a link that works once, and a session that may look and nothing else.

The problem: a browser has no token, and a token does not belong in an address, which ends up in
histories and logs. The design: `babysit server sign-in` asks for a code, good for one request
within :data:`CODE_SECONDS`. The request gives the browser a cookie, which only requests that change
nothing may use: no other site can make the browser act. Both are kept in memory, as hashes.

Limits: sessions end with the server, and after :data:`SESSION_SECONDS`.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
import secrets

from jobs.clock import Clock
from orchestrator.database.credentials import Token

COOKIE = "babysit_session"
CODE_SECONDS = 60.0
"""Time to open the link."""
SESSION_SECONDS = 8 * 3600.0
"""A working day."""
MOST_KEPT = 1000
"""Codes and sessions that are kept; the oldest are dropped beyond that."""
_Kept = tuple[Token, dt.datetime]
"""A caller, and the time until which the code or the session is good."""


class SignIns:
    """The codes and the sessions of one server."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._codes: dict[str, _Kept] = {}
        self._sessions: dict[str, _Kept] = {}

    def code(self, caller: Token) -> str:
        """A code for a session of the caller, as a viewer."""
        viewer = dataclasses.replace(caller, role="viewer")
        return self._keep(self._codes, viewer, CODE_SECONDS)

    def session(self, code: str) -> str | None:
        """The secret of the session that a code opens, once; None: there is no such code."""
        caller = self._valid(self._codes, code)
        self._codes.pop(_hash(code), None)
        return None if caller is None else self._keep(self._sessions, caller, SESSION_SECONDS)

    def caller(self, secret: str) -> Token | None:
        """The viewer behind a session; None: there is none, or it is over."""
        return self._valid(self._sessions, secret)

    def _keep(self, kept: dict[str, _Kept], caller: Token, seconds: float) -> str:
        while len(kept) >= MOST_KEPT:
            del kept[next(iter(kept))]
        secret = secrets.token_urlsafe(32)
        kept[_hash(secret)] = caller, self._clock.now() + dt.timedelta(seconds=seconds)
        return secret

    def _valid(self, kept: dict[str, _Kept], secret: str) -> Token | None:
        caller, end = kept.get(_hash(secret), (None, None))
        now = self._clock.now()
        return caller if caller and end and now < end and caller.is_valid(now) else None


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
