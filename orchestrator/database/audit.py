"""The audit log: each call that may change something, by whom, and what came of it.

Entries are only ever added; a guard of the database refuses all else. They do not belong to a run's
history: retention of runs leaves them, and :func:`prune` removes those of an age that the settings
name. Writes are not guarded by the leader's epoch: a server that does not lead has refused a call.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
from collections.abc import Mapping
from typing import Any, Literal, Protocol

from sqlalchemy import ColumnElement, delete, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.database.engine import Database
from orchestrator.database.mapping import table_of
from orchestrator.database.server_models import AuditRetentionRow, AuditRow

Outcome = Literal["done", "refused", "failed"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One call."""

    id: str
    at: dt.datetime
    actor: str
    """Name of the caller; empty: nobody that the server knows."""
    role: str
    via: str
    """How the caller came in: `token`, `session`, `link`, `oidc`, `local`, `slack`, `shell`."""
    subject: str = ""
    """The identity behind the name: of an identity provider, or Slack's id of a person."""
    action: str
    """The operation, such as `runs_cancel`."""
    target: str = ""
    """The thing acted on, as the call names it; empty: everything."""
    run: str | None = None
    """Id of the run that the call is about."""
    reason: str = ""
    outcome: Outcome
    detail: str = ""
    """Why the call was refused or failed."""
    request: str = ""
    """The key of the request; the same if it was sent again."""
    event: str = ""
    """Id of the event in the journal."""
    before: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The fields that changed, as they were, by thing; empty: nothing changed, or it is new."""
    after: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    position: int = 0
    """Order of writing, from 1; set by the database, ignored on input."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AuditFilter:
    """Which entries; None: any."""

    run: str | None = None
    actor: str | None = None
    action: str | None = None
    """An operation, or the first part of its name: `runs`, `runs_cancel`."""
    since: dt.datetime | None = None
    until: dt.datetime | None = None
    before: int | None = None
    """Only positions below this."""
    limit: int = 100


class AuditLog(Protocol):
    """The part of the run database that remembers who did what."""

    async def add_audit(self, entry: AuditEntry) -> None:
        """Add an entry."""

    async def audit(self, wanted: AuditFilter) -> list[AuditEntry]:
        """The newest entries of a filter, oldest first."""


_TABLE, _RETENTION = table_of(AuditRow), table_of(AuditRetentionRow)
_COLUMNS = [_TABLE.c[field.name] for field in dataclasses.fields(AuditEntry)]


async def add(connection: AsyncConnection, entry: AuditEntry) -> None:
    """Add an entry within a transaction."""
    row = dataclasses.asdict(entry)
    del row["position"]
    await connection.execute(insert(_TABLE).values(row))


class SqlAuditLog:
    """Implements :class:`AuditLog` over a database."""

    _database: Database

    async def add_audit(self, entry: AuditEntry) -> None:
        """Add an entry."""
        async with self._database.writing() as connection:
            await add(connection, entry)

    async def audit(self, wanted: AuditFilter) -> list[AuditEntry]:
        """The newest entries of a filter, oldest first."""
        table, query = _TABLE.c, select(*_COLUMNS)
        chosen: list[ColumnElement[bool]] = []
        if wanted.run is not None:
            chosen.append(table.run == wanted.run)
        if wanted.actor is not None:
            chosen.append(table.actor == wanted.actor)
        if wanted.action is not None:
            chosen.append(table.action.startswith(wanted.action, autoescape=True))
        if wanted.since is not None:
            chosen.append(table.at >= wanted.since)
        if wanted.until is not None:
            chosen.append(table.at < wanted.until)
        if wanted.before is not None:
            chosen.append(table.position < wanted.before)
        query = query.where(*chosen).order_by(table.position.desc()).limit(wanted.limit)
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).mappings().all()
        return [AuditEntry(**row) for row in reversed(rows)]


class MemoryAuditLog:
    """Implements :class:`AuditLog` in memory."""

    @functools.cached_property
    def _audit(self) -> list[AuditEntry]:
        return []

    async def add_audit(self, entry: AuditEntry) -> None:
        """Add an entry."""
        self._audit.append(dataclasses.replace(entry, position=len(self._audit) + 1))

    async def audit(self, wanted: AuditFilter) -> list[AuditEntry]:
        """The newest entries of a filter, oldest first."""
        found = [
            each
            for each in self._audit
            if wanted.run in {None, each.run}
            and wanted.actor in {None, each.actor}
            and (wanted.action is None or each.action.startswith(wanted.action))
            and (wanted.since is None or each.at >= wanted.since)
            and (wanted.until is None or each.at < wanted.until)
            and (wanted.before is None or each.position < wanted.before)
        ]
        return found[-wanted.limit :]


async def prune(
    database: Database, *, until: dt.datetime, now: dt.datetime, dry_run: bool = False
) -> int:
    """Remove entries from before a time; returns their number.

    Args:
        database: An open database.
        until: Entries of this time and later stay.
        now: The time of the request, which is recorded.
        dry_run: Count, and remove nothing.

    Raises:
        DatabaseUnavailableError: The database does not answer.
    """
    old = _TABLE.c.at < until
    async with database.reading() as connection:
        count = select(func.count()).select_from(_TABLE).where(old)
        found = int((await connection.execute(count)).scalar_one())
    if found and not dry_run:
        async with database.writing() as connection:
            await connection.execute(insert(_RETENTION).values(at=now, until=until))
            await connection.execute(delete(_TABLE).where(old))
    return found
