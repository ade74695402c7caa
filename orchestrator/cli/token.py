"""`babysit token`: credentials of the API."""

from __future__ import annotations

import datetime as dt
from enum import StrEnum
from typing import Annotated

import typer

from orchestrator.cli.output import (
    Column,
    Format,
    FormatOption,
    Row,
    conclude,
    emit,
    put,
    say,
    since,
    text,
)
from orchestrator.cli.paths import path
from orchestrator.cli.session import Session, seconds_of, session

token = typer.Typer(no_args_is_help=True, help="Credentials of the API (needs the role admin).")


class Role(StrEnum):
    """The rights of a token's bearer."""

    ADMIN = "admin"  # everything
    OPERATOR = "operator"  # everything but tokens
    VIEWER = "viewer"  # read only


def _token_columns(ctx: typer.Context) -> list[Column]:
    now = session(ctx).clock.now()
    return [
        Column("NAME", text("name")),
        Column("ROLE", text("role")),
        Column("AGE", since("created_at", now)),
        Column("LAST USED", since("last_used_at", now)),
        Column("VALID UNTIL", _end),
        Column("FOR", _scope),
        Column("REVOKED", since("revoked_at", now), wide=True),
        Column("ID", text("id")),
    ]


def _end(row: Row) -> str:
    """`revoked`, the day on which the token expires, or `-`: never."""
    return "revoked" if row["revoked_at"] else (row["expires_at"] or "-")[:10]


def _scope(row: Row) -> str:
    """`project llm, queue research`; `-`: all runs."""
    kinds = {"project": row["projects"], "queue": row["queues"]}
    return ", ".join(f"{kind} {'|'.join(names)}" for kind, names in kinds.items() if names) or "-"


@token.command()
def create(  # noqa: PLR0913, PLR0917 (a command has its options)
    ctx: typer.Context,
    name: Annotated[
        str, typer.Argument(help="Name of its owner, for the journal: letters, digits and -._@.")
    ],
    role: Annotated[Role, typer.Option(help="What its bearer may do.")] = Role.OPERATOR,
    expires: Annotated[
        str, typer.Option(metavar="90d|never", help="How long the token is valid.")
    ] = "365d",
    project: Annotated[
        list[str] | None,
        typer.Option(help="Only for runs of this project. May be repeated. Default: all."),
    ] = None,
    queue: Annotated[
        list[str] | None,
        typer.Option(help="Only for runs of this queue. May be repeated. Default: all."),
    ] = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """Create a token and print its secret, which is not shown again.

    For example:

        SECRET=$(babysit token create mia)
        babysit token create grafana --role viewer --expires never
        babysit token create ci --queue research --expires 30d
    """
    here = session(ctx)
    ends = None if expires == "never" else _after(here, expires)
    made = here.api.post(
        path("tokens"),
        name=name,
        role=role.value,
        expires_at=ends and ends.isoformat(),
        projects=project or [],
        queues=queue or [],
    )
    if form in {Format.TABLE, Format.WIDE}:
        until = f"valid until {ends:%Y-%m-%d}" if ends else "valid until it is revoked"
        say(
            f"Created {made['name']} ({made['role']}), {until}."
            " Keep the secret: it is not shown again."
        )
        put(made["secret"])
    else:
        emit(made, [], form)


def _after(here: Session, expires: str) -> dt.datetime:
    return here.clock.now() + dt.timedelta(seconds=seconds_of("--expires", expires))


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
    token_: Annotated[
        str, typer.Argument(metavar="TOKEN", help="A name or an id, as shown by `token ls`.")
    ],
    form: FormatOption = Format.TABLE,
) -> None:
    """Revoke a token. It stops working at once.

    For example:

        babysit token revoke mia
    """
    api = session(ctx).api
    rows = api.get(path("tokens"))
    named = [row for row in rows if row["name"] == token_]
    valid = [row for row in named if row["revoked_at"] is None]  # the server refuses any other
    id_ = next((row["id"] for row in [*valid, *reversed(named)]), token_)
    api.delete(path("tokens", id_))
    conclude({"id": id_}, form, said=f"Revoked {token_}.")
