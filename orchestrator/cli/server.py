"""`babysit server`, `babysit db`, `babysit token`: the control plane itself."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Coroutine
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from orchestrator.cli import embedded
from orchestrator.cli.client import path
from orchestrator.cli.errors import CliError, ExitCode, UnreachableError
from orchestrator.cli.output import (
    Column,
    Format,
    FormatOption,
    conclude,
    emit,
    put,
    say,
    since,
    text,
)
from orchestrator.cli.session import session
from orchestrator.database import schema
from orchestrator.errors import BabysitError, InvalidError, RefusedError
from orchestrator.server.server_file import is_alive, read_record

server = typer.Typer()
database = typer.Typer(no_args_is_help=True, help="The run database.")
token = typer.Typer(no_args_is_help=True, help="Credentials (role admin).")
_STOP_SECONDS = 30.0
T = TypeVar("T")


class Role(StrEnum):
    """What a token may do."""

    ADMIN = "admin"  # everything
    OPERATOR = "operator"  # everything but tokens
    VIEWER = "viewer"  # look


@server.callback(invoke_without_command=True)
def serve(
    ctx: typer.Context,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free one.")
    ] = None,
) -> None:
    """Serve in the foreground, until Ctrl-C. Runs go on without it.

    For example:

        babysit server

        BABYSIT_DATABASE_URL=postgresql://db/babysit babysit server --host 0.0.0.0 --port 8080
    """
    if ctx.invoked_subcommand is not None:
        return
    settings = session(ctx).settings
    record = read_record(settings.server_file)
    if record is not None and is_alive(record):
        raise CliError(
            f"a server of {settings.home} runs already (pid {record.pid}, {record.url}); stop it "
            "with `babysit server stop`, or set another BABYSIT_HOME",
            ExitCode.REFUSED,
        )
    more = {"BABYSIT_HOST": host, "BABYSIT_PORT": None if port is None else str(port)}
    given = {key: value for key, value in more.items() if value is not None}
    command = embedded.server_command()
    os.execve(command[0], command, embedded.server_environment(settings, **given))  # noqa: S606


@server.command()
def status(ctx: typer.Context, form: FormatOption = Format.TABLE) -> None:
    """Say what serves; starts nothing.

    For example:

        babysit server status
    """
    here = session(ctx)
    if here.settings.server is None and embedded.find(here.settings, here.clock) is None:
        raise UnreachableError(
            f"no server of {here.settings.home} runs; the next command that needs one starts it"
        )
    info = {"url": here.api.url, **here.api.get(path("info"))}
    if form in {Format.TABLE, Format.WIDE}:
        put("\n".join(f"{key + ':':<13}{'-' if v is None else v}" for key, v in info.items()))
    else:
        emit(info, [], form, name="url")


@server.command()
def stop(ctx: typer.Context, form: FormatOption = Format.TABLE) -> None:
    """Stop the embedded server of this home. Its runs go on; the next command starts it again.

    For example:

        babysit server stop
    """
    here = session(ctx)
    record = read_record(here.settings.server_file)
    if record is None or not is_alive(record):
        nothing = f"No server of {here.settings.home} runs."
        conclude({"stopped": False, "pid": None}, form, said=nothing, name="pid")
        return
    os.kill(record.pid, signal.SIGTERM)
    deadline = here.clock.monotonic() + _STOP_SECONDS
    while is_alive(record):
        if here.clock.monotonic() > deadline:
            raise CliError(
                f"pid {record.pid} did not stop within {_STOP_SECONDS:.0f} s; "
                f"see {here.settings.server_log}",
                ExitCode.REFUSED,
            )
        here.wait(0.05)
    conclude({"stopped": True, "pid": record.pid}, form, said="Stopped. Runs go on.", name="pid")


def _now(work: Coroutine[Any, Any, T]) -> T:
    """Run database work; its errors become exit codes."""
    try:
        return asyncio.run(work)
    except InvalidError as error:
        raise CliError(str(error), ExitCode.USAGE) from error
    except RefusedError as error:
        raise CliError(str(error), ExitCode.REFUSED) from error
    except BabysitError as error:
        raise UnreachableError(str(error)) from error


@database.command()
def upgrade(ctx: typer.Context, form: FormatOption = Format.TABLE) -> None:
    """Create the schema, or bring it up to date.

    For example:

        babysit db upgrade

        BABYSIT_DATABASE_URL=postgresql://db/babysit babysit db upgrade
    """
    settings = session(ctx).settings
    settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    _now(schema.upgrade(settings.database))
    _conclude_schema([], form, "The schema is up to date.")


@database.command()
def check(ctx: typer.Context, form: FormatOption = Format.TABLE) -> None:
    """Compare the schema with what this version needs; ends with 4 when it differs.

    For example:

        babysit db check
    """
    settings = session(ctx).settings
    file = settings.home / "babysit.db"
    if settings.database_url or file.exists():
        differences = _now(schema.check(settings.database))
    else:
        differences = [f"there is no database yet: {file}"]
    _conclude_schema(differences, form, "The schema is as it should be.")


def _conclude_schema(differences: list[str], form: Format, said: str) -> None:
    if form in {Format.JSON, Format.YAML}:
        emit({"up_to_date": not differences, "differences": differences}, [], form)
    else:
        for line in differences:
            put(line)
    if differences:
        raise CliError(
            "The schema is not what this version needs: run `babysit db upgrade`.",
            ExitCode.REFUSED,
        )
    if form in {Format.TABLE, Format.WIDE}:
        say(said)


@database.command()
def backup(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A new file.")],
    form: FormatOption = Format.TABLE,
) -> None:
    """Copy the whole database to a new file, while it is in use.

    For example:

        babysit db backup babysit-$(date +%F).db
    """
    _now(schema.backup(session(ctx).settings.database, file))
    if form in {Format.TABLE, Format.WIDE}:
        put(str(file))
    else:
        emit({"file": str(file)}, [], form, name="file")


def _token_columns(ctx: typer.Context) -> list[Column]:
    now = session(ctx).clock.now()
    return [
        Column("NAME", text("name")),
        Column("ROLE", text("role")),
        Column("AGE", since("created_at", now)),
        Column("LAST USED", since("last_used_at", now)),
        Column("REVOKED", since("revoked_at", now)),
        Column("ID", text("id")),
    ]


@token.command()
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Whose it is; appears in the journal.")],
    role: Annotated[Role, typer.Option(help="What it may do.")] = Role.OPERATOR,
    form: FormatOption = Format.TABLE,
) -> None:
    """Make a token and print its secret, this once.

    For example:

        export BABYSIT_TOKEN=$(babysit token create mia)

        babysit token create grafana --role viewer
    """
    made = session(ctx).api.post(path("tokens"), name=name, role=role.value)
    if form in {Format.TABLE, Format.WIDE}:
        say(f"The token {made['name']} ({made['role']}). Keep it: it is not shown again.")
        put(made["secret"])
    else:
        emit(made, [], form)


@token.command("ls")
def token_ls(ctx: typer.Context, form: FormatOption = Format.TABLE) -> None:
    """List tokens, without their secrets.

    For example:

        babysit token ls
    """
    rows = session(ctx).api.get(path("tokens"))
    emit(rows, _token_columns(ctx), form, empty="There are no tokens.")


@token.command()
def revoke(
    ctx: typer.Context,
    id_: Annotated[str, typer.Argument(metavar="ID", help="As `babysit token ls` shows it.")],
    form: FormatOption = Format.TABLE,
) -> None:
    """Make a token worthless, at once.

    For example:

        babysit token revoke 01JABCDEFGHJKMNPQRSTVWXYZ0
    """
    session(ctx).api.delete(path("tokens", id_))
    conclude({"id": id_}, form, said=f"Revoked {id_}.")
