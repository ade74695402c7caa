"""Bundles in the run database, for servers that have nothing else in common.

The problem: the home of a server in a Pod is lost with the Pod. A run whose code was there alone
could not start again. The run database is what such servers share, and what is backed up.

The design: a row per part of a bundle, so that no statement is large, and each row knows how many
there are. A bundle is there once it has all its parts. Readers check its sha256, as they do with
every bundle.

Limits: writes are not guarded by the leader's epoch: a bundle is the same from every writer.
"""

from __future__ import annotations

import datetime as dt
import functools

from sqlalchemy import delete, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import Insert as PostgresInsert
from sqlalchemy.dialects.sqlite import Insert as SqliteInsert

from orchestrator.database.engine import Database
from orchestrator.database.mapping import table_of
from orchestrator.database.server_models import BundlePartRow

_TABLE = table_of(BundlePartRow)


class SqlBundles:
    """Parts of bundles. Raises DatabaseUnavailableError as the store does."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def has(self, bundle: str) -> bool:
        """True if every part of a bundle is there."""
        columns = func.count(), func.min(_TABLE.c.parts)
        query = select(*columns).where(_TABLE.c.bundle == bundle)
        async with self._database.reading() as connection:
            found, parts = (await connection.execute(query)).one()
        return bool(found and found == parts)

    async def write(
        self, bundle: str, number: int, parts: int, data: bytes, now: dt.datetime
    ) -> None:
        """Store one part of a bundle, also over a damaged one; parts are numbered from 0."""
        row = {"bundle": bundle, "number": number, "parts": parts, "stored_at": now, "data": data}
        async with self._database.writing() as connection:
            await connection.execute(_upsert(connection.dialect.name), row)

    async def read(self, bundle: str, number: int) -> tuple[int, bytes] | None:
        """How many parts a bundle has, and one of them; None: the part is not there."""
        query = select(_TABLE.c.parts, _TABLE.c.data)
        query = query.where(_TABLE.c.bundle == bundle, _TABLE.c.number == number)
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).one_or_none()
        return None if row is None else (row.parts, row.data)

    async def all(self) -> list[tuple[str, int, dt.datetime]]:
        """Every bundle, also one with missing parts: its id, its bytes, when it was stored."""
        columns = func.sum(func.length(_TABLE.c.data)), func.max(_TABLE.c.stored_at)
        query = select(_TABLE.c.bundle, *columns).group_by(_TABLE.c.bundle)
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        return [(bundle, int(size), stored_at) for bundle, size, stored_at in rows]

    async def remove(self, bundle: str) -> None:
        """Delete a bundle, if it is there."""
        async with self._database.writing() as connection:
            await connection.execute(delete(_TABLE).where(_TABLE.c.bundle == bundle))


@functools.lru_cache
def _upsert(dialect: str) -> SqliteInsert | PostgresInsert:
    insert = sqlite.insert if dialect == "sqlite" else postgresql.insert
    statement = insert(_TABLE).inline()
    return statement.on_conflict_do_update(
        index_elements=list(_TABLE.primary_key),
        set_={name: statement.excluded[name] for name in ("parts", "stored_at", "data")},
    )
