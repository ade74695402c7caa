"""`babysit nodes`: what there is, how fit it is, whether it takes work."""

from __future__ import annotations

import datetime as dt
from typing import Annotated

import typer

from jobs.spec import parse_seconds
from orchestrator.cli.client import path
from orchestrator.cli.errors import CliError, ExitCode
from orchestrator.cli.output import Column, Format, FormatOption, emit, number, say, size, text
from orchestrator.cli.session import session

app = typer.Typer(no_args_is_help=True, help="Hosts: how fit they are, whether they take work.")
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
    Column("MAINTENANCE", lambda row: _next_window(row["maintenance"]), wide=True),
    Column("BY", text("by"), wide=True),
    Column("LABELS", lambda row: ",".join(f"{k}={v}" for k, v in row["labels"].items()), wide=True),
]


def _next_window(windows: list[dict[str, str]]) -> str:
    return f"{windows[0]['begins'][:16]} to {windows[0]['ends'][:16]}" if windows else "-"


CHECKS = [
    Column("CHECK", text("name")),
    Column("RESULT", lambda row: "ok" if row["ok"] else "failed"),
    Column("DETAIL", text("detail")),
]
SPARES = [Column("SPARES", text("spares")), Column("NODES NOW", text("nodes"))]
_TIMES = ["%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%d"]


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


@app.command()
def maintain(  # noqa: PLR0913, PLR0917 (a command has its options)
    ctx: typer.Context,
    nodes: Annotated[list[str], typer.Argument(metavar="NODE...", help="One node or several.")],
    begins: Annotated[
        dt.datetime | None,
        typer.Option("--from", formats=_TIMES, help="When it begins, in UTC; now, if left out."),
    ] = None,
    lasts: Annotated[str, typer.Option("--for", help="How long, as in 90m or 4h.")] = "1h",
    reason: Annotated[str, typer.Option("--reason", help="Why, for whoever wonders.")] = "",
    off: Annotated[bool, typer.Option("--off", help="Call what is planned off.")] = False,
    form: FormatOption = Format.TABLE,
) -> None:
    """Plan a time in which nodes are not to be used.

    Nothing that would still run then is started there; when it begins, runs save and move away.

    For example:

        babysit nodes maintain node-7 node-8 --from 2026-12-01T02:00 --for 4h --reason "new switch"

        babysit nodes maintain node-7 --off
    """
    here = session(ctx)
    if off:
        after = here.api.post(path("nodes", "maintenance", "cancel"), nodes=nodes, reason=reason)
    else:
        if not reason:
            raise CliError("--reason is needed: why, for whoever wonders", ExitCode.USAGE)
        start = (begins or here.clock.now()).replace(tzinfo=dt.UTC)
        after = here.api.post(
            path("nodes", "maintenance"),
            nodes=nodes,
            begins=start.isoformat(),
            ends=(start + dt.timedelta(seconds=_seconds(lasts))).isoformat(),
            reason=reason,
        )
    emit(after, COLUMNS, form)


def _seconds(text_: str) -> float:
    try:
        return float(parse_seconds(text_))  # type: ignore[arg-type]  # a number, for a text
    except (ValueError, TypeError) as error:
        raise CliError(f"--for: {error}, got {text_!r}", ExitCode.USAGE) from error


@app.command()
def spares(
    ctx: typer.Context,
    number_: Annotated[
        str | None, typer.Argument(metavar="[N|auto]", help="Without it: say how many there are.")
    ] = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """Keep idle nodes for recoveries: newcomers do not get them.

    With `auto`, as many as suffice for 99 of 100 repair times, by the failures seen on this
    cluster.

    For example:

        babysit nodes spares auto
    """
    api = session(ctx).api
    if number_ is not None and number_ != "auto" and not number_.isdigit():
        raise CliError(f"expected a number or auto, got {number_!r}", ExitCode.USAGE)
    if number_ is None:
        found = api.get(path("spares"))
    else:
        found = api.put(path("spares"), spares=number_ if number_ == "auto" else int(number_))
    emit(found, SPARES, form, name="nodes")
