"""`babysit nodes`: the hosts of the cluster, their health, and whether they take work."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli import node_checks
from orchestrator.cli.errors import CliError, ExitCode
from orchestrator.cli.output import (
    Column,
    Format,
    FormatOption,
    emit,
    number,
    put,
    say,
    size,
    text,
)
from orchestrator.cli.paths import path
from orchestrator.cli.session import seconds_of, session

if TYPE_CHECKING:
    from orchestrator.cli.client import Api

app = typer.Typer(
    no_args_is_help=True, help="The hosts of the cluster: their health, and whether they take work."
)
NodeArgument = Annotated[
    str, typer.Argument(metavar="NODE", help="As shown by `babysit nodes ls`.")
]
RequiredReason = Annotated[
    str, typer.Option("--reason", help="Reason, for others who look at the node.")
]
COLUMNS = [
    Column("NODE", text("id")),
    Column("STATE", text("state")),
    Column("GPUS", text("gpus")),
    Column("CPUS", number("cpus", "{:g}")),
    Column("MEMORY", lambda row: size("memory_bytes")(row) if row["memory_bytes"] else "-"),
    Column("OTHERS", lambda row: row.get("used_by_others") or "-", wide=True, shrinks=True),
    Column("RUNS", lambda row: ", ".join(row["runs"]) or "-", shrinks=True),
    Column("FAULTS", lambda row: str(len(row["faults"]))),
    Column("REASON", text("reason"), shrinks=True),
    Column("MAINTENANCE", lambda row: _next_window(row["maintenance"]), wide=True),
    Column("BY", text("by"), wide=True),
    Column("BLIND", lambda row: ", ".join(_blind(row)) or "-", wide=True, shrinks=True),
    Column("LABELS", lambda row: ",".join(f"{k}={v}" for k, v in row["labels"].items()), wide=True),
]


def _blind(row: Mapping[str, Any]) -> dict[str, str]:
    """Hardware sources that see nothing, with the reason; a server of before names none."""
    found: dict[str, str] = (row.get("hardware") or {}).get("blind", {})
    return found


def _next_window(windows: list[dict[str, str]]) -> str:
    return _window(windows[0]) if windows else "-"


def _window(window: dict[str, str]) -> str:
    """`2026-12-01 02:00 to 06:00 UTC`; the day of the end where it is another."""
    begins, ends = (dt.datetime.fromisoformat(window[key]) for key in ("begins", "ends"))
    until = f"{ends:%H:%M}" if ends.date() == begins.date() else f"{ends:%Y-%m-%d %H:%M}"
    return f"{begins:%Y-%m-%d %H:%M} to {until} UTC"


def columns(rows: list[dict[str, Any]]) -> list[Column]:
    """The columns; maintenance and other use are in the narrow table too when there is some."""
    shown = set()
    if any(row["maintenance"] for row in rows):
        shown.add("MAINTENANCE")
    if any(row.get("used_by_others") for row in rows):
        shown.add("OTHERS")
    return [
        c._replace(wide=False, shrinks=c.title != "MAINTENANCE") if c.title in shown else c
        for c in COLUMNS
    ]


SPARES = [
    Column("SPARES", text("spares")),
    Column("NODES NOW", text("nodes")),
    Column("IDLE", text("idle")),
    Column("ADVISED", text("advised")),
    Column("WHY", text("why")),
]
_WINDOW = "1h"
_TIMES = ["%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%d"]


def all_nodes(api: Api, page: int = 1000) -> list[Any]:
    """All nodes by name, asked for in pages of `page`, which servers have as their limit."""
    rows: list[Any] = []
    while True:
        after = rows[-1]["id"] if rows else None
        more = api.get(path("nodes"), limit=page, after=after)
        rows += more
        if len(more) < page:
            return rows


@app.command("ls")
def ls(ctx: typer.Context, form: FormatOption = Format.TABLE) -> None:
    """List nodes.

    For example:

        babysit nodes ls -o wide
    """
    rows = all_nodes(session(ctx).api)
    emit(rows, columns(rows), form, empty="The cluster has no nodes.")


@app.command()
def show(ctx: typer.Context, node: NodeArgument, form: FormatOption = Format.WIDE) -> None:
    """Show one node.

    For example:

        babysit nodes show node-2 -o yaml
    """
    found = session(ctx).api.get(path("nodes", node))
    emit(found, COLUMNS, form)
    if form in {Format.TABLE, Format.WIDE}:
        for source, reason in _blind(found).items():
            say(f"{found['id']} is blind: {source}: {reason}")


@app.command()
def token(ctx: typer.Context, node: NodeArgument) -> None:
    """Print the token of a node's monitor: it can report for that node, and do nothing else.

    For example:

        BABYSIT_NODE_TOKEN=$(babysit nodes token gpu-7)
    """
    put(session(ctx).api.post(path("nodes", node, "token"))["token"])


app.command()(node_checks.check)


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
    """Stop placing work on a node; runs on it stay.

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
    """Stop placing work on a node, and move its runs away. They may save first.

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
    """Place work on a node again.

    For example:

        babysit nodes uncordon node-2 --reason "fan replaced"
    """
    _change(ctx, node, "uncordon", reason, form)


@app.command()
def maintain(  # noqa: PLR0913, PLR0917 (a command has its options)
    ctx: typer.Context,
    nodes: Annotated[list[str], typer.Argument(metavar="NODE...", help="One or more nodes.")],
    begins: Annotated[
        dt.datetime | None,
        typer.Option("--from", formats=_TIMES, help="Begin of the window, in UTC. Default: now."),
    ] = None,
    lasts: Annotated[
        str, typer.Option("--for", metavar="4h", help="Length of the window.")
    ] = _WINDOW,
    reason: Annotated[
        str, typer.Option("--reason", help="Reason, for others. Required without --off.")
    ] = "",
    off: Annotated[
        bool, typer.Option("--off", help="Cancel the maintenance that is planned.")
    ] = False,
    form: FormatOption = Format.TABLE,
) -> None:
    """Plan maintenance: a window in which nodes are not used.

    No run is started there that would still be running when the window begins; then the runs on
    the nodes save and move away.

    For example:

        babysit nodes maintain node-7 --for 2h --reason "new switch"
        babysit nodes maintain node-7 --from 2026-12-01T02:00 --reason "new fan"
        babysit nodes maintain node-7 --off
    """
    here = session(ctx)
    if off:
        before = [here.api.get(path("nodes", node)) for node in nodes]
        after = here.api.post(path("nodes", "maintenance", "cancel"), nodes=nodes, reason=reason)
        said = [_cancelled(row) for row in before]
    else:
        start = (begins or here.clock.now()).replace(tzinfo=dt.UTC)
        end = _end(start, _checked(lasts, reason), lasts)
        window = {"begins": start.isoformat(), "ends": end.isoformat()}
        after = here.api.post(path("nodes", "maintenance"), nodes=nodes, reason=reason, **window)
        names = ", ".join(row["id"] for row in after)
        said = [f"{names}: maintenance planned, {_window(window)}: {reason}"]
    if form is Format.TABLE:
        for line in said:
            say(line)
    else:
        emit(after, COLUMNS, form)


def _end(start: dt.datetime, seconds: float, lasts: str) -> dt.datetime:
    try:
        return start + dt.timedelta(seconds=seconds)
    except OverflowError:
        message = f"--for: {lasts} ends after the year 9999"
        raise CliError(message, ExitCode.USAGE) from None


def _cancelled(node: dict[str, Any]) -> str:
    """The effect of `--off` on a node, in words, given the plan that it cancelled."""
    planned = ", ".join(map(_window, node["maintenance"]))
    done = f"maintenance cancelled, {planned}" if planned else "no maintenance was planned"
    return f"{node['id']}: {done}"


def _checked(lasts: str, reason: str) -> float:
    """Seconds of a window. All mistakes of the options are reported together."""
    problems = [] if reason else ["--reason: required, unless --off is given"]
    try:
        seconds = seconds_of("--for", lasts)
    except CliError as error:
        problems.append(str(error))
    if problems:
        raise CliError("\n".join(problems), ExitCode.USAGE)
    return seconds


@app.command(context_settings={"ignore_unknown_options": True})  # -1 must not be read as an option
def spares(
    ctx: typer.Context,
    number_: Annotated[
        str | None, typer.Argument(metavar="[N|auto]", help="Default: show the number.")
    ] = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """Reserve idle nodes for recoveries; new runs do not get them.

    With `auto`, the number that suffices for 99 % of repair times, given the failures seen on this
    cluster; lemons count at their own rate. ADVISED is that number, WHY its figures, IDLE the
    nodes that a recovery could have now.

    For example:

        babysit nodes spares 2
        babysit nodes spares auto
    """
    api = session(ctx).api
    if number_ is not None and number_ != "auto" and not number_.isdigit():
        raise CliError(
            f"N: expected a whole number of 0 or more, or auto; got {number_!r}", ExitCode.USAGE
        )
    if number_ is None:
        found = api.get(path("spares"))
    else:
        found = api.put(path("spares"), spares=number_ if number_ == "auto" else int(number_))
    emit(found, SPARES, form, name="nodes")
