"""`babysit db`: the schema of the run database, backups, and retention."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from jobs.spec_types import parse_seconds
from orchestrator.cli.db_audit import audited
from orchestrator.cli.errors import CliError, ExitCode, UnreachableError
from orchestrator.cli.output import (
    Format,
    FormatOption,
    emit,
    put,
    say,
)
from orchestrator.cli.session import session
from orchestrator.core.text import counted
from orchestrator.database import maintenance, schema
from orchestrator.database.engine import Database
from orchestrator.errors import BabysitError, ConflictError, InvalidError
from orchestrator.private_home import UnsafeHomeError, make_private
from orchestrator.server.housekeeping import Tidied, tidy
from orchestrator.server.process import AlreadyRunningError, only_one
from orchestrator.settings import Settings

database = typer.Typer(no_args_is_help=True, help="The run database: schema, backups, retention.")


T = TypeVar("T")


def _now(work: Coroutine[Any, Any, T]) -> T:
    """Run database work to its end; its errors become exit codes."""
    try:
        return asyncio.run(work)
    except InvalidError as error:
        raise CliError(str(error), ExitCode.USAGE) from error
    except ConflictError as error:
        raise CliError(str(error), ExitCode.REFUSED) from error
    except BabysitError as error:
        raise UnreachableError(str(error)) from error


@database.command()
def upgrade(ctx: typer.Context, form: FormatOption = Format.TABLE) -> None:
    """Create the schema, or migrate it to this version.

    For example:

        babysit db upgrade
        BABYSIT_DATABASE_URL=postgresql://db/babysit babysit db upgrade
    """
    here = session(ctx)
    try:
        make_private(here.settings.home)
    except UnsafeHomeError as error:
        raise CliError(str(error), ExitCode.REFUSED) from error
    with audited(here, "db_upgrade"):
        _now(schema.upgrade(here.settings.database))
    _conclude_schema([], form, "The schema is up to date.")


@database.command()
def check(ctx: typer.Context, form: FormatOption = Format.TABLE) -> None:
    """Compare the schema with the one this version needs; exit code 4 if they differ.

    For example:

        babysit db check
    """
    settings = session(ctx).settings
    file = settings.home / "babysit.db"
    if settings.database_url or file.exists():
        differences = _now(schema.check(settings.database))
    else:
        differences = [f"there is no database yet: {file}"]
    _conclude_schema(differences, form, "The schema is the one this version needs.")


def _conclude_schema(differences: list[str], form: Format, said: str) -> None:
    if form in {Format.JSON, Format.YAML}:
        emit({"up_to_date": not differences, "differences": differences}, [], form)
    else:
        for line in differences:
            put(line)
    if differences:
        raise CliError(
            "The schema is not the one this version needs: run `babysit db upgrade`.",
            ExitCode.REFUSED,
        )
    if form in {Format.TABLE, Format.WIDE}:
        say(said)


@database.command()
def backup(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file that does not exist yet.")],
    form: FormatOption = Format.TABLE,
) -> None:
    """Copy the whole database to a new file. The database may be in use.

    For example:

        babysit db backup babysit-$(date +%F).db
    """
    here = session(ctx)
    with audited(here, "db_backup", str(file)):
        _now(maintenance.backup(here.settings.database, file))
    if form in {Format.TABLE, Format.WIDE}:
        put(str(file))
    else:
        emit({"file": str(file)}, [], form, name="file")


@database.command()
def restore(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `db backup` has written.")],
    form: FormatOption = Format.TABLE,
) -> None:
    """Replace the database by a backup. Servers must be stopped first; runs train on meanwhile.

    What happened after the backup is no longer known: agents that come back are compared with the
    restored record. A SQLite database that was there is kept beside the restored one.

    For example:

        babysit server stop
        babysit db restore babysit-2026-11-28.db
        babysit ls
    """
    here = session(ctx)
    settings = here.settings
    try:
        make_private(settings.home)
        with audited(here, "db_restore", str(file)), only_one(settings.home / "server.lock"):
            kept = _now(maintenance.restore(settings.database, file, now=here.clock.now()))
            _now(schema.upgrade(settings.database))
            _now(maintenance.note_restored(settings.database, here.clock.now()))
    except (UnsafeHomeError, AlreadyRunningError) as error:
        raise CliError(str(error), ExitCode.REFUSED) from error
    if form in {Format.TABLE, Format.WIDE}:
        before = f" What was there is in {kept}." if kept else ""
        say(f"The database is the one of {file}.{before}")
    else:
        emit({"restored": str(file), "kept": kept and str(kept)}, [], form, name="restored")


@database.command()
def prune(
    ctx: typer.Context,
    older_than: Annotated[
        str | None,
        typer.Option(
            metavar="AGE", help="Age of the end of a run: 30d, 12h. Default: the setting's 30 days."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be removed, and remove nothing.")
    ] = False,
    compact: Annotated[
        bool,
        typer.Option("--compact", help="Rewrite a SQLite file that is a quarter unused or more."),
    ] = False,
    form: FormatOption = Format.TABLE,
) -> None:
    """Remove the history of runs that ended long ago: journal, samples, logs.

    The leading server does this by itself each hour, by BABYSIT_RETENTION_DAYS and
    BABYSIT_RETENTION_BYTES. Runs, checkpoints, incidents and what people asked for stay, and so
    does everything of live runs.

    For example:

        babysit db prune --dry-run
        babysit db prune --older-than 7d --compact
    """
    here = session(ctx)
    settings = here.settings
    if older_than is not None:
        days = _days(older_than)
        settings = settings.model_copy(update={"retention_days": days})
    elif settings.retention_days == 0:
        raise CliError(
            "BABYSIT_RETENTION_DAYS is 0, which keeps everything; give --older-than AGE",
            ExitCode.USAGE,
        )
    if not settings.database_url and not (settings.home / "babysit.db").exists():
        raise CliError(f"there is no database in {settings.home}", ExitCode.REFUSED)
    if dry_run:
        done = _now(_tidy_once(settings, here.clock.now(), dry_run=True))
    else:
        with audited(here, "db_prune", older_than or "") as noted:
            done = _now(_tidy_once(settings, here.clock.now(), dry_run=False))
            noted.after = _figures(done)
    compacted = compact and not dry_run and _now(maintenance.compact(settings.database))
    if form in {Format.TABLE, Format.WIDE}:
        say(_told(done, dry_run=dry_run, compacted=compacted))
    else:
        emit(
            {
                **_figures(done),
                "dry_run": dry_run,
                "compacted": compacted,
            },
            [],
            form,
            name="runs",
        )


def _figures(done: Tidied) -> dict[str, int]:
    return {
        **dataclasses.asdict(done.rows),
        "directories": done.directories,
        "file_bytes": done.file_bytes,
        "audit": done.audit,
    }


def _days(age: str) -> float:
    try:
        return float(str(parse_seconds(age))) / 86400
    except ValueError as error:
        raise typer.BadParameter(f"{error}, got {age!r}", param_hint="--older-than") from error


async def _tidy_once(settings: Settings, now: dt.datetime, *, dry_run: bool) -> Tidied:
    opened = Database(settings.database)
    try:
        return await tidy(settings, opened, now, dry_run=dry_run)
    finally:
        await opened.close()


def _told(done: Tidied, *, dry_run: bool, compacted: bool) -> str:
    rows = done.rows
    verb = "would be removed" if dry_run else "removed"
    rewritten = " The database file was rewritten." if compacted else ""
    if not any((*dataclasses.astuple(rows), done.directories, done.audit)):
        return f"Nothing to remove: no history is old enough or takes too much room.{rewritten}"
    return (
        f"History of {counted(rows.runs, 'run')} {verb}: {rows.journal} journal entries, "
        f"{rows.samples} chunks of samples; {rows.shards} records of deleted shards; files of "
        f"{counted(done.directories, 'run')} ({done.file_bytes / 1e6:.1f} MB);"
        f" {counted(done.audit, 'entry')} of the audit log.{rewritten}"
    )
