"""`babysit queues`: where runs wait, and how much each queue may use."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from orchestrator.cli.client import path
from orchestrator.cli.errors import CliError, ExitCode
from orchestrator.cli.output import Column, Format, FormatOption, emit, say, text
from orchestrator.cli.session import session

app = typer.Typer(no_args_is_help=True, help="Where runs wait, and how much each may use.")
COLUMNS = [
    Column("QUEUE", text("name")),
    Column("GPUS", lambda row: "no limit" if row["gpus"] is None else str(row["gpus"])),
    Column("USED", text("used_gpus")),
    Column("COHORT", lambda row: row["cohort"] or "-"),
    Column("QUEUED", text("queued")),
    Column("ACTIVE", text("active")),
    Column("BORROWS", lambda row: _limit(row["borrowing_limit"]), wide=True),
    Column("LENDS", lambda row: _limit(row["lending_limit"]), wide=True),
    Column(
        "WEIGHTS",
        lambda row: ", ".join(f"{k}={v:g}" for k, v in row["weights"].items()) or "-",
        wide=True,
    ),
]
Limit = Annotated[str | None, typer.Option(metavar="N|none")]


def _limit(value: int | None) -> str:
    return "no limit" if value is None else str(value)


@app.command("ls")
def ls(ctx: typer.Context, form: FormatOption = Format.TABLE) -> None:
    """List queues.

    For example:

        babysit queues ls
    """
    rows = session(ctx).api.get(path("queues"))
    emit(rows, COLUMNS, form, name="name", empty="There are no queues.")


@app.command("set")
def change(  # noqa: PLR0913, PLR0917 (a command has its options)
    ctx: typer.Context,
    queue: Annotated[str, typer.Argument(metavar="QUEUE", help="One that is new is made.")],
    gpus: Annotated[str | None, typer.Option(metavar="N|none", help="Nominal quota.")] = None,
    cohort: Annotated[
        str | None, typer.Option(metavar="NAME|none", help="Queues of one cohort lend each other.")
    ] = None,
    borrowing_limit: Annotated[
        str | None, typer.Option(metavar="N|none", help="GPUs above its quota, at most.")
    ] = None,
    lending_limit: Annotated[
        str | None, typer.Option(metavar="N|none", help="GPUs of its own that others may borrow.")
    ] = None,
    weight: Annotated[
        list[str] | None, typer.Option(metavar="PROJECT=N", help="A project's share; 1 otherwise.")
    ] = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """Set a queue's quota. What is not named stays; `none` takes a limit away.

    For example:

        babysit queues set research --gpus 512 --cohort all --borrowing-limit 128

        babysit queues set default --weight llm=3 --weight vision=1
    """
    given: dict[str, Any] = {
        "gpus": _number("gpus", gpus),
        "borrowing_limit": _number("borrowing-limit", borrowing_limit),
        "lending_limit": _number("lending-limit", lending_limit),
        "cohort": None if cohort == "none" else cohort,
    }
    named = {
        "gpus": gpus,
        "borrowing_limit": borrowing_limit,
        "lending_limit": lending_limit,
        "cohort": cohort,
    }
    body = {key: given[key] for key, value in named.items() if value is not None}
    if weight:
        body["weights"] = dict(_weight(each) for each in weight)
    if not body:
        raise CliError("nothing to set: give --gpus, --cohort, … (see --help)", ExitCode.USAGE)
    after = session(ctx).api.patch(path("queues", queue), **body)
    emit(after, COLUMNS, form, name="name")
    if form is Format.TABLE:
        say(f"Queue {queue} is set.")


def _number(option: str, value: str | None) -> int | None:
    if value is None or value == "none":
        return None
    if not value.isdigit():
        raise CliError(
            f"--{option}: expected a whole number or none, got {value!r}", ExitCode.USAGE
        )
    return int(value)


def _weight(text_: str) -> tuple[str, float]:
    project, _, value = text_.partition("=")
    try:
        return project, float(value)
    except ValueError:
        message = f"--weight: expected PROJECT=NUMBER, got {text_!r}"
        raise CliError(message, ExitCode.USAGE) from None
