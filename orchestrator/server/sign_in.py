"""Sign-in for a browser: sessions that carry the rights of the caller who opened them.

The problem: a browser has no token, and a token does not belong in an address, which ends up in
histories and logs, nor where scripts of a page can read it. The design: a browser opens a session
with a token, or with a link of `babysit server sign-in`, which is good for one request within
:data:`CODE_SECONDS`. It gets a cookie that no script can read and no other site can send. The
session never allows more than its token does at the moment, and ends with it. The run database
keeps hashes: a restart or a fail-over signs nobody out.

Limits: a session of `babysit server sign-in` on the server's own machine ends by its time alone,
as there is no token behind it.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
import hmac
import secrets
from collections import deque
from typing import Literal

from jobs.clock import Clock
from orchestrator.database.credentials import RANK, Role, Session, Token
from orchestrator.database.sessions import Sessions
from orchestrator.errors import BabysitError, PermissionDeniedError
from orchestrator.settings import Settings

CODE_SECONDS = 60.0
"""Time to open the link."""
LINK_SECONDS = 8 * 3600.0
"""A working day."""
ATTEMPTS = 20
"""Failed sign-ins of one address within :data:`ATTEMPTS_SECONDS`; then it has to wait."""
ATTEMPTS_SECONDS = 60.0
_ADDRESSES = 10_000
"""Addresses with failures that are remembered."""


class TooManyAttemptsError(BabysitError):
    """An address has failed to sign in too often; it may try again in a minute."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A new session."""

    secret: str
    """The value of the cookie."""
    expires_at: dt.datetime


class SignIns:
    """Opens and finds sessions.

    Args:
        store: Keeps them.
        clock: What time it is.
        settings: How long sessions last, and the server's own token.
    """

    def __init__(self, store: Sessions, clock: Clock, settings: Settings) -> None:
        self._store, self._clock, self._settings = store, clock, settings
        self._failures: dict[str, deque[float]] = {}

    async def code(self, caller: Token, role: Role) -> str:
        """A code that opens one session of the caller, with a role that the caller has.

        Raises:
            PermissionDeniedError: The role is above the caller's, or the caller is a session, which
                must not prolong itself.
        """
        if caller.is_session:
            raise PermissionDeniedError("a session opens no other: use a token")
        if RANK[role] > RANK[caller.role]:
            raise PermissionDeniedError(
                f"a link with the role {role}: {caller.name} has the role {caller.role}"
            )
        return (await self._keep(caller, "code", role, CODE_SECONDS)).secret

    async def by_code(self, code: str) -> Opened | None:
        """The session that a code opens, once; None: there is no such code."""
        now = self._clock.now()
        found = await self._store.end_session(hash_of(code), now)
        if found is None or found.kind != "code":
            return None
        return await self._open(dataclasses.replace(found, kind="link"), LINK_SECONDS)

    async def by_token(self, caller: Token) -> Opened:
        """A session with the rights of a token."""
        return await self._keep(caller, "token", caller.role, self._settings.session_hours * 3600)

    async def find(self, secret: str) -> Session | None:
        """The session behind a cookie; None: there is none, or it is over."""
        found = await self._store.session(hash_of(secret), self._clock.now())
        return found if found is not None and found.kind not in {"code", "state"} else None

    async def end(self, secret: str) -> None:
        """End a session, if it is one."""
        await self._store.end_session(hash_of(secret), self._clock.now())

    def is_of_first(self, session: Session) -> bool:
        """True if a session was opened with the server's own token, as that is now."""
        first = self._first()
        return first is not None and hmac.compare_digest(session.memo.get("first", ""), first)

    def refuse_too_many(self, address: str) -> None:
        """Raise TooManyAttemptsError if an address has failed to sign in too often lately."""
        since = self._clock.monotonic() - ATTEMPTS_SECONDS
        failures = self._failures.get(address, deque())
        if sum(each > since for each in failures) >= ATTEMPTS:
            raise TooManyAttemptsError(
                f"{ATTEMPTS} sign-ins have failed within a minute: wait one, then try again"
            )

    def note_failure(self, address: str) -> None:
        """Count a failed sign-in."""
        failures = self._failures.pop(address, deque(maxlen=ATTEMPTS))
        failures.append(self._clock.monotonic())
        self._failures[address] = failures
        if len(self._failures) > _ADDRESSES:
            del self._failures[next(iter(self._failures))]

    def _first(self) -> str | None:
        token = self._settings.token
        return hash_of(token.get_secret_value()) if token else None

    async def _keep(
        self, caller: Token, kind: Literal["code", "token"], role: Role, seconds: float
    ) -> Opened:
        memo = {"until": caller.expires_at and caller.expires_at.isoformat()}
        if caller.id == "first":
            memo["first"] = self._first()
        wanted = Session(
            hash="",
            kind=kind,
            opener=caller.id,
            name=caller.name,
            role=role,
            expires_at=self._clock.now(),
            memo=memo,
        )
        return await self._open(wanted, seconds)

    async def _open(self, wanted: Session, seconds: float) -> Opened:
        """Store a session under a new secret; it ends no later than what it was opened with."""
        now = self._clock.now()
        ends = now + dt.timedelta(seconds=seconds)
        if until := wanted.memo.get("until"):
            ends = min(ends, dt.datetime.fromisoformat(until))
        secret = secrets.token_urlsafe(32)
        session = dataclasses.replace(wanted, hash=hash_of(secret), expires_at=ends)
        await self._store.keep_session(session, now)
        return Opened(secret=secret, expires_at=ends)


def hash_of(secret: str) -> str:
    """The stored form of a secret; it is random, so a hash without salt is safe."""
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()
