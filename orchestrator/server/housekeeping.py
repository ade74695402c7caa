"""Housekeeping: a home stays small after months.

The leader of a home removes, once an hour, what the settings no longer keep: the history of old
runs in the database, their logs and their agents' files, and old parts of its own log. Live runs
and requests of people are exempt. `babysit db prune` does the same at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime as dt
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import structlog

from jobs.clock import Clock
from orchestrator.database import audit, retention
from orchestrator.database.engine import Database
from orchestrator.database.retention import RECENT, Removed
from orchestrator.errors import BabysitError
from orchestrator.settings import Settings

_log = structlog.get_logger(__name__)
PERIOD_SECONDS = 3600.0
LOG_BYTES = 10 * 2**20
"""Size at which the log of an embedded server is rotated."""
_LOG_PERIOD_SECONDS = 60.0
_OWN = ("logs", "workers")
"""Parts of a run's directory that babysit itself writes."""


@dataclasses.dataclass(frozen=True)
class Tidied:
    """The result of housekeeping; of a dry run, what it would be."""

    rows: Removed
    directories: int
    """Directories of runs that lost their logs and their agents' files."""
    file_bytes: int
    """Size of those files."""
    audit: int = 0
    """Entries of the audit log."""


async def tidy(
    settings: Settings, database: Database, now: dt.datetime, *, dry_run: bool = False
) -> Tidied:
    """Remove what is older than `retention_days`, and the oldest above `retention_bytes`.

    Raises:
        DatabaseUnavailableError: The database does not answer; what was removed stays removed.
    """
    audited = 0
    if settings.audit_days:
        old_audit = now - dt.timedelta(days=settings.audit_days)
        audited = await audit.prune(database, until=old_audit, now=now, dry_run=dry_run)
    if settings.retention_days == 0:
        return Tidied(Removed(), 0, 0, audited)
    until = now - dt.timedelta(days=settings.retention_days)
    rows = await retention.prune(
        database, until=until, now=now, max_bytes=settings.retention_bytes, dry_run=dry_run
    )
    old = await retention.ended_runs(database, until=until)
    recent = await retention.ended_runs(database, until=now - RECENT)
    directories = [settings.run_directory(run) for run in recent]
    done = await asyncio.to_thread(
        _tidy_files,
        rows,
        directories,
        {settings.run_directory(run) for run in old},
        settings.retention_bytes,
        dry_run=dry_run,
    )
    return dataclasses.replace(done, audit=audited)


def _tidy_files(
    rows: Removed,
    directories: Iterable[Path],
    old: set[Path],
    most: int,
    *,
    dry_run: bool,
) -> Tidied:
    """Remove the files of old runs, and of the oldest others while all take more than `most`."""
    sizes = {path: _bytes_of(path) for path in directories}
    total, removed, gone = sum(sizes.values()), 0, 0
    for path, size in sizes.items():  # the run that ended first comes first
        if size == 0 or (path not in old and total - gone <= most):
            continue
        if not dry_run:
            _empty(path)
        removed, gone = removed + 1, gone + size
    return Tidied(rows, removed, gone)


def _bytes_of(directory: Path) -> int:
    total = 0
    for part in _OWN:
        for parent, _, files in os.walk(directory / part):
            for name in files:
                with contextlib.suppress(OSError):
                    total += (Path(parent) / name).lstat().st_size
    return total


def _empty(directory: Path) -> None:
    for part in _OWN:
        shutil.rmtree(directory / part, ignore_errors=True)
    with contextlib.suppress(OSError):  # not empty: something else is in it
        directory.rmdir()


async def keep_tidy(settings: Settings, clock: Clock, leads: Callable[[], bool]) -> None:
    """Tidy up once an hour while this server leads, and rotate its log; for ever.

    An error is logged, and the next hour tries again.
    """
    database = Database(settings.database)
    due = clock.monotonic()
    try:
        while True:
            rotate(settings.server_log)
            if leads() and clock.monotonic() >= due:
                due = clock.monotonic() + PERIOD_SECONDS
                await _tidy_and_tell(settings, database, clock)
            await clock.sleep(_LOG_PERIOD_SECONDS)
    finally:
        await database.close()


async def _tidy_and_tell(settings: Settings, database: Database, clock: Clock) -> None:
    try:
        done = await tidy(settings, database, clock.now())
    except (BabysitError, OSError) as error:
        _log.warning("housekeeping failed; it is tried again in an hour", error=str(error))
        return
    if done.rows != Removed() or done.directories or done.audit:
        _log.info("housekeeping", **dataclasses.asdict(done))


def rotate(log: Path) -> None:
    """Move the log aside when it is large, if this process writes it; one older part is kept.

    The file is copied and emptied: the processes that write it have it open, at its end. Lines that
    are written between the two are lost.
    """
    with contextlib.suppress(OSError):
        status = log.stat()
        if status.st_size < LOG_BYTES or not os.path.samestat(status, os.fstat(2)):
            return
        older = log.with_name(log.name + ".1")
        shutil.copyfile(log, older)
        older.chmod(0o600)
        os.truncate(log, 0)
