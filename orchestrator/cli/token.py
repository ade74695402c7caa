"""`babysit token`: credentials of the API."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from orchestrator.cli.client import path
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
        Column("REVOKED", since("revoked_at", now)),
        Column("ID", text("id")),
    ]


@token.command()
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of its owner, for the journal.")],
    role: Annotated[Role, typer.Option(help="What its bearer may do.")] = Role.OPERATOR,
    form: FormatOption = Format.TABLE,
) -> None:
    """Create a token and print its secret, which is not shown again.

    For example:

        SECRET=$(babysit token create mia)
        babysit token create grafana --role viewer
    """
    made = session(ctx).api.post(path("tokens"), name=name, role=role.value)
    if form in {Format.TABLE, Format.WIDE}:
        say(f"Created {made['name']} ({made['role']}). Keep the secret: it is not shown again.")
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
    named = [row["id"] for row in rows if row["name"] == token_ and row["revoked_at"] is None]
    id_ = named[0] if named else token_
    api.delete(path("tokens", id_))
    conclude({"id": id_}, form, said=f"Revoked {token_}.")
