"""Commands on runs: ls, show, and the requests of operators."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer

from orchestrator.cli import follow, show_run
from orchestrator.cli.completion import complete_run
from orchestrator.cli.errors import CliError, ExitCode
from orchestrator.cli.output import (
    Column,
    Format,
    FormatOption,
    emit,
    known_step,
    number,
    put,
    say,
    share,
    since,
    text,
)
from orchestrator.cli.paths import path
from orchestrator.cli.session import ReasonOption, RunArgument, Session, session
from orchestrator.core.model.states import RunState

_ID_SHOWN = 8
"""Last characters of an id: the first ones are the time, and the same for hours."""


def columns(here: Session) -> list[Column]:
    """The columns of a table of runs."""
    now = here.clock.now()
    return [
        Column("NAME", text("name"), shrinks=True),
        Column("STATE", text("state")),
        Column("STEP", known_step),
        Column("LOSS", number("loss")),
        Column("RESTARTS", text("restarts_count")),
        Column("ETTR", share("ettr")),
        Column("AGE", since("submitted_at", now)),
        Column("ID", lambda row: row["id"][-_ID_SHOWN:]),
        Column("FULL ID", text("id"), wide=True),
        Column("ATTEMPT", text("attempt"), wide=True),
        Column("NODES", text("nodes"), wide=True),
        Column("QUEUE", text("queue"), wide=True),
        Column("OWNER", text("owner"), wide=True),
        Column("REASON", text("reason"), wide=True),
    ]


def list_runs(
    ctx: typer.Context,
    form: FormatOption = Format.TABLE,
    state: Annotated[
        list[RunState] | None, typer.Option(help="Only runs in this state. May be repeated.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Only runs of this name.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most runs listed.")] = 100,
) -> None:
    """List runs, newest first.

    For example:

        babysit ls
        babysit ls --state running --state recovering -o wide
    """
    here = session(ctx)
    wanted = [one.value for one in state] if state else None
    rows = here.api.get(path("runs"), state=wanted, name=name, limit=limit)
    emit(rows, columns(here), form, empty="There are no runs. Submit one: babysit run run.yaml")


def show(ctx: typer.Context, run: RunArgument, form: FormatOption = Format.TABLE) -> None:
    """Show one run: its state, restarts, incidents, checkpoint, and where its time went.

    For example:

        babysit show tiny-gpt
        babysit show tiny-gpt -o json | jq .ettr
    """
    here = session(ctx)
    detail = here.api.get(path("runs", run))
    if form in {Format.TABLE, Format.WIDE}:
        put(show_run.page(detail, here.clock.now(), wide=form is Format.WIDE))
    else:
        emit(detail, columns(here), form)


def _ask(ctx: typer.Context, run: str, verb: str, form: Format, **body: Any) -> None:
    here = session(ctx)
    after = here.api.post(path("runs", run, verb), **body)
    if form is Format.TABLE:
        say(_result(verb, after))
    else:
        emit(after, columns(here), form)


def _result(verb: str, run: dict[str, Any]) -> str:
    """The effect of a request: the state of the run, or what is under way."""
    if verb == "cancel" and run["state"] not in follow.OUTCOMES:
        grace = f"{run['grace_seconds']:.0f} s"
        return f"{run['name']} is being cancelled: its ranks may save for up to {grace}"
    reason = run["reason"].removeprefix(f"{run['state']} ")
    joint = " " if reason != run["reason"] else ": "
    return f"{run['name']} is {run['state']}" + (f"{joint}{reason}" if reason else "")


def cancel(
    ctx: typer.Context,
    run: RunArgument,
    reason: ReasonOption = "",
    form: FormatOption = Format.TABLE,
) -> None:
    """Cancel a run. Its ranks may save first; its checkpoints stay.

    For example:

        babysit cancel tiny-gpt --reason "wrong data"
    """
    _ask(ctx, run, "cancel", form, reason=reason)


OptionalRun = Annotated[
    str | None,
    typer.Argument(metavar="[RUN]", help="Default: everything.", autocompletion=complete_run),
]


def _scope(ctx: typer.Context, run: str | None, verb: str, form: Format, reason: str) -> None:
    if run is not None:
        _ask(ctx, run, verb, form, reason=reason)
        return
    info = session(ctx).api.post(path(verb), reason=reason)
    if form is Format.TABLE:
        held = info["hold"]
        say(f"All automatic action is {held}" if held else "The hold over everything is over.")
    else:
        emit(info, [Column("HOLD", text("hold"))], form, name="hold")


def hold(
    ctx: typer.Context,
    run: OptionalRun = None,
    reason: ReasonOption = "",
    form: FormatOption = Format.TABLE,
) -> None:
    """Stop all automatic action for a run, or for everything; monitoring goes on.

    For example:

        babysit hold tiny-gpt --reason "looking at the loss"
        babysit hold --reason "network maintenance"
    """
    _scope(ctx, run, "hold", form, reason)


def release(
    ctx: typer.Context,
    run: OptionalRun = None,
    reason: ReasonOption = "",
    form: FormatOption = Format.TABLE,
) -> None:
    """End a hold: the hold of a run, or without RUN the hold over everything.

    For example:

        babysit release tiny-gpt
        babysit release
    """
    _scope(ctx, run, "release", form, reason)


def restart(
    ctx: typer.Context,
    run: RunArgument,
    reason: ReasonOption = "",
    form: FormatOption = Format.TABLE,
) -> None:
    """Restart a run from its newest checkpoint.

    For example:

        babysit restart tiny-gpt --reason "new driver"
    """
    _ask(ctx, run, "restart", form, reason=reason)


def _batches(value: str | None) -> list[int] | None:
    if value is None:
        return None
    match = re.fullmatch(r"(\d+):(\d+)", value)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise typer.BadParameter(
            f"expected FIRST:LAST with 1 <= FIRST <= LAST, such as 60:79; got {value!r}",
            param_hint="--skip",
        )
    return [int(match[1]), int(match[2])]


def rollback(  # noqa: PLR0913, PLR0917 (a command has its options)
    ctx: typer.Context,
    run: RunArgument,
    to: Annotated[
        int | None,
        typer.Option(
            "--to",
            min=0,
            help="Step of a checkpoint. Default: the one before the newest step reached.",
        ),
    ] = None,
    skip: Annotated[
        str | None,
        typer.Option(
            "--skip", metavar="FIRST:LAST", help="Batches to skip, both included, counted from 1."
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Load the step of --to even if it is doubted, superseded or bad."
        ),
    ] = False,
    reason: ReasonOption = "",
    form: FormatOption = Format.TABLE,
) -> None:
    """Restart a run from an older checkpoint, and skip batches if you say so.

    An older checkpoint is loaded if the one of --to turns out to be damaged.

    For example:

        babysit rollback tiny-gpt
        babysit rollback tiny-gpt --to 900 --skip 903:922 --reason "bad data"
        babysit rollback tiny-gpt --to 900 --force
    """
    if force and to is None:
        raise CliError("--force needs a step: add --to STEP", ExitCode.USAGE)
    _ask(ctx, run, "rollback", form, to_step=to, skip=_batches(skip), force=force, reason=reason)
