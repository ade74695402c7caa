"""Checks of the settings of single sign-on against the provider itself."""

from __future__ import annotations

from jobs.clock import Clock
from orchestrator.errors import InvalidError
from orchestrator.server.oidc.browser_flow import CALLBACK
from orchestrator.server.oidc.provider import Provider
from orchestrator.settings import Settings


async def check(settings: Settings, clock: Clock) -> str:
    """Ask the provider for its description and keys; returns a sentence about what works.

    The client's secret and the redirect address are not tried: that takes a person's sign-in.

    Raises:
        ProviderAwayError: The provider does not answer.
        ProviderError: It is not what the settings say.
        InvalidError: A setting is missing, or the provider lacks what babysit needs.
    """
    if not settings.oidc_client_id:
        raise InvalidError("BABYSIT_OIDC_CLIENT_ID is not set")
    try:
        secret = settings.oidc_secret
    except OSError as error:
        raise InvalidError(f"BABYSIT_OIDC_CLIENT_SECRET_FILE: {error.strerror or error}") from error
    if not (settings.role_of_group or settings.oidc_default_role):
        raise InvalidError("BABYSIT_OIDC_ROLES gives nobody a role")
    provider = Provider(settings, clock)
    metadata = await provider.metadata()
    if not await provider.signing_keys():
        raise InvalidError(f"{metadata.jwks_uri} publishes no key that babysit can use")
    if metadata.pkce is False:
        raise InvalidError(f"{settings.oidc_issuer} does not support PKCE with S256 (RFC 7636)")
    notes = [f"{settings.oidc_issuer}, {len(settings.role_of_group)} groups with a role"]
    notes.append(
        f"the provider must allow {settings.public_url}{CALLBACK}"
        if settings.public_url
        else "the page offers no sign-in: BABYSIT_PUBLIC_URL is not set"
    )
    if not metadata.device_endpoint:
        notes.append("no `babysit login`: the provider has no device flow")
    if secret is None:
        notes.append("no secret: a public client")
    return "; ".join(notes)
