"""Reasons for which single sign-on fails."""

from __future__ import annotations

from orchestrator.errors import BabysitError, PermissionDeniedError, TemporaryError


class ProviderError(BabysitError):
    """The identity provider is not what the settings say, or answered what it must not."""


class ProviderAwayError(TemporaryError):
    """The identity provider does not answer; tokens of babysit work without it."""


class WrongTokenError(BabysitError):
    """A token is not what it claims to be; the message is safe to show."""


class UnknownKeyError(WrongTokenError):
    """No published key has signed the token; the provider may have published another since."""


class RefusedSignInError(PermissionDeniedError):
    """A sign-in at the provider failed; the message says why and is safe to show."""
