"""The memory of alert channels in the run database.

Writes are not guarded by the leader's epoch: a message that a deposed leader has sent was sent, and
its successor must know. The last write wins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select

from orchestrator.database.engine import Database
from orchestrator.database.mapping import table_of, upsert
from orchestrator.database.server_models import AlertMemoryRow

_TABLE = table_of(AlertMemoryRow)


class SqlAlertMemory:
    """JSON objects by key. Raises DatabaseUnavailableError as the store does."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def read(self, key: str) -> Mapping[str, Any] | None:
        """The object under a key; None: there is none."""
        query = select(_TABLE.c.body).where(_TABLE.c.key == key)
        async with self._database.reading() as connection:
            body: Mapping[str, Any] | None = (await connection.execute(query)).scalar_one_or_none()
        return body

    async def write(self, key: str, body: Mapping[str, Any], *, run: str | None = None) -> None:
        """Store the object under a key; with a run, until the history of the run is removed."""
        row = {"key": key, "run": run, "body": dict(body)}
        async with self._database.writing() as connection:
            await upsert(connection, _TABLE, [row])
