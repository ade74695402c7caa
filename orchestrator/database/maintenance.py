"""Copies of the whole database: backup and restore; and giving unused space back."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.engine import URL

from orchestrator.core.model.entities import Fleet
from orchestrator.database.driver_errors import describe, is_sqlite
from orchestrator.database.engine import Database, database_url, in_memory
from orchestrator.database.mapping import FLEET, table_of, upsert
from orchestrator.database.models import LeaderRow
from orchestrator.errors import (
    ConflictError,
    DatabaseUnavailableError,
    InvalidError,
    SchemaError,
)

_OURS = {"runs", "journal", "leader", "alembic_version"}
"""Tables that every database of babysit has."""
_COMPACT_SHARE = 0.25
"""Unused share of a SQLite file from which rewriting it is worth its time."""


async def backup(url: str, path: Path) -> None:
    """Copy the whole database to a new file while it is in use.

    SQLite: an online copy, itself a database. PostgreSQL: `pg_dump` in the custom format, for
    `pg_restore`.

    Raises:
        ConflictError: The file exists already, or `pg_dump` is not installed.
        InvalidError: The database is in memory, or the file cannot be written.
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
    except OSError as error:
        message = f"{path} cannot be written: {error.strerror}; name a file in another directory"
        raise InvalidError(message) from error
    try:
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
    await _run_postgres_client(
        url, "pg_dump", "--format=custom", f"--file={target}", failure="could not be dumped"
    )


async def _run_postgres_client(url: URL, name: str, *arguments: str, failure: str) -> None:
    program = shutil.which(name)
    if program is None:
        raise ConflictError(
            f"{name} is not installed; it comes with PostgreSQL's client programs, "
            "in the version of the server or a newer one"
        )
    secret = {"PGPASSWORD": str(url.password)} if url.password else {}  # never on a command line
    plain = url.set(drivername="postgresql", password=None).render_as_string(hide_password=False)
    process = await asyncio.create_subprocess_exec(
        program,
        f"--dbname={plain}",
        *arguments,
        env={**os.environ, **secret},
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await process.communicate()
    if process.returncode:
        reason = errors.decode(errors="replace").strip()
        raise DatabaseUnavailableError(f"{describe(url)} {failure}: {reason}")


async def restore(url: str, path: Path, *, now: dt.datetime) -> Path | None:
    """Replace the whole database by a backup. No server may use it meanwhile.

    SQLite: the database that was there is kept beside it. PostgreSQL: `pg_restore` replaces all
    tables in one transaction: after an error everything is as it was.

    Returns:
        Where the SQLite database that was there is now; None if there was none.

    Raises:
        ConflictError: A server leads on the database, or `pg_restore` is not installed.
        DatabaseUnavailableError: The database could not be written.
        InvalidError: The database is in memory, or the file is not a backup of such a database.
    """
    parsed = database_url(url)
    if in_memory(parsed):
        raise InvalidError("a database in memory cannot be restored")
    if not path.is_file():  # noqa: ASYNC240 (a single call, in a command)
        raise InvalidError(f"{path}: no such file; name one that `babysit db backup` has written")
    if is_sqlite(parsed):
        return await asyncio.to_thread(_restore_sqlite, parsed, path, now)
    await _refuse_while_led(url, now)
    await _run_postgres_client(
        parsed,
        "pg_restore",
        "--clean",
        "--if-exists",
        "--no-owner",
        "--single-transaction",
        str(path),
        failure="could not be restored; nothing was changed",
    )
    return None


async def note_restored(url: str, now: dt.datetime) -> None:
    """Write down that the database was replaced by a backup; its schema must be the newest.

    Raises:
        DatabaseUnavailableError: The database does not answer.
    """
    database = Database(url)
    fleet = FLEET.table
    try:
        async with database.writing() as connection:
            body = (await connection.execute(select(fleet.c.body))).scalar_one_or_none()
            before = Fleet() if body is None else FLEET.entity_of(body)
            row = FLEET.row(dataclasses.replace(before, restored_at=now))
            await upsert(connection, fleet, [row])
    finally:
        await database.close()


async def _refuse_while_led(url: str, now: dt.datetime) -> None:
    database = Database(url)
    leader = table_of(LeaderRow)
    query = select(leader.c.holder).where(leader.c.holder != "", leader.c.expires_at > now)
    try:
        async with database.reading() as connection:
            holder = (await connection.execute(query)).scalar_one_or_none()
    except SchemaError:
        return  # an empty database
    finally:
        await database.close()
    if holder is not None:
        raise ConflictError(f"the server {holder} leads: stop all servers of the database first")


def _restore_sqlite(url: URL, backup: Path, now: dt.datetime) -> Path | None:
    target = Path(str(url.database)).absolute()
    partial = target.with_name(target.name + ".partial")
    partial.unlink(missing_ok=True)
    try:
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        _copy_backup(backup, partial)
        kept = _keep_aside(target, now)
        partial.replace(target)
        _sync(target.parent)
    except OSError as error:
        raise DatabaseUnavailableError(f"{describe(url)} could not be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
    return kept


def _copy_backup(backup: Path, target: Path) -> None:
    """Copy a backup that is whole and of babysit.

    Raises:
        InvalidError: It is neither.
    """
    try:
        with (
            closing(sqlite3.connect(f"{backup.absolute().as_uri()}?mode=ro", uri=True)) as source,
            closing(sqlite3.connect(target)) as copy,
        ):
            source.backup(copy)
            damage = copy.execute("PRAGMA integrity_check(1)").fetchone()[0]
            tables = {name for (name,) in copy.execute("SELECT name FROM sqlite_master")}
    except sqlite3.Error as error:
        raise InvalidError(f"{backup} is not a backup of a SQLite database: {error}") from error
    if damage != "ok":
        raise InvalidError(f"{backup} is damaged ({damage}); nothing was changed")
    if not tables >= _OURS:
        raise InvalidError(
            f"{backup} is a SQLite database, but not one of babysit; nothing was changed"
        )


def _keep_aside(target: Path, now: dt.datetime) -> Path | None:
    """Give the database that is there a second name, and end the first one's write-ahead log.

    At each moment there is a whole database under the first name: a server that found none would
    begin an empty one, and refuse the agents of all runs. The log must not meet the restored file.
    """
    if not target.exists():
        return None
    kept = target.with_name(f"{target.name}.before-restore-{now:%Y%m%dT%H%M%SZ}")
    if not _merge_log(target):  # a damaged database goes as it is, with its log
        for suffix in ("-wal", "-shm"):
            part = target.with_name(target.name + suffix)
            if part.exists():
                part.replace(kept.with_name(kept.name + suffix))
    try:
        os.link(target, kept)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        partial = kept.with_name(kept.name + ".partial")
        shutil.copy2(target, partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(kept)
    return kept


def _merge_log(target: Path) -> bool:
    """Have SQLite move its write-ahead log into the database; False if that is damaged.

    Raises:
        OSError: The disk is full, or another program uses the database.
    """
    try:
        with closing(sqlite3.connect(target, isolation_level=None)) as connection:
            busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    except sqlite3.OperationalError as error:
        raise OSError(f"{error}; nothing was changed") from error
    except sqlite3.DatabaseError:
        return False
    if busy:
        raise OSError("another program uses it; end that, and restore again; nothing was changed")
    return True


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


async def compact(url: str) -> bool:
    """Give the disk back what a SQLite database does not use, where that is a quarter or more.

    Writers wait meanwhile: some seconds for each GB. PostgreSQL reuses such space by itself.

    Returns:
        True if the file was rewritten.

    Raises:
        DatabaseUnavailableError: The database is in use all the time, or the disk is full.
    """
    parsed = database_url(url)
    if not is_sqlite(parsed) or in_memory(parsed):
        return False
    return await asyncio.to_thread(_vacuum, parsed)


def _vacuum(url: URL) -> bool:
    try:
        with closing(sqlite3.connect(str(url.database), isolation_level=None)) as connection:
            pages = connection.execute("PRAGMA page_count").fetchone()[0]
            free = connection.execute("PRAGMA freelist_count").fetchone()[0]
            if free < pages * _COMPACT_SHARE or free == 0:
                return False
            connection.execute("VACUUM")
    except sqlite3.Error as error:
        raise DatabaseUnavailableError(f"{describe(url)} was not compacted: {error}") from error
    return True
