"""Commands about the past of a run: explain, events, logbook, logs."""

from __future__ import annotations

import datetime as dt
from typing import Annotated

import typer

from orchestrator.cli import log_view
from orchestrator.cli.completion import complete_run
from orchestrator.cli.follow import POLL_SECONDS
from orchestrator.cli.journal import Journal
from orchestrator.cli.output import (
    Column,
    Format,
    FormatOption,
    Row,
    Stream,
    emit,
    moment,
    put,
    text,
)
from orchestrator.cli.paths import path
from orchestrator.cli.session import RunArgument, seconds_of, session
from orchestrator.core.model.states import TERMINAL_RUN_STATES

_OVER = {state.value for state in TERMINAL_RUN_STATES}
_TAIL = 100
"""Rows of a table, unless --tail or --since is given: long runs have millions."""


def _actor(row: Row) -> str:
    """`worker:w3` of `worker:01M8…-w3x0k2qz`: run and time say nothing within its journal."""
    kind, _, name = str(row["actor"]).partition(":")
    short = name.rpartition("-")[2].partition("x")[0]
    return f"{kind}:{short}" if kind == "worker" else str(row["actor"])


EVENTS = [
    Column("TIME (UTC)", lambda row: moment(row["at"])),
    Column("ATTEMPT", text("attempt")),
    Column("ACTOR", _actor, shrinks=True),
    Column("WHAT", text("name"), shrinks=True),
    Column("REASON", text("reason"), shrinks=True),
    Column("POSITION", text("position"), wide=True),
    Column("ID", text("id"), wide=True),
    Column("CAUSE", text("cause"), wide=True),
]


def explain(ctx: typer.Context, run: RunArgument, form: FormatOption = Format.TABLE) -> None:
    """Explain why a run is in its state, which runs are ahead of it, and what it waits for.

    For example:

        babysit explain tiny-gpt
    """
    found = session(ctx).api.get(path("runs", run, "explain"))
    if form in {Format.TABLE, Format.WIDE}:
        put("\n".join(found["sentences"]))
    else:
        emit(found, [], form, name="run")


def events(  # noqa: PLR0913, PLR0917 (a command has its options)
    ctx: typer.Context,
    run: Annotated[
        str | None,
        typer.Argument(metavar="[RUN]", help="Default: all runs.", autocompletion=complete_run),
    ] = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Continue as they come.")] = False,
    tail: Annotated[
        int | None,
        typer.Option(min=1, help="Newest rows. Default: 100 in a table, all in other formats."),
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="10m", help="Only rows of this last time.")
    ] = None,
    decisions: Annotated[
        bool, typer.Option("--decisions", help="Only decisions, no reports of agents.")
    ] = False,
    form: FormatOption = Format.TABLE,
) -> None:
    """Print the journal: events and decisions, each with its reason and its actor.

    For example:

        babysit events tiny-gpt --decisions
        babysit events tiny-gpt --since 1h -o json
        babysit events -f
        babysit events tiny-gpt -f -o json | jq -c .name

    With -f, JSON is one object per line, and YAML one document per row.
    """
    here = session(ctx)
    if tail is None and since is None and form in {Format.TABLE, Format.WIDE}:
        tail = _TAIL
    age = _since(since)
    journal = Journal(
        here.patient if follow else here.api,
        path("events") if run is None else path("runs", run, "events"),
        "instruction" if decisions else None,
        None if age is None else here.clock.now() - age,
    )
    rows = journal.newest(tail)
    if not follow:
        emit(rows, EVENTS, form, empty="The journal has no such rows.")
        return
    stream = Stream(EVENTS, form)
    stream.emit(rows)
    while True:
        over = run is not None and here.patient.get(path("runs", run))["state"] in _OVER
        stream.emit(journal.more())
        if over:
            return
        here.wait(POLL_SECONDS)


def logbook(
    ctx: typer.Context,
    run: RunArgument,
    markdown: Annotated[bool, typer.Option("--md", help="As Markdown, for wikis.")] = False,
    form: FormatOption = Format.TABLE,
) -> None:
    """Print the story of a run in sentences. Times are UTC.

    For example:

        babysit logbook tiny-gpt
        babysit logbook tiny-gpt --md > tiny-gpt.md
    """
    from orchestrator.cli.views import read as read_view
    from orchestrator.core.views.logbook import text as story_text
    from orchestrator.core.views.models import StoryView

    api = session(ctx).api
    lines = api.get(path("runs", run, "logbook"))
    if markdown:
        from orchestrator.reports.markdown import logbook as page

        found = api.get(path("runs", run))
        story = [read_view(StoryView, line) for line in lines]
        put(page(found["name"], found["state"], story).rstrip("\n"))
    elif form in {Format.TABLE, Format.WIDE}:
        put("\n".join(story_text([read_view(StoryView, line) for line in lines])))
    else:
        emit(lines, [], form, name="text")


def _since(value: str | None) -> dt.timedelta | None:
    if value is None:
        return None
    return dt.timedelta(seconds=seconds_of("--since", value))


def logs(  # noqa: PLR0913, PLR0917 (a command has its options)
    ctx: typer.Context,
    run: RunArgument,
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="Continue until the run is over.")
    ] = False,
    since: Annotated[
        str | None,
        typer.Option(metavar="10m", help="Only logs written to within this time."),
    ] = None,
    tail: Annotated[
        int | None, typer.Option(min=0, help="Last lines of each log. Default: all.")
    ] = None,
    rank: Annotated[int | None, typer.Option(min=0, help="Only this rank. Default: all.")] = None,
    attempt: Annotated[
        int | None, typer.Option(min=1, help="Attempt. Default: the newest.")
    ] = None,
    controller: Annotated[
        bool, typer.Option("--controller", help="The server's log lines about the run instead.")
    ] = False,
) -> None:
    """Print the output of the ranks. Exit code 0 however the run ended.

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
