"""The provider's own description of itself (OpenID Connect Discovery 1.0), checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from orchestrator.network_address import is_loopback
from orchestrator.server.oidc.errors import ProviderError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """The parts of the description that babysit uses; an empty address: the provider has none."""

    issuer: str
    token_endpoint: str
    jwks_uri: str
    authorization_endpoint: str
    device_endpoint: str
    revocation_endpoint: str
    names_itself: bool
    """True if answers of the authorization endpoint carry `iss` (RFC 9207)."""
    secret_in_body: bool
    """True if the token endpoint takes the client's secret in the body only."""
    pkce: bool | None
    """True if the provider says that it checks S256 (RFC 7636); None: it says nothing."""


def address_of(issuer: str) -> str:
    """Where a provider describes itself.

    Raises:
        ProviderError: Others could read or change on the way what it says.
    """
    if not is_safe(issuer):
        raise ProviderError(f"BABYSIT_OIDC_ISSUER={issuer}: expected an https:// URL")
    return issuer.rstrip("/") + "/.well-known/openid-configuration"


def read(document: Any, issuer: str) -> Metadata:
    """Check a description.

    Raises:
        ProviderError: It is that of another issuer, or lacks what a sign-in needs.
    """
    if not isinstance(document, dict):
        raise ProviderError(f"{address_of(issuer)} is not a JSON object: check BABYSIT_OIDC_ISSUER")
    if document.get("issuer") != issuer:
        raise ProviderError(
            f"{address_of(issuer)} describes the issuer {str(document.get('issuer'))[:200]!r}: set"
            " BABYSIT_OIDC_ISSUER to exactly that, if it is yours"
        )
    methods = document.get("code_challenge_methods_supported")
    in_body = document.get("token_endpoint_auth_methods_supported") or ["client_secret_basic"]
    return Metadata(
        issuer=issuer,
        token_endpoint=_address(document, "token_endpoint", issuer, needed=True),
        jwks_uri=_address(document, "jwks_uri", issuer, needed=True),
        authorization_endpoint=_address(document, "authorization_endpoint", issuer),
        device_endpoint=_address(document, "device_authorization_endpoint", issuer),
        revocation_endpoint=_address(document, "revocation_endpoint", issuer),
        names_itself=document.get("authorization_response_iss_parameter_supported") is True,
        secret_in_body="client_secret_basic" not in in_body,
        pkce="S256" in methods if isinstance(methods, list) else None,
    )


def _address(document: Mapping[str, Any], name: str, issuer: str, *, needed: bool = False) -> str:
    found = document.get(name)
    if found is None and not needed:
        return ""
    if not isinstance(found, str) or not is_safe(found):
        raise ProviderError(
            f"{address_of(issuer)}: {name}: expected an https:// URL, got {str(found)[:200]!r}"
        )
    return found


def is_safe(url: str) -> bool:
    """True for an https:// URL, or an http:// one of this machine, for trials."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        return False
    return bool(host) and (
        parts.scheme == "https" or (parts.scheme == "http" and is_loopback(str(host)))
    )
