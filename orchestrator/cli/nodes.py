"""`babysit nodes`: what there is, how fit it is, whether it takes work. And `babysit queues`."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli.client import path
from orchestrator.cli.output import Column, Format, FormatOption, emit, number, say, size, text
from orchestrator.cli.session import session

app = typer.Typer(no_args_is_help=True, help="Hosts: how fit they are, whether they take work.")
queues = typer.Typer(no_args_is_help=True, help="Where runs wait.")
NodeArgument = Annotated[
    str, typer.Argument(metavar="NODE", help="As `babysit nodes ls` shows it.")
]
RequiredReason = Annotated[
    str, typer.Option("--reason", help="Why, for whoever finds the node like this.")
]
COLUMNS = [
    Column("NODE", text("id")),
    Column("STATE", text("state")),
    Column("GPUS", text("gpus")),
    Column("CPUS", number("cpus", "{:g}")),
    Column("MEMORY", lambda row: size("memory_bytes")(row) if row["memory_bytes"] else "-"),
    Column("RUNS", lambda row: ", ".join(row["runs"]) or "-"),
    Column("FAULTS", lambda row: str(len(row["faults"]))),
    Column("REASON", text("reason")),
    Column("BY", text("by"), wide=True),
    Column("LABELS", lambda row: ",".join(f"{k}={v}" for k, v in row["labels"].items()), wide=True),
]
CHECKS = [
    Column("CHECK", text("name")),
    Column("RESULT", lambda row: "ok" if row["ok"] else "failed"),
    Column("DETAIL", text("detail")),
]
QUEUES = [
    Column("QUEUE", text("name")),
    Column("GPUS", lambda row: "no limit" if row["gpus"] is None else str(row["gpus"])),
    Column("QUEUED", text("queued")),
    Column("ACTIVE", text("active")),
]


@app.command("ls")
def ls(ctx: typer.Context, form: FormatOption = Format.TABLE) -> None:
    """List nodes.

    For example:

        babysit nodes ls -o wide
    """
    emit(session(ctx).api.get(path("nodes")), COLUMNS, form, empty="The cluster has no nodes.")


@app.command()
def show(ctx: typer.Context, node: NodeArgument, form: FormatOption = Format.WIDE) -> None:
    """Show one node.

    For example:

        babysit nodes show node-2 -o yaml
    """
    emit(session(ctx).api.get(path("nodes", node)), COLUMNS, form)


@app.command()
def check(ctx: typer.Context, node: NodeArgument, form: FormatOption = Format.TABLE) -> None:
    """Check a node by what the control plane knows of it; nothing on it is touched.

    For example:

        babysit nodes check node-2
    """
    rows = session(ctx).api.get(path("nodes", node, "check"))
    emit(rows, CHECKS, form, name="name")
    if not all(row["ok"] for row in rows):
        raise typer.Exit(1)


def _change(ctx: typer.Context, node: str, verb: str, reason: str, form: Format) -> None:
    after = session(ctx).api.post(path("nodes", node, verb), reason=reason)
    if form is Format.TABLE:
        say(f"{after['id']} is {after['state']}: {after['reason']}")
    else:
        emit(after, COLUMNS, form)


@app.command()
def cordon(
    ctx: typer.Context,
    node: NodeArgument,
    reason: RequiredReason,
    form: FormatOption = Format.TABLE,
) -> None:
    """Give a node no new work; what runs there stays.

    For example:

        babysit nodes cordon node-2 --reason "fan is loud"
    """
    _change(ctx, node, "cordon", reason, form)


@app.command()
def drain(
    ctx: typer.Context,
    node: NodeArgument,
    reason: RequiredReason,
    form: FormatOption = Format.TABLE,
) -> None:
    """Give a node no new work, and move what runs there away.

    For example:

        babysit nodes drain node-2 --reason "replace the disk"
    """
    _change(ctx, node, "drain", reason, form)


@app.command()
def uncordon(
    ctx: typer.Context,
    node: NodeArgument,
    reason: RequiredReason,
    form: FormatOption = Format.TABLE,
) -> None:
    """Let a node take work again.

    For example:

        babysit nodes uncordon node-2 --reason "fan replaced"
    """
    _change(ctx, node, "uncordon", reason, form)


@queues.command("ls")
def queues_ls(ctx: typer.Context, form: FormatOption = Format.TABLE) -> None:
    """List queues.

    For example:

        babysit queues ls
    """
    rows = session(ctx).api.get(path("queues"))
    emit(rows, QUEUES, form, name="name", empty="There are no queues.")
