"""The identity provider, as this server asks it: description, keys, and tokens for codes.

Descriptions and keys are kept in memory, and used on while the provider gives none. A token
that names an unknown key has the keys read again, but not more often than each
:data:`KEYS_SECONDS`: anybody can make up such tokens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import httpx
import structlog

from jobs.clock import Clock
from orchestrator.network_address import is_loopback
from orchestrator.oidc_settings import OidcSettings
from orchestrator.server.oidc import people, signatures
from orchestrator.server.oidc.discovery import Metadata, address_of, read
from orchestrator.server.oidc.errors import ProviderAwayError, ProviderError, UnknownKeyError

KEPT_SECONDS = 3600.0
"""Age at which description and keys are read again."""
KEYS_SECONDS = 10.0
SILENT_SECONDS = 15.0
"""Time for which a provider that has not answered is not asked again: requests would all wait."""
_ANSWER_SECONDS = 5.0
_AGAIN_SECONDS = 60.0
"""Time for which what is known is used on where the provider gave nothing new."""
_MOST_BYTES = 2**20
_log = structlog.get_logger(__name__)


class Provider:
    """The identity provider.

    Args:
        settings: Which one.
        clock: What time it is.
        transport: For tests; None: the network.
    """

    def __init__(
        self,
        settings: OidcSettings,
        clock: Clock,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._settings, self._clock, self._transport = settings, clock, transport
        self._metadata: Metadata | None = None
        self._keys: list[dict[str, Any]] = []
        self._read_at = self._keys_at = self._asked_at = float("-inf")
        self._silent_until = float("-inf")
        self._reading = asyncio.Lock()

    async def metadata(self) -> Metadata:
        """The provider's description.

        Raises:
            ProviderAwayError: It does not answer, and never has.
            ProviderError: It is not what the settings say.
        """
        async with self._reading:
            now = self._clock.monotonic()
            if self._metadata is not None and now - self._read_at < KEPT_SECONDS:
                return self._metadata
            issuer = self._settings.oidc_issuer
            try:
                self._metadata = read(await self._ask("GET", address_of(issuer)), issuer)
                self._read_at = now
            except (ProviderAwayError, ProviderError) as error:
                if self._metadata is None:
                    raise
                _log.warning("the provider's description is used as it was", error=str(error))
                self._read_at = now - KEPT_SECONDS + _AGAIN_SECONDS
            return self._metadata

    async def claims(self, token: str, *, nonce: str | None = None) -> dict[str, Any]:
        """The claims of a token that is the provider's, for babysit, and valid now.

        Args:
            token: A signed token.
            nonce: Of the sign-in to which it must belong: then it is for the page's client. None:
                a bearer token, for any audience that is accepted.

        Raises:
            WrongTokenError: It is not.
            ProviderAwayError: The keys are not known.
            ProviderError: The provider is not what the settings say.
        """
        now, own = self._clock.now(), {self._settings.oidc_client_id}
        audiences = own if nonce is not None else self._settings.accepted_audiences
        try:
            claims = signatures.claims_of(token, await self._published())
        except UnknownKeyError:
            claims = signatures.claims_of(token, await self._published(newest=True))
        people.check(claims, self._settings, now, audiences=audiences, nonce=nonce)
        return claims

    async def tokens(self, **grant: str) -> dict[str, Any]:
        """Ask the token endpoint, as the page's client.

        Raises:
            ProviderAwayError: It does not answer.
            ProviderError: It refuses.
        """
        metadata = await self.metadata()
        client, secret = self._settings.oidc_client_id, self._secret()
        auth = None
        if secret is None or metadata.secret_in_body:
            grant = {**grant, "client_id": client}
            if secret is not None:
                grant["client_secret"] = secret
        else:  # RFC 6749, 2.3.1: both are form-encoded first
            auth = httpx.BasicAuth(quote(client, safe=""), quote(secret, safe=""))
        found = await self._ask("POST", metadata.token_endpoint, data=grant, auth=auth)
        if not isinstance(found, dict) or not isinstance(found.get("id_token"), str | None):
            raise ProviderError("the identity provider answered no tokens")
        return found

    def _secret(self) -> str | None:
        try:
            return self._settings.oidc_secret
        except OSError as error:  # sessions go on until it can be read again
            why = error.strerror or type(error).__name__
            raise ProviderAwayError(
                f"BABYSIT_OIDC_CLIENT_SECRET_FILE: {why}: nobody can sign in until the server can"
                " read it; tokens of babysit work"
            ) from error

    async def signing_keys(self) -> int:
        """Number of published keys that can have signed a token that babysit accepts.

        Raises:
            ProviderAwayError: The provider does not answer.
            ProviderError: It is not what the settings say.
        """
        return sum(map(signatures.is_usable, await self._published(newest=True)))

    async def _published(self, *, newest: bool = False) -> list[dict[str, Any]]:
        metadata = await self.metadata()
        async with self._reading:
            now = self._clock.monotonic()
            is_known = now - self._keys_at < KEPT_SECONDS
            if is_known and (not newest or now - self._asked_at < KEYS_SECONDS):
                return self._keys
            self._asked_at = now
            try:
                self._keys = _keys(await self._ask("GET", metadata.jwks_uri), metadata)
            except (ProviderAwayError, ProviderError) as error:
                if not self._keys:
                    raise
                _log.warning("the provider's keys are used as they were", error=str(error))
                self._keys_at = now - KEPT_SECONDS + _AGAIN_SECONDS
                return self._keys
            self._keys_at = now
            return self._keys

    async def _ask(self, method: str, url: str, **options: Any) -> Any:
        if self._clock.monotonic() < self._silent_until:
            raise self._away("it has not answered a moment ago")
        # A proxy of the environment is for other hosts only.
        outside = not is_loopback(httpx.URL(url).host)
        try:
            async with httpx.AsyncClient(
                transport=self._transport, timeout=_ANSWER_SECONDS, trust_env=outside
            ) as client:
                answer = await client.request(
                    method, url, headers={"Accept": "application/json"}, **options
                )
        except httpx.HTTPError as error:
            self._silent_until = self._clock.monotonic() + SILENT_SECONDS
            raise self._away(type(error).__name__) from error
        return _body(answer)

    def _away(self, why: str) -> ProviderAwayError:
        return ProviderAwayError(
            f"the identity provider {self._settings.oidc_issuer} does not answer ({why}): tokens of"
            " babysit work without it"
        )


def _keys(document: Any, metadata: Metadata) -> list[dict[str, Any]]:
    listed = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        raise ProviderError(f"{metadata.jwks_uri} lists no keys")
    return [key for key in listed if isinstance(key, dict)]


def _body(answer: httpx.Response) -> Any:
    """The JSON of an answer.

    Raises:
        ProviderAwayError: The provider has trouble of its own.
        ProviderError: It refuses, or answers no JSON.
    """
    where = answer.request.url.copy_with(query=None)
    if answer.status_code >= 500 or answer.status_code == 429:
        raise ProviderAwayError(f"the identity provider answered {answer.status_code} at {where}")
    try:
        body = answer.json() if len(answer.content) <= _MOST_BYTES else None
    except ValueError:
        body = None
    if answer.is_success and body is not None:
        return body
    raise ProviderError(f"the identity provider refused at {where}: {reason(body, answer)}")


def reason(body: Any, answer: httpx.Response) -> str:
    """The error that a provider names (RFC 6749, 5.2), or the status."""
    if isinstance(body, Mapping) and isinstance(body.get("error"), str):
        more = body.get("error_description")
        words = f"{body['error']} ({more})" if isinstance(more, str) else str(body["error"])
        return "".join(each for each in words if each.isprintable())[:300]
    return f"status {answer.status_code}"
