"""Single sign-on: people sign in at an identity provider (OpenID Connect), groups give roles.

The design: the page uses the authorization code flow with PKCE, state and nonce. All three are
derived from one secret in a cookie of the browser that began, so nothing is stored for strangers,
and a code works in that browser only. The session keeps the provider's refresh token, sealed with
the session's own secret; with it, groups are asked for anew every some minutes, so a person who
leaves a group loses the role then. The command line sends signed tokens of the device flow
(RFC 8628), which it gets from the provider itself.

Limits: without a refresh token groups cannot be asked for anew; such a session lasts
:data:`UNCHECKED_SECONDS` at most. While the provider does not answer, sessions go on until they
end. A person who is deleted at the provider keeps a signed token until that expires.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import hmac
import secrets
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode
from weakref import WeakValueDictionary

import structlog

from jobs.clock import Clock
from orchestrator.database.credentials import PERSON, Session, Token
from orchestrator.database.sessions import Sessions
from orchestrator.errors import InvalidError, PermissionDeniedError
from orchestrator.server.oidc import people, signatures
from orchestrator.server.oidc.browser_flow import BEGUN_SECONDS, CALLBACK, challenge, derived
from orchestrator.server.oidc.discovery import Metadata
from orchestrator.server.oidc.errors import (
    ProviderAwayError,
    ProviderError,
    RefusedSignInError,
    WrongTokenError,
)
from orchestrator.server.oidc.provider import Provider
from orchestrator.server.sign_in import Opened, hash_of
from orchestrator.settings import Settings

UNCHECKED_SECONDS = 8 * 3600.0
"""A working day: the longest session whose groups cannot be asked for anew."""
_AGAIN_SECONDS = 60.0
"""Pause after a provider that does not answer."""
_log = structlog.get_logger(__name__)


class SingleSignOn:
    """Signs people in at the identity provider.

    Args:
        settings: The provider and the roles.
        clock: What time it is.
        store: Keeps sessions.
        provider: For tests; None: the provider of the settings.
    """

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        store: Sessions,
        provider: Provider | None = None,
    ) -> None:
        self._settings, self._clock, self._store = settings, clock, store
        self._provider = provider or Provider(settings, clock)
        self._checking: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @property
    def has_page(self) -> bool:
        """True if browsers can sign in: the provider must know where to send them back."""
        return bool(self._settings.public_url)

    async def begin(self, cookie: str) -> str:
        """The provider's address at which a browser with this cookie signs in.

        Raises:
            InvalidError: The settings name no address of this server.
            ProviderAwayError: The provider does not answer.
            ProviderError: It is not what the settings say.
        """
        metadata = await self._provider.metadata()
        if not self.has_page or not metadata.authorization_endpoint:
            raise InvalidError("sign-in needs BABYSIT_PUBLIC_URL, and a provider with a page")
        asked = {
            "response_type": "code",
            "client_id": self._settings.oidc_client_id,
            "redirect_uri": self._settings.public_url + CALLBACK,
            "scope": self._settings.oidc_scopes,
            "state": derived("state", cookie),
            "nonce": derived("nonce", cookie),
            "code_challenge": challenge(derived("verifier", cookie)),
            "code_challenge_method": "S256",
        }
        joint = "&" if "?" in metadata.authorization_endpoint else "?"
        return f"{metadata.authorization_endpoint}{joint}{urlencode(asked)}"

    async def finish(self, answer: Mapping[str, str], cookie: str) -> Opened:
        """The session of a person whom the provider has sent back.

        Args:
            answer: The parameters of the provider's redirect.
            cookie: Of the browser; empty: it has none.

        Raises:
            RefusedSignInError: The answer is not one to this browser, or the person may not enter.
            ProviderAwayError: The provider does not answer.
            ProviderError: It refuses the code.
        """
        metadata = await self._provider.metadata()
        await self._check_answer(answer, cookie, metadata)
        found = await self._provider.tokens(
            grant_type="authorization_code",
            code=answer["code"],
            redirect_uri=self._settings.public_url + CALLBACK,
            code_verifier=derived("verifier", cookie),
        )
        try:
            nonce = derived("nonce", cookie)
            claims = await self._provider.claims(str(found.get("id_token") or ""), nonce=nonce)
            person = people.person(claims, self._settings, self._clock.now())
        except (WrongTokenError, PermissionDeniedError) as error:
            raise RefusedSignInError(f"the sign-in was refused: {error}") from error
        await self._note_used(cookie)
        return await self._open(person, found.get("refresh_token"))

    async def _check_answer(
        self, answer: Mapping[str, str], cookie: str, metadata: Metadata
    ) -> None:
        again = "begin the sign-in again"
        if not cookie or not hmac.compare_digest(
            answer.get("state", "").encode(), derived("state", cookie).encode()
        ):
            raise RefusedSignInError(f"another browser has begun the sign-in: {again}")
        # RFC 9207: an answer that another provider has caused must not reach this one.
        named = answer.get("iss")
        if named != metadata.issuer and (named is not None or metadata.names_itself):
            raise RefusedSignInError(f"the answer comes from another provider: {again}")
        if "error" in answer:
            words = f"{answer['error']} {answer.get('error_description', '')}".strip()
            shown = "".join(each for each in words if each.isprintable())[:300]
            raise RefusedSignInError(f"the identity provider refused: {shown}")
        if not answer.get("code"):
            raise RefusedSignInError(f"the answer has no code: {again}")
        if (
            await self._store.session(hash_of(derived("used", cookie)), self._clock.now())
            is not None
        ):
            raise RefusedSignInError(f"the sign-in is over: {again}")

    async def _note_used(self, cookie: str) -> None:
        """Remember a sign-in that has succeeded, so that it cannot be played again."""
        now = self._clock.now()
        ends = now + dt.timedelta(seconds=BEGUN_SECONDS)
        used = hash_of(derived("used", cookie))
        done = Session(
            hash=used, kind="state", opener="", name=used, role="viewer", expires_at=ends
        )
        await self._store.keep_session(done, now)

    async def _open(self, person: Token, refresh: object) -> Opened:
        now, secret = self._clock.now(), secrets.token_urlsafe(32)
        sealed = signatures.seal(refresh, secret) if isinstance(refresh, str) else None
        most = self._settings.session_hours * 3600
        seconds = most if sealed else min(most, UNCHECKED_SECONDS)
        session = Session(
            hash=hash_of(secret),
            kind="oidc",
            opener="",
            name=person.name,
            role=person.role,
            expires_at=now + dt.timedelta(seconds=seconds),
            memo={"subject": person.subject, "refresh": sealed, "check": self._next_check()},
        )
        await self._store.keep_session(session, now)
        return Opened(secret=secret, expires_at=session.expires_at)

    async def caller(self, session: Session, secret: str) -> Token | None:
        """The person behind a session, with the role of today's groups; None: signed out."""
        if self._is_due(session):
            lock = self._checking.setdefault(session.hash, asyncio.Lock())
            async with lock:  # a refresh token works once with many providers
                found = await self._store.session(session.hash, self._clock.now())
                if found is None:
                    return None
                session = await self._checked(found, secret) if self._is_due(found) else found
        if session.memo.get("over") or session.memo["subject"].split(" ")[0] != self._issuer:
            return None
        return Token(
            id=PERSON + session.memo["subject"],
            name=session.name,
            role=session.role,
            created_at=self._clock.now(),
            expires_at=session.expires_at,
            via="oidc",
            subject=session.memo["subject"],
        )

    @property
    def _issuer(self) -> str:
        return self._settings.oidc_issuer

    def _is_due(self, session: Session) -> bool:
        at = dt.datetime.fromisoformat(session.memo["check"])
        return session.memo.get("refresh") is not None and self._clock.now() >= at

    def _next_check(self, seconds: float | None = None) -> str:
        after = self._settings.oidc_recheck_minutes * 60 if seconds is None else seconds
        return (self._clock.now() + dt.timedelta(seconds=after)).isoformat()

    async def _checked(self, session: Session, secret: str) -> Session:
        """The session with the role of today's groups, stored."""
        memo = dict(session.memo)
        try:
            session = await self._refreshed(session, secret, memo)
            memo["check"] = self._next_check()
        except ProviderAwayError as error:
            _log.warning("groups cannot be asked for, sessions go on", error=str(error))
            memo["check"] = self._next_check(_AGAIN_SECONDS)
        except (ProviderError, WrongTokenError, PermissionDeniedError) as error:
            _log.info("a session has ended", person=session.name, reason=str(error))
            await self._store.end_session(session.hash, self._clock.now())
            return dataclasses.replace(session, memo={**memo, "over": True})
        session = dataclasses.replace(session, memo=memo)
        await self._store.change_session(session)
        return session

    async def _refreshed(self, session: Session, secret: str, memo: dict[str, Any]) -> Session:
        token = signatures.unseal(memo["refresh"], secret)
        if token is None:
            raise WrongTokenError("its refresh token cannot be read")
        found = await self._provider.tokens(grant_type="refresh_token", refresh_token=token)
        if isinstance(newer := found.get("refresh_token"), str):
            memo["refresh"] = signatures.seal(newer, secret)
            # Stored first: the old one is spent, whatever else goes wrong.
            await self._store.change_session(dataclasses.replace(session, memo=dict(memo)))
        if found.get("id_token") is None:
            raise WrongTokenError("the provider renews no ID token, which names the groups")
        claims = await self._provider.claims(found["id_token"])
        person = people.person(claims, self._settings, self._clock.now())
        if person.subject != memo["subject"]:
            raise WrongTokenError("the provider renewed the token of another person")
        return dataclasses.replace(session, role=person.role, name=person.name)

    async def by_bearer(self, token: str) -> Token:
        """The person behind a signed token.

        Raises:
            WrongTokenError: It is not the provider's, not for babysit, or over.
            PermissionDeniedError: No group of the person has a role.
            ProviderAwayError: The keys are not known.
            ProviderError: The provider is not what the settings say.
        """
        claims = await self._provider.claims(token)
        return people.person(claims, self._settings, self._clock.now())
