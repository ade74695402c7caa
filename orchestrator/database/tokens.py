"""Credentials and the signing key.

The secret of a token is random (256 bits), so an unsalted hash of it is safe to store.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import hashlib
import hmac
import secrets
from collections.abc import Mapping
from typing import Any, Unpack

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection
from ulid import ULID

from orchestrator.database.credentials import ANY_RUN, Limits, Scope, Token
from orchestrator.database.mapping import table_of, upsert
from orchestrator.database.models import SecretRow, TokenRow
from orchestrator.errors import InvalidError, NotFoundError

ROLES = ("admin", "operator", "viewer")
_TOKENS = table_of(TokenRow)
_SECRETS = table_of(SecretRow)
_PREFIX = "babysit_"
"""Prefix by which secret scanners and people recognise a token."""
_FIELDS = (
    "id",
    "name",
    "role",
    "created_at",
    "last_used_at",
    "revoked_at",
    "revoked_by",
    "expires_at",
    "scope",
)
_USE_RESOLUTION = dt.timedelta(minutes=1)
"""Minimum time between two stored uses: authentication must not write on every request."""


def make_token(
    name: str, role: str, now: dt.datetime, **limits: Unpack[Limits]
) -> tuple[Token, str]:
    """Generate a token and its secret.

    Raises:
        InvalidError: The role is unknown.
    """
    if role not in ROLES:
        raise InvalidError(f"no role {role!r}; expected one of {', '.join(ROLES)}")
    drawn = str(ULID.from_datetime(now)), _PREFIX + secrets.token_urlsafe(32)
    key, secret = limits.get("chosen", drawn)
    token = Token(
        id=key,
        name=name,
        role=role,  # type: ignore[arg-type]
        created_at=now,
        expires_at=limits.get("expires_at"),
        scope=limits.get("scope", ANY_RUN),
    )
    return token, secret


def of_a_request(signing_key: str, request: str) -> tuple[str, str]:
    """The id and the secret of the token that a request makes, the same whenever it is sent again.

    Neither is known to who knows the database alone: the key of the request is not stored.
    """
    digest = hmac.digest(signing_key.encode(), f"token {request}".encode(), "sha256")
    secret = base64.urlsafe_b64encode(digest).decode().rstrip("=")
    chance = hashlib.sha256(f"id {request}".encode()).digest()[:10]
    return str(ULID.from_bytes(ULID.from_str(request).bytes[:6] + chance)), _PREFIX + secret


def hash_secret(secret: str) -> str:
    """The stored form of a secret: its SHA-256 in hex."""
    return hashlib.sha256(secret.encode()).hexdigest()


def make_signing_key() -> str:
    """Generate a key for worker tokens."""
    return secrets.token_urlsafe(48)


def no_such_token(id: str) -> NotFoundError:  # noqa: A002 (the field's name)
    """The error for an unknown token id."""
    return NotFoundError(f"no token {id}; `babysit token ls` lists all tokens")


def use_is_due(token: Token, now: dt.datetime | None) -> bool:
    """True if a use at `now` must be stored."""
    return (
        now is not None
        and token.is_valid(now)
        and (token.last_used_at is None or now - token.last_used_at >= _USE_RESOLUTION)
    )


async def insert(connection: AsyncConnection, token: Token, secret: str) -> None:
    """Store a token and the hash of its secret."""
    row = {field: getattr(token, field) for field in _FIELDS}
    row["scope"] = dataclasses.asdict(token.scope)
    await connection.execute(_TOKENS.insert().values(**row, hash=hash_secret(secret)))


def _token(row: Mapping[str, Any]) -> Token:
    scope = Scope(**{name: tuple(values) for name, values in row["scope"].items()})
    return Token(**{**row, "scope": scope})


async def find(connection: AsyncConnection, secret: str) -> Token | None:
    """The token of a secret, also if it is revoked or has expired; None: unknown."""
    query = select(*(_TOKENS.c[field] for field in _FIELDS)).where(
        _TOKENS.c.hash == hash_secret(secret)
    )
    row = (await connection.execute(query)).mappings().one_or_none()
    return None if row is None else _token(row)  # type: ignore[arg-type]


async def note_use(connection: AsyncConnection, token: Token, now: dt.datetime) -> None:
    """Store the time of use."""
    await connection.execute(
        update(_TOKENS).where(_TOKENS.c.id == token.id).values(last_used_at=now)
    )


async def all_tokens(connection: AsyncConnection) -> list[Token]:
    """All tokens, oldest first, revoked ones included."""
    query = select(*(_TOKENS.c[field] for field in _FIELDS)).order_by(
        _TOKENS.c.created_at, _TOKENS.c.id
    )
    return [_token(row) for row in (await connection.execute(query)).mappings()]  # type: ignore[arg-type]


async def revoke(
    connection: AsyncConnection,
    id: str,  # noqa: A002 (the port's name)
    now: dt.datetime,
    request: str | None,
) -> None:
    """Revoke a token; a second call keeps the first time and request.

    Raises:
        NotFoundError: There is no such token.
    """
    found = (await connection.execute(select(_TOKENS.c.id).where(_TOKENS.c.id == id))).first()
    if found is None:
        raise no_such_token(id)
    await connection.execute(
        update(_TOKENS)
        .where(_TOKENS.c.id == id, _TOKENS.c.revoked_at.is_(None))
        .values(revoked_at=now, revoked_by=request)
    )


async def signing_key(connection: AsyncConnection) -> str:
    """Read the key, or generate it at first use; of two concurrent ones the first stored counts."""
    row = {"name": "signing_key", "value": make_signing_key()}
    await upsert(connection, _SECRETS, [row], overwrite=False)
    query = select(_SECRETS.c.value).where(_SECRETS.c.name == "signing_key")
    return str((await connection.execute(query)).scalar_one())
