"""Claims of a token become a caller: who it is, and what the groups allow."""

from __future__ import annotations

import datetime as dt
import hmac
from collections.abc import Iterable, Mapping
from typing import Any

from orchestrator.database.credentials import PERSON, RANK, Token
from orchestrator.errors import PermissionDeniedError
from orchestrator.oidc_settings import OidcSettings
from orchestrator.server.oidc.errors import WrongTokenError

SKEW_SECONDS = 60.0
"""How far the clocks of provider and server may differ; RFC 7519 allows a few minutes."""
_MOST_NAME = 200
_MOST_TIME = 2**37
"""Unix seconds: the year 6325."""


def check(
    claims: Mapping[str, Any],
    settings: OidcSettings,
    now: dt.datetime,
    *,
    audiences: Iterable[str],
    nonce: str | None = None,
) -> None:
    """Check what a signature does not: for whom a token is, by whom, and when.

    Args:
        claims: Of a token whose signature is right.
        settings: The issuer.
        now: The time.
        audiences: Who may be meant; one must be.
        nonce: Of the sign-in that the token must belong to; None: it belongs to none.

    Raises:
        WrongTokenError: It is not for babysit, or not for now.
    """
    accepted = set(audiences)
    if claims.get("iss") != settings.oidc_issuer:
        raise WrongTokenError("it is of another issuer")
    meant = claims.get("aud")
    named = {meant} if isinstance(meant, str) else set(map(str, meant or ()))
    if not named & accepted:
        raise WrongTokenError("it is for another audience")
    party = claims.get("azp")
    if party is not None and party not in accepted:
        raise WrongTokenError("it was given to another party")
    if not isinstance(claims.get("sub"), str) or not claims["sub"]:
        raise WrongTokenError("it names nobody")
    _check_times(claims, now.timestamp())
    if nonce is not None and not hmac.compare_digest(str(claims.get("nonce", "")), nonce):
        raise WrongTokenError("it belongs to another sign-in")


def _check_times(claims: Mapping[str, Any], now: float) -> None:
    ends = _time(claims, "exp")
    if ends is None:
        raise WrongTokenError("it has no end")
    if now >= ends + SKEW_SECONDS:
        raise WrongTokenError("it has expired")
    for name in ("nbf", "iat"):
        if (_time(claims, name) or 0.0) > now + SKEW_SECONDS:
            raise WrongTokenError("it is not valid yet: compare the clocks")


def _time(claims: Mapping[str, Any], name: str) -> float | None:
    found = claims.get(name)
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 <= found < _MOST_TIME:
        raise WrongTokenError(f"its {name} is not a time")
    return float(found)


def person(claims: Mapping[str, Any], settings: OidcSettings, now: dt.datetime) -> Token:
    """The caller that checked claims describe.

    Raises:
        WrongTokenError: They give no name that can be trusted.
        PermissionDeniedError: No group of the person has a role.
    """
    name, subject = _name(claims, settings), str(claims["sub"])
    held = [settings.role_of_group[group] for group in groups(claims, settings)]
    role: Any = max(held, key=RANK.__getitem__, default=settings.oidc_default_role)
    if not role:
        raise PermissionDeniedError(
            f"{name} has signed in, and is in no group with a role here: ask for one of the groups"
            " of BABYSIT_OIDC_ROLES, then sign in again"
        )
    ends = dt.datetime.fromtimestamp(float(claims["exp"]), dt.UTC)
    return Token(
        id=PERSON + f"{claims['iss']} {subject}"[:500],
        name=name,
        role=role,
        created_at=now,
        expires_at=ends,
        via="oidc",
        subject=f"{claims['iss']} {subject}"[:500],
    )


def _name(claims: Mapping[str, Any], settings: OidcSettings) -> str:
    claim = settings.oidc_name_claim
    found = claims.get(claim)
    usable = isinstance(found, str) and found.isprintable() and not set(found) & set(" :/\\<>\"'")
    if not usable or not 0 < len(str(found)) <= _MOST_NAME:
        raise WrongTokenError(
            f"its claim {claim} names nobody: see BABYSIT_OIDC_NAME_CLAIM and BABYSIT_OIDC_SCOPES"
        )
    if claim == "email" and claims.get("email_verified") is not True:
        raise WrongTokenError("the provider has not verified its e-mail address")
    return str(found)


def groups(claims: Mapping[str, Any], settings: OidcSettings) -> list[str]:
    """The groups of a person that have a role. Names are compared exactly."""
    found: Any = claims
    if settings.oidc_groups_claim in claims:  # a claim's own name may have dots: https://x.y/groups
        found = claims[settings.oidc_groups_claim]
    else:
        for part in settings.oidc_groups_claim.split("."):
            found = found.get(part) if isinstance(found, dict) else None
    listed = [found] if isinstance(found, str) else found
    if not isinstance(listed, list):
        return []
    return [each for each in listed if isinstance(each, str) and each in settings.role_of_group]
