"""`babysit queues`: quotas of GPUs, and the runs that wait for them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from orchestrator.cli.errors import CliError, ExitCode
from orchestrator.cli.output import Column, Format, FormatOption, Row, conclude, emit, say, text
from orchestrator.cli.paths import path
from orchestrator.cli.session import session

app = typer.Typer(no_args_is_help=True, help="Quotas of GPUs, and the runs that wait for them.")
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
    queue: Annotated[str, typer.Argument(metavar="QUEUE", help="Created if it does not exist.")],
    gpus: Annotated[str | None, typer.Option(metavar="N|none", help="Quota of GPUs.")] = None,
    cohort: Annotated[
        str | None,
        typer.Option(metavar="NAME|none", help="Queues of a cohort lend GPUs."),
    ] = None,
    borrowing_limit: Annotated[
        str | None, typer.Option(metavar="N|none", help="Most GPUs above the quota.")
    ] = None,
    lending_limit: Annotated[
        str | None,
        typer.Option(metavar="N|none", help="Most GPUs lent to others."),
    ] = None,
    weight: Annotated[
        list[str] | None, typer.Option(metavar="PROJECT=N", help="Share of a project. Default: 1.")
    ] = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """Set the quota of a queue. Options not given stay; `none` removes a limit.

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
        raise CliError(
            "nothing to set: expected an option such as --gpus or --cohort (see --help)",
            ExitCode.USAGE,
        )
    after = session(ctx).api.patch(path("queues", queue), **body)
    if form is Format.TABLE:
        say(_quota_words(after))
    else:
        emit(after, COLUMNS, form, name="name")


def _quota_words(queue: Row) -> str:
    """Everything that a person can set of a queue, as it is now."""
    parts = [f"{_limit(queue['gpus'])} GPUs" if queue["gpus"] is not None else "no limit of GPUs"]
    if queue["cohort"]:
        parts.append(f"cohort {queue['cohort']}")
        parts.append(f"borrows at most: {_limit(queue['borrowing_limit'])}")
        parts.append(f"lends at most: {_limit(queue['lending_limit'])}")
    parts += [f"weight of {project}: {weight:g}" for project, weight in queue["weights"].items()]
    return f"Queue {queue['name']}: {', '.join(parts)}."


@app.command()
def rm(
    ctx: typer.Context,
    queue: Annotated[str, typer.Argument(metavar="QUEUE", help="As shown by `babysit queues ls`.")],
    form: FormatOption = Format.TABLE,
) -> None:
    """Remove a queue. Refused (4) while runs use the queue, and for `default`.

    For example:

        babysit queues rm research
    """
    session(ctx).api.delete(path("queues", queue))
    conclude({"name": queue}, form, said=f"Removed the queue {queue}.", name="name")


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
