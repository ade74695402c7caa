"""Commands that tell what happened: explain, events, logbook, logs."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any

import typer

from jobs.spec import parse_seconds
from orchestrator.cli import log_view
from orchestrator.cli.client import path
from orchestrator.cli.follow import POLL_SECONDS
from orchestrator.cli.output import Column, Format, FormatOption, clock_time, emit, put, text
from orchestrator.cli.session import RunArgument, complete_run, session
from orchestrator.core.model.states import TERMINAL_RUN_STATES
from orchestrator.core.views.logbook import text as story_text
from orchestrator.core.views.models import StoryView

_OVER = {state.value for state in TERMINAL_RUN_STATES}
_PAGE = 1000
EVENTS = [
    Column("TIME", lambda row: clock_time(row["at"])),
    Column("ATTEMPT", text("attempt")),
    Column("ACTOR", text("actor")),
    Column("WHAT", text("name")),
    Column("REASON", text("reason")),
    Column("POSITION", text("position"), wide=True),
    Column("ID", text("id"), wide=True),
    Column("CAUSE", text("cause"), wide=True),
]


def explain(ctx: typer.Context, run: RunArgument, form: FormatOption = Format.TABLE) -> None:
    """Say why a run is where it is, who is ahead of it, and what would move it on.

    For example:

        babysit explain tiny-gpt
    """
    found = session(ctx).api.get(path("runs", run, "explain"))
    if form in {Format.TABLE, Format.WIDE}:
        put("\n".join(found["sentences"]))
    else:
        emit(found, [], form, name="run")


def events(
    ctx: typer.Context,
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN]", help="Without it: of everything.", autocompletion=complete_run
        ),
    ] = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as they come.")] = False,
    form: FormatOption = Format.TABLE,
) -> None:
    """Print the journal: every event and every decision, with its reason and its actor.

    For example:

        babysit events tiny-gpt

        babysit events -f -o wide
    """
    here = session(ctx)
    where = path("events") if run is None else path("runs", run, "events")
    after, first = 0, True
    while True:
        rows = _all_events(here.api, where, after)
        if rows or (first and not follow):
            emit(rows, EVENTS, form, empty="Nothing has happened yet.")
            after, first = rows[-1]["position"] if rows else after, False
        if not follow:
            return
        if run is not None and here.api.get(path("runs", run))["state"] in _OVER:
            emit(_all_events(here.api, where, after), EVENTS, form)
            return
        here.wait(POLL_SECONDS)


def _all_events(api: Any, where: str, after: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    while True:
        page = api.get(where, after=after, limit=_PAGE)
        rows += page
        if len(page) < _PAGE:
            return rows
        after = page[-1]["position"]


def logbook(ctx: typer.Context, run: RunArgument, form: FormatOption = Format.TABLE) -> None:
    """Tell the story of a run in sentences (times are UTC).

    For example:

        babysit logbook tiny-gpt
    """
    lines = session(ctx).api.get(path("runs", run, "logbook"))
    if form in {Format.TABLE, Format.WIDE}:
        put("\n".join(story_text([StoryView.model_validate(line) for line in lines])))
    else:
        emit(lines, [], form, name="text")


def _since(value: str | None) -> dt.timedelta | None:
    if value is None:
        return None
    try:
        seconds = parse_seconds(value)
    except ValueError as error:
        raise typer.BadParameter(f"{error}, got {value!r}", param_hint="--since") from error
    return dt.timedelta(seconds=float(str(seconds)))


def logs(  # noqa: PLR0913, PLR0917 (a command has its options)
    ctx: typer.Context,
    run: RunArgument,
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="Go on until the run is over.")
    ] = False,
    since: Annotated[
        str | None,
        typer.Option(metavar="10m", help="Only logs still written to within this time."),
    ] = None,
    tail: Annotated[
        int | None, typer.Option(min=0, help="Only the last lines of each. Default: all.")
    ] = None,
    rank: Annotated[int | None, typer.Option(min=0, help="Only this rank. Default: all.")] = None,
    attempt: Annotated[
        int | None, typer.Option(min=1, help="This attempt. Default: the newest.")
    ] = None,
    controller: Annotated[
        bool, typer.Option("--controller", help="What the server logged of this run instead.")
    ] = False,
) -> None:
    """Print what the ranks wrote.

    For example:

        babysit logs tiny-gpt --tail 20

        babysit logs tiny-gpt -f --rank 0

        babysit logs tiny-gpt --attempt 1 --rank 1

        babysit logs tiny-gpt --controller
    """
    here = session(ctx)
    if controller:
        log_view.controller(here, run, tail=tail, follow=follow)
        return
    chosen = log_view.Choice(rank=rank, attempt=attempt, since=_since(since), tail=tail)
    log_view.ranks(here, run, chosen, follow=follow)
