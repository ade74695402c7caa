"""Backup and retention. Both run only on request of a person or a timer."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from sqlalchemy import Select, delete, insert, select
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.core.model.states import TERMINAL_RUN_STATES
from orchestrator.database.engine import Database, database_url, describe, in_memory, is_sqlite
from orchestrator.database.mapping import RUNS, table_of
from orchestrator.database.models import JournalRow, OutboxRow, RetentionRow, SampleRow
from orchestrator.errors import ConflictError, DatabaseUnavailableError, InvalidError


@dataclasses.dataclass(frozen=True)
class Removed:
    """The result of retention."""

    runs: int
    """Number of ended runs that were processed."""
    journal: int
    """Number of removed rows."""
    samples: int
    """Number of removed chunks of up to 512 samples."""


async def backup(url: str, path: Path) -> None:
    """Copy the whole database to a new file while it is in use.

    SQLite: an online copy, itself a database. PostgreSQL: `pg_dump` in the custom format, for
    `pg_restore`.

    Raises:
        ConflictError: The file exists already, or `pg_dump` is not installed.
        InvalidError: The database is in memory.
        DatabaseUnavailableError: The database could not be read.
    """
    parsed = database_url(url)
    if in_memory(parsed):
        raise InvalidError("a database in memory cannot be backed up")
    if path.exists():  # noqa: ASYNC240 (a single call, in a command)
        raise ConflictError(f"{path} is there already; name a new file, or remove it first")
    partial = path.with_name(path.name + ".partial")
    try:
        # Specs, with their `env`, and the key that signs worker tokens are in it.
        partial.unlink(missing_ok=True)
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        if is_sqlite(parsed):
            await asyncio.to_thread(_copy_sqlite, parsed, partial)
        else:
            await _dump_postgres(parsed, partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _copy_sqlite(url: URL, target: Path) -> None:
    source = Path(str(url.database)).absolute()
    try:
        with (
            closing(sqlite3.connect(f"{source.as_uri()}?mode=ro", uri=True)) as original,
            closing(sqlite3.connect(target)) as copy,
        ):
            original.backup(copy)
    except sqlite3.Error as error:
        raise DatabaseUnavailableError(f"{describe(url)} could not be copied: {error}") from error


async def _dump_postgres(url: URL, target: Path) -> None:
    program = shutil.which("pg_dump")
    if program is None:
        raise ConflictError(
            "pg_dump is not installed; it comes with PostgreSQL's client programs, "
            "in the version of the server or a newer one"
        )
    secret = {"PGPASSWORD": str(url.password)} if url.password else {}  # never on a command line
    plain = url.set(drivername="postgresql", password=None).render_as_string(hide_password=False)
    process = await asyncio.create_subprocess_exec(
        program,
        "--format=custom",
        f"--file={target}",
        f"--dbname={plain}",
        env={**os.environ, **secret},
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await process.communicate()
    if process.returncode:
        reason = errors.decode(errors="replace").strip()
        raise DatabaseUnavailableError(f"{describe(url)} could not be dumped: {reason}")


async def retention(url: str, *, until: dt.datetime, now: dt.datetime) -> Removed:
    """Remove samples, journal and outbox of runs that ended before `until`.

    Runs, attempts, checkpoints and incidents stay. Each run is one transaction, so that the control
    plane never waits long. Calling it again after an interruption is safe.

    Raises:
        DatabaseUnavailableError: The database does not answer; earlier runs stay processed.
        InvalidError: `until` lies in the future.
    """
    if until > now:
        raise InvalidError(f"{until.isoformat()} is in the future: that would remove everything")
    database = Database(url)
    try:
        async with database.writing() as connection:
            await connection.execute(insert(table_of(RetentionRow)).values(at=now, until=until))
        async with database.reading() as connection:
            runs = list((await connection.execute(_ended_before(until))).scalars())
        journal = samples = 0
        for run in runs:
            async with database.writing() as connection:
                counts = await _remove(connection, run, until)
            journal, samples = journal + counts[0], samples + counts[1]
        return Removed(runs=len(runs), journal=journal, samples=samples)
    finally:
        await database.close()


def _ended_before(until: dt.datetime) -> Select[Any]:
    runs = RUNS.table.c
    states = [state.value for state in TERMINAL_RUN_STATES]
    return select(runs.id).where(runs.state.in_(states), runs.ended_at < until).order_by(runs.id)


async def _remove(connection: AsyncConnection, run: str, until: dt.datetime) -> tuple[int, int]:
    journal, outbox, samples = table_of(JournalRow), table_of(OutboxRow), table_of(SampleRow)
    entries = await connection.execute(
        delete(journal).where(journal.c.run == run, journal.c.at < until)
    )
    await connection.execute(delete(outbox).where(outbox.c.run == run, outbox.c.done))
    chunks = await connection.execute(delete(samples).where(samples.c.run == run))
    return entries.rowcount, chunks.rowcount
