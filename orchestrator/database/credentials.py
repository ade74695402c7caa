"""Tokens as the run database keeps them: who may do what, for which runs, and until when."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Mapping
from typing import Any, Literal, TypedDict

Role = Literal["admin", "operator", "viewer"]
RANK = {"viewer": 0, "operator": 1, "admin": 2}
"""Roles; each may do what those with a lower number may."""
PERSON = "oidc "
"""Beginning of the ids of people whom an identity provider knows; issuer and subject follow."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """The runs that a token is good for: those of certain projects, and of certain queues."""

    projects: tuple[str, ...] = ()
    """Empty: all."""
    queues: tuple[str, ...] = ()
    """Empty: all."""

    @property
    def everything(self) -> bool:
        """True if the scope leaves nothing out."""
        return not (self.projects or self.queues)

    def covers(self, project: str, queue: str) -> bool:
        """True if a run of this project and queue is in the scope."""
        return (not self.projects or project in self.projects) and (
            not self.queues or queue in self.queues
        )


ANY_RUN = Scope()
"""Leaves nothing out."""


class Limits(TypedDict, total=False):
    """Limits of a token; absent: none."""

    expires_at: dt.datetime | None
    scope: Scope
    chosen: tuple[str, str]
    """Id and secret; absent: both are drawn at random."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A credential, without its secret."""

    id: str
    name: str
    role: Role
    created_at: dt.datetime
    last_used_at: dt.datetime | None = None
    revoked_at: dt.datetime | None = None
    revoked_by: str | None = None
    """Key of the request that revoked it; None: it had none, or nobody revoked it."""
    expires_at: dt.datetime | None = None
    """None: never."""
    scope: Scope = ANY_RUN
    via: Literal["token", "local", "session", "link", "oidc"] = "token"
    """How the caller came in. Not stored with a token."""
    subject: str = ""
    """Issuer and subject of a person whom an identity provider vouches for. Not stored either."""
    is_session: bool = False
    """True for a caller whom the cookie of a browser names. Not stored either."""

    def is_valid(self, now: dt.datetime) -> bool:
        """True if the token is neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A browser that has signed in, or is about to. Only a hash of its secret is stored."""

    hash: str
    kind: Literal["code", "link", "token", "oidc", "state"]
    """`code`: opens one session of the kind `link`; `state`: a sign-in at an identity provider that
    is under way; the others are sessions, by what they were opened with."""
    opener: str
    """Id of the token that it was opened with, and ends with; empty: none."""
    name: str
    role: Role
    """The most that it allows: a stored token may allow less."""
    expires_at: dt.datetime
    memo: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """JSON: further facts of its kind."""
