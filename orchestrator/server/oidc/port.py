"""Single sign-on as the rest of the server uses it; what does it needs an optional package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from jobs.clock import Clock
from orchestrator.database.credentials import Session, Token
from orchestrator.database.sessions import Sessions
from orchestrator.errors import InvalidError
from orchestrator.server.sign_in import Opened
from orchestrator.settings import Settings


class SingleSignOn(Protocol):
    """Sign-in at an identity provider; see :mod:`orchestrator.server.oidc.single_sign_on`."""

    @property
    def has_page(self) -> bool:
        """True if browsers can sign in."""

    async def begin(self, cookie: str) -> str:
        """The provider's address at which a browser signs in."""

    async def finish(self, answer: Mapping[str, str], cookie: str) -> Opened:
        """The session of a person whom the provider has sent back."""

    async def caller(self, session: Session, secret: str) -> Token | None:
        """The person behind a session; None: signed out."""

    async def by_bearer(self, token: str) -> Token:
        """The person behind a signed token."""


def make_single_sign_on(settings: Settings, clock: Clock, store: Sessions) -> SingleSignOn | None:
    """The sign-in at the provider of the settings; None: they name none.

    Raises:
        InvalidError: The package that it needs is not installed.
    """
    if not settings.oidc_issuer:
        return None
    try:
        from orchestrator.server.oidc import single_sign_on  # noqa: PLC0415 (an optional extra)
    except ImportError as error:
        raise InvalidError(
            "BABYSIT_OIDC_ISSUER needs a package: pip install 'babysit[oidc]'"
        ) from error
    return single_sign_on.SingleSignOn(settings, clock, store)
