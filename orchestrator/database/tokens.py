"""Credentials and the signing key.

A token's secret is random (256 bits), so a plain hash of it is enough.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import secrets

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection
from ulid import ULID

from orchestrator.database.mapping import table_of, upsert
from orchestrator.database.models import SecretRow, TokenRow
from orchestrator.database.port import Token
from orchestrator.errors import InvalidError, NotFoundError

ROLES = ("admin", "operator", "viewer")
_TOKENS = table_of(TokenRow)
_SECRETS = table_of(SecretRow)
_PREFIX = "babysit_"
"""So that secret scanners, and people, know one when they see it."""
_FIELDS = ("id", "name", "role", "created_at", "last_used_at", "revoked_at")
_USE_RESOLUTION = dt.timedelta(minutes=1)
"""A use is noted at most this often: authentication should not write on every request."""


def make_token(name: str, role: str, now: dt.datetime) -> tuple[Token, str]:
    """A new token and its secret.

    Raises:
        InvalidError: No such role.
    """
    if role not in ROLES:
        raise InvalidError(f"no role {role!r}; expected one of {', '.join(ROLES)}")
    token = Token(id=str(ULID.from_datetime(now)), name=name, role=role, created_at=now)  # type: ignore[arg-type]
    return token, _PREFIX + secrets.token_urlsafe(32)


def hash_secret(secret: str) -> str:
    """What is stored of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def make_signing_key() -> str:
    """A new key to sign worker tokens with."""
    return secrets.token_urlsafe(48)


def no_such_token(id: str) -> NotFoundError:  # noqa: A002 (the field's name)
    """The error."""
    return NotFoundError(f"no token {id}; `babysit token ls` shows them")


def use_is_due(token: Token, now: dt.datetime | None) -> bool:
    """Whether a use at `now` is worth noting."""
    return now is not None and (
        token.last_used_at is None or now - token.last_used_at >= _USE_RESOLUTION
    )


async def create(
    connection: AsyncConnection, name: str, role: str, now: dt.datetime
) -> tuple[Token, str]:
    """Make and store."""
    token, secret = make_token(name, role, now)
    row = {field: getattr(token, field) for field in _FIELDS}
    await connection.execute(_TOKENS.insert().values(**row, hash=hash_secret(secret)))
    return token, secret


async def find(connection: AsyncConnection, secret: str) -> Token | None:
    """By secret, unless revoked."""
    query = select(*(_TOKENS.c[field] for field in _FIELDS)).where(
        _TOKENS.c.hash == hash_secret(secret), _TOKENS.c.revoked_at.is_(None)
    )
    row = (await connection.execute(query)).mappings().one_or_none()
    return None if row is None else Token(**row)


async def note_use(connection: AsyncConnection, token: Token, now: dt.datetime) -> None:
    """Record when it was used."""
    await connection.execute(
        update(_TOKENS).where(_TOKENS.c.id == token.id).values(last_used_at=now)
    )


async def all_tokens(connection: AsyncConnection) -> list[Token]:
    """Oldest first, the revoked ones too."""
    query = select(*(_TOKENS.c[field] for field in _FIELDS)).order_by(
        _TOKENS.c.created_at, _TOKENS.c.id
    )
    return [Token(**row) for row in (await connection.execute(query)).mappings()]


async def revoke(connection: AsyncConnection, id: str, now: dt.datetime) -> None:  # noqa: A002
    """Revoke; once revoked, the time stays."""
    found = (await connection.execute(select(_TOKENS.c.id).where(_TOKENS.c.id == id))).first()
    if found is None:
        raise no_such_token(id)
    await connection.execute(
        update(_TOKENS)
        .where(_TOKENS.c.id == id, _TOKENS.c.revoked_at.is_(None))
        .values(revoked_at=now)
    )


async def signing_key(connection: AsyncConnection) -> str:
    """Read, or make at first use; of two that make one at the same time, the first counts."""
    row = {"name": "signing_key", "value": make_signing_key()}
    await upsert(connection, _SECRETS, [row], overwrite=False)
    query = select(_SECRETS.c.value).where(_SECRETS.c.name == "signing_key")
    return str((await connection.execute(query)).scalar_one())
