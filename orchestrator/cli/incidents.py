"""`babysit incidents`: failures and anomalies, who acknowledged them, and how they were handled."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.cli.completion import complete_run
from orchestrator.cli.errors import CliError, ExitCode
from orchestrator.cli.output import (
    Column,
    Format,
    FormatOption,
    emit,
    put,
    say,
    since,
    text,
    to_yaml,
)
from orchestrator.cli.paths import path
from orchestrator.cli.session import Session, session

app = typer.Typer(
    no_args_is_help=True, help="Failures and anomalies, and what was done about each."
)
IncidentArgument = Annotated[
    str,
    typer.Argument(
        metavar="INCIDENT", help="An id, or at least 4 of its first or last characters."
    ),
]


class Verdict(StrEnum):
    """A person's judgement of how an incident was handled."""

    RIGHT = "right"
    WRONG = "wrong"


def _columns(here: Session) -> list[Column]:
    return [
        Column("ID", lambda row: row["id"][-8:]),
        Column("KIND", text("kind")),
        Column("SEVERITY", text("severity")),
        Column("STATE", text("state")),
        Column("ONSET", text("onset_step")),
        Column("AGE", since("opened_at", here.clock.now())),
        Column("SUBJECT", text("subject"), shrinks=True),
        Column("REMEDY", text("remedy"), wide=True),
        Column("RUN", text("run"), wide=True),
        Column("ACKNOWLEDGED BY", text("acknowledged_by"), wide=True),
        Column("VERDICT", text("verdict"), wide=True),
        Column("REASON", text("reason"), wide=True),
    ]


@app.command("ls")
def ls(
    ctx: typer.Context,
    run: Annotated[
        str | None,
        typer.Argument(metavar="[RUN]", help="Default: all runs.", autocompletion=complete_run),
    ] = None,
    open_only: Annotated[
        bool, typer.Option("--open", help="Only incidents that are not resolved.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most incidents listed.")] = 100,
    form: FormatOption = Format.TABLE,
) -> None:
    """List incidents, newest first.

    For example:

        babysit incidents ls --open
        babysit incidents ls tiny-gpt -o wide
    """
    here = session(ctx)
    rows = here.api.get(path("incidents"), run=run, open_only=open_only, limit=limit)
    emit(rows, _columns(here), form, empty="There are no incidents.")


@app.command()
def show(ctx: typer.Context, incident: IncidentArgument, form: FormatOption = Format.TABLE) -> None:
    """Show one incident with its evidence.

    For example:

        babysit incidents show 7K2M9QXA
    """
    found = session(ctx).api.get(path("incidents", incident))
    if form in {Format.TABLE, Format.WIDE}:
        put(to_yaml({key: value for key, value in found.items() if value not in (None, "", {})}))
    else:
        emit(found, [], form)


def _ask(ctx: typer.Context, incident: str, verb: str, form: Format, **body: Any) -> None:
    here = session(ctx)
    after = here.api.post(path("incidents", incident, verb), **body)
    if form is Format.TABLE:
        acknowledged = (
            f", acknowledged by {after['acknowledged_by']}" if after["acknowledged_by"] else ""
        )
        judged = f", judged {after['verdict']}" if after["verdict"] else ""
        say(f"Incident {after['id']} ({after['kind']}) is {after['state']}{acknowledged}{judged}.")
    else:
        emit(after, _columns(here), form)


@app.command()
def export(
    ctx: typer.Context,
    what: Annotated[
        str,
        typer.Argument(
            metavar="INCIDENT|RUN", help="One incident, or all of a run.", show_default=False
        ),
    ],
    markdown: Annotated[  # noqa: ARG001 (so that scripts go on working when there are more formats)
        bool, typer.Option("--md", help="As Markdown, which is the only format.")
    ] = True,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Default: stdout.", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that exists.")] = False,
) -> None:
    """Write the skeleton of a post-mortem: what is recorded is filled in, the rest is asked.

    For example:

        babysit incidents export 7K2M9QXA --md --output review.md
        babysit incidents export tiny-gpt --md
    """
    from orchestrator.cli import post_mortem

    if output is not None and output.exists() and not force:
        message = f"{output} exists, and may have been filled in: choose another, or --force"
        raise CliError(message, ExitCode.REFUSED)
    text = post_mortem.export(session(ctx), what)
    if output is None:
        put(text.rstrip("\n"))
        return
    from orchestrator.cli.report import write

    write(output, text.encode())
    say(f"The post-mortem: {output}")


@app.command()
def ack(ctx: typer.Context, incident: IncidentArgument, form: FormatOption = Format.TABLE) -> None:
    """Acknowledge an incident: someone is looking at it. An `ask` then waits for you.

    For example:

        babysit incidents ack 7K2M9QXA
    """
    _ask(ctx, incident, "acknowledge", form)


@app.command()
def resolve(
    ctx: typer.Context, incident: IncidentArgument, form: FormatOption = Format.TABLE
) -> None:
    """Mark an incident as resolved.

    For example:

        babysit incidents resolve 7K2M9QXA
    """
    _ask(ctx, incident, "resolve", form)


@app.command()
def judge(
    ctx: typer.Context,
    incident: IncidentArgument,
    verdict: Annotated[Verdict, typer.Argument(help="Was the incident handled well?")],
    form: FormatOption = Format.TABLE,
) -> None:
    """Record whether an incident was handled well, so that thresholds can be tuned.

    For example:

        babysit incidents judge 7K2M9QXA wrong
    """
    _ask(ctx, incident, "judge", form, verdict=verdict.value)
