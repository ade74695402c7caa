"""The command `babysit`: the root of the command line, and what is below it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from orchestrator.cli import (
    checkpoints,
    db,
    demo,
    history,
    incidents,
    local,
    nodes,
    queues,
    runs,
    server,
    simulate,
    token,
    watch,
)
from orchestrator.cli.errors import CliError
from orchestrator.cli.help import reflow
from orchestrator.cli.output import put, say
from orchestrator.cli.session import Session


class _Commands(TyperGroup):
    """The root command. Errors become a line on stderr and an exit code; help is reflowed."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        reflow(self)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except CliError as error:
            say(error.message)
            ctx.exit(int(error.code))
        except BrokenPipeError:
            # The reader of a pipe closed it (`babysit logs … | head`): not an error.
            sys.stdout = None
            ctx.exit(0)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Keeps large training runs alive: schedules, watches, restarts from the right checkpoint.",
    epilog="Exit codes: 0 ok, 1 the run failed, 2 usage or invalid spec, 3 not found, 4 refused in "
    "this state, 5 not allowed, 6 server unreachable, 7 the run was cancelled, 8 wait timed out.",
)


def _version(wanted: bool) -> None:
    if wanted:
        from orchestrator.server.routes.system import package_version  # noqa: PLC0415

        put(package_version())
        raise typer.Exit


@app.callback()
def _main(
    ctx: typer.Context,
    version: Annotated[  # noqa: ARG001 (handled by its callback)
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    here: Session = ctx.obj or Session()
    ctx.obj = here
    ctx.call_on_close(here.close)


_PANELS: dict[str, list[tuple[str, Callable[..., None]]]] = {
    "Runs": [
        ("run", runs.run),
        ("submit", runs.submit),
        ("ls", runs.list_runs),
        ("show", runs.show),
        ("watch", watch.watch),
        ("wait", watch.wait),
        ("logs", history.logs),
    ],
    "What happened, and why": [
        ("explain", history.explain),
        ("events", history.events),
        ("logbook", history.logbook),
    ],
    "Step in": [
        ("cancel", runs.cancel),
        ("hold", runs.hold),
        ("release", runs.release),
        ("restart", runs.restart),
        ("rollback", runs.rollback),
    ],
    "Look ahead": [
        ("simulate", simulate.simulate),
    ],
    "Start here": [
        ("demo", demo.demo),
        ("init", local.init),
        ("schema", local.schema),
        ("doctor", local.doctor),
    ],
}
_GROUPS: dict[str, tuple[typer.Typer, str]] = {
    "checkpoints": (checkpoints.app, "What happened, and why"),
    "incidents": (incidents.app, "What happened, and why"),
    "nodes": (nodes.app, "The cluster and the control plane"),
    "queues": (queues.app, "The cluster and the control plane"),
    "server": (server.server, "The cluster and the control plane"),
    "db": (db.database, "The cluster and the control plane"),
    "token": (token.token, "The cluster and the control plane"),
}
for panel, commands in _PANELS.items():
    for command, function in commands:
        app.command(command, rich_help_panel=panel)(function)
for group, (commands_of, panel) in _GROUPS.items():
    app.add_typer(commands_of, name=group, rich_help_panel=panel)


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="babysit")


if __name__ == "__main__":
    main()
