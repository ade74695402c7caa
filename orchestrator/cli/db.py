"""`babysit db`: the schema of the run database, and backups."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from orchestrator.cli.errors import CliError, ExitCode, UnreachableError
from orchestrator.cli.output import (
    Format,
    FormatOption,
    emit,
    put,
    say,
)
from orchestrator.cli.session import session
from orchestrator.database import schema
from orchestrator.errors import BabysitError, ConflictError, InvalidError
from orchestrator.private_home import UnsafeHomeError, make_private

database = typer.Typer(no_args_is_help=True, help="The run database: its schema, and backups.")


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
    settings = session(ctx).settings
    try:
        make_private(settings.home)
    except UnsafeHomeError as error:
        raise CliError(str(error), ExitCode.REFUSED) from error
    _now(schema.upgrade(settings.database))
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
    _now(schema.backup(session(ctx).settings.database, file))
    if form in {Format.TABLE, Format.WIDE}:
        put(str(file))
    else:
        emit({"file": str(file)}, [], form, name="file")
