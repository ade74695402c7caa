"""Retention: how long the record of what is over stays in the database.

Live runs keep everything but the shards of checkpoints that are deleted. Of a run that ended long
ago, runs, attempts, checkpoints and incidents stay, and so does each request of a person (the audit
log): journal, samples, findings and the outbox go, and with the same age what the journal says of
nodes, queues and scheduling passes.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Select,
    Table,
    and_,
    bindparam,
    delete,
    exists,
    func,
    insert,
    not_,
    or_,
    select,
    text,
)

from orchestrator.core.model.states import TERMINAL_RUN_STATES, WorkerState
from orchestrator.database.engine import Database
from orchestrator.database.mapping import CHECKPOINTS, RUNS, WORKERS, table_of
from orchestrator.database.models import (
    FindingRow,
    JournalRow,
    OutboxRow,
    RetentionRow,
    SampleRow,
    ShardRow,
)
from orchestrator.database.server_models import AlertMemoryRow, LogTailRow
from orchestrator.errors import InvalidError

ROWS = 2000
"""Rows that one transaction deletes at most: the control plane never waits long for it."""
RECENT = dt.timedelta(days=1)
"""Runs that ended, and checkpoints that were deleted, within this time keep their record, whatever
the size of the database: somebody may still look into them."""
_AUDIT = "operator:%"
"""Actors whose entries in the journal are never deleted."""


@dataclasses.dataclass(frozen=True)
class Removed:
    """Number of things that retention removed, or would remove."""

    runs: int = 0
    """Ended runs that lost their history."""
    journal: int = 0
    """Entries of the journal."""
    samples: int = 0
    """Chunks of up to 512 samples."""
    shards: int = 0
    """Records of shards of deleted checkpoints."""

    def __add__(self, other: Removed) -> Removed:
        """Count both."""
        return Removed(
            *(
                getattr(self, field.name) + getattr(other, field.name)
                for field in dataclasses.fields(self)
            )
        )


@dataclasses.dataclass(frozen=True)
class _Part:
    """Rows of one table that belong to what is removed together."""

    table: Table
    where: ColumnElement[bool]
    counted: str
    """The field of :class:`Removed`; empty: not counted."""


async def ended_runs(database: Database, *, until: dt.datetime) -> list[str]:
    """Ids of the runs that ended before `until` and have no worker left, the oldest first."""
    async with database.reading() as connection:
        return list((await connection.execute(_ended(until))).scalars())


def _ended(until: dt.datetime) -> Select[Any]:
    runs, workers = RUNS.table.c, WORKERS.table.c
    states = [state.value for state in TERMINAL_RUN_STATES]
    # A worker that cannot be confirmed dead may still write, and is found by its files.
    left = exists().where(workers.run == runs.id, workers.state != WorkerState.ENDED.value)
    query = select(runs.id).where(runs.state.in_(states), runs.ended_at < until, not_(left))
    return query.order_by(runs.ended_at, runs.id)


async def prune(
    database: Database,
    *,
    until: dt.datetime,
    now: dt.datetime,
    max_bytes: int | None = None,
    dry_run: bool = False,
) -> Removed:
    """Remove the history of runs that ended before `until`, and shards of deleted checkpoints.

    It works in small transactions, in no order with those of a leader; calling it again after an
    interruption is safe.

    Args:
        database: An open database.
        until: Runs that ended later keep everything.
        now: The time of the request, which the table `retention` records.
        max_bytes: Of a larger SQLite database, runs that ended after `until` lose their history as
            well, the oldest first, but none that ended in the last day. PostgreSQL takes no
            notice: it does not tell how much of its files is in use.
        dry_run: Count, and remove nothing.

    Raises:
        DatabaseUnavailableError: The database does not answer; what was removed stays removed.
        InvalidError: `until` lies in the future.
    """
    if until > now:
        raise InvalidError(f"{until.isoformat()} is in the future: that would remove everything")
    recent = now - RECENT
    removed = await _remove(database, [_shards_of_deleted(recent)], dry_run=dry_run)
    if not dry_run:
        await _open_journal(database, until, now)
    removed += await _remove(database, [_of_no_run(until)], dry_run=dry_run)
    for run in await _with_history(database, until):
        removed += await _forget(database, run, until, dry_run=dry_run)
    if max_bytes is None or not database.sqlite or dry_run:
        return removed
    if await used_bytes(database) > max_bytes:
        await _open_journal(database, recent, now)
        for run in await _with_history(database, recent):
            removed += await _forget(database, run, recent, dry_run=False)
            if await used_bytes(database) <= max_bytes:
                break
    return removed


async def used_bytes(database: Database) -> int:
    """Bytes of the database that hold data; PostgreSQL counts unused parts of its files, too."""
    async with database.reading() as connection:
        if not database.sqlite:
            return int(
                (
                    await connection.execute(text("SELECT pg_database_size(current_database())"))
                ).scalar_one()
            )
        pages, free, size = [
            int((await connection.execute(text(f"PRAGMA {name}"))).scalar_one())
            for name in ("page_count", "freelist_count", "page_size")
        ]
    return (pages - free) * size


async def _open_journal(database: Database, until: dt.datetime, now: dt.datetime) -> None:
    """Note that entries before `until` may go: a guard of the journal asks for it."""
    table = table_of(RetentionRow)
    async with database.writing() as connection:
        newest = (await connection.execute(select(func.max(table.c.until)))).scalar_one()
        if newest is None or newest < until:
            await connection.execute(insert(table).values(at=now, until=until))


async def _with_history(database: Database, until: dt.datetime) -> list[str]:
    """Ids of the runs that ended before `until` and have any history left, the oldest first."""
    runs = RUNS.table.c
    left = [exists().where(part.where) for part in _history(runs.id, until)]
    query = _ended(until).where(or_(*left))
    async with database.reading() as connection:
        return list((await connection.execute(query)).scalars())


async def _forget(database: Database, run: str, until: dt.datetime, *, dry_run: bool) -> Removed:
    """Remove the history of one run."""
    return await _remove(database, _history(run, until), dry_run=dry_run) + Removed(runs=1)


def _history(run: str | ColumnElement[str], until: dt.datetime) -> list[_Part]:
    journal, outbox = table_of(JournalRow), table_of(OutboxRow)
    samples, findings = table_of(SampleRow), table_of(FindingRow)
    told, tails = table_of(AlertMemoryRow), table_of(LogTailRow)
    old = and_(journal.c.run == run, journal.c.at < until, not_(journal.c.actor.like(_AUDIT)))
    return [
        _Part(journal, old, "journal"),
        _Part(outbox, and_(outbox.c.run == run, outbox.c.done), ""),
        _Part(samples, samples.c.run == run, "samples"),
        _Part(findings, findings.c.run == run, ""),
        _Part(told, told.c.run == run, ""),
        _Part(tails, tails.c.run == run, ""),
    ]


def _of_no_run(until: dt.datetime) -> _Part:
    """Entries of the journal about nodes, queues and scheduling passes."""
    journal = table_of(JournalRow)
    old = and_(journal.c.run.is_(None), journal.c.at < until, not_(journal.c.actor.like(_AUDIT)))
    return _Part(journal, old, "journal")


def _shards_of_deleted(before: dt.datetime) -> _Part:
    shards, checkpoints = table_of(ShardRow), CHECKPOINTS.table.c
    gone: Select[Any] = select(checkpoints.id).where(checkpoints.deleted_at < before)
    return _Part(shards, shards.c.checkpoint.in_(gone), "shards")


async def _count(database: Database, part: _Part) -> int:
    query = select(func.count()).select_from(part.table).where(part.where)
    async with database.reading() as connection:
        return int((await connection.execute(query)).scalar_one())


async def _remove(database: Database, parts: Sequence[_Part], *, dry_run: bool) -> Removed:
    counts: dict[str, int] = {}
    for part in parts:
        gone = await (_count(database, part) if dry_run else _delete(database, part))
        if part.counted:
            counts[part.counted] = gone
    return Removed(**counts)


async def _delete(database: Database, part: _Part) -> int:
    """Delete in transactions of :data:`ROWS`; others may write in between."""
    keys = list(part.table.primary_key)
    chosen = select(*keys).where(part.where).limit(ROWS)
    one = delete(part.table).where(*(key == bindparam(f"key_{key.name}") for key in keys))
    deleted = 0
    while True:
        async with database.writing() as connection:
            rows = [
                {f"key_{name}": value for name, value in row.items()}
                for row in (await connection.execute(chosen)).mappings()
            ]
            if rows:
                await connection.execute(one, rows)
        deleted += len(rows)
        if len(rows) < ROWS:
            return deleted
