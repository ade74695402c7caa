"""`babysit audit`: who did what, and what came of it."""

from __future__ import annotations

import datetime as dt
import json
from typing import Annotated, Any

import typer

from orchestrator.cli.output import Column, Format, FormatOption, Row, emit, text
from orchestrator.cli.paths import path
from orchestrator.cli.session import Session, seconds_of, session

_PAGE = 1000


def audit(  # noqa: PLR0913, PLR0917 (a command has its options)
    ctx: typer.Context,
    run: Annotated[str | None, typer.Option(help="Only about this run.")] = None,
    actor: Annotated[str | None, typer.Option(help="Only by this caller.")] = None,
    action: Annotated[
        str | None, typer.Option(help="Only this operation: runs_cancel, or runs for all of them.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="7d|2026-11-01", help="Only within this time, or since.")
    ] = None,
    until: Annotated[
        str | None, typer.Option(metavar="1d|2026-11-02", help="Only before this time.")
    ] = None,
    tail: Annotated[int, typer.Option(min=1, help="The newest entries.")] = 100,
    form: FormatOption = Format.TABLE,
) -> None:
    """Show who did what: each call that may change something, refused ones too. Times are UTC.

    Needs the role operator. `-o wide` shows what changed, `-o json` every field.

    For example:

        babysit audit --since 1d
        babysit audit --run tiny-gpt --action runs
        babysit audit --actor mia -o json
    """
    here = session(ctx)
    wanted = {"run": run, "actor": actor, "action": action}
    times = {"since": moment(here, "--since", since), "until": moment(here, "--until", until)}
    rows: list[Any] = []
    while len(rows) < tail:
        before = rows[0]["position"] if rows else None
        limit = min(_PAGE, tail - len(rows))
        page = here.api.get(path("audit"), **wanted, **times, before=before, limit=limit)
        rows = page + rows
        if len(page) < limit:
            break
    emit(rows, _COLUMNS, form, name="id", empty="The audit log has no such entries.")


def moment(here: Session, option: str, value: str | None) -> str | None:
    """A time given as an age (7d) or as a date (2026-11-01, or with a time of day, UTC).

    Raises:
        CliError: It is neither.
    """
    if value is None:
        return None
    try:
        found = dt.datetime.fromisoformat(value)
    except ValueError:
        return (here.clock.now() - dt.timedelta(seconds=seconds_of(option, value))).isoformat()
    return (found if found.tzinfo else found.replace(tzinfo=dt.UTC)).isoformat()


def _time(row: Row) -> str:
    return str(row["at"])[:19].replace("T", " ")


def _who(row: Row) -> str:
    name = row["actor"] or "-"
    return f"{name} ({row['via']})" if row["via"] not in {"", "token"} else name


def _about(row: Row) -> str:
    """The thing as the call names it; of a new run, its name."""
    made = row["after"].get(f"run {row['run']}", {}).get("name")
    return str(row["target"] or made or row["run"] or "-")


def _why(row: Row) -> str:
    return row["detail"] or row["reason"] or "-"


def _changes(row: Row) -> str:
    """`node node-1: state ready -> cordoned`."""
    words = []
    for thing in sorted({*row["before"], *row["after"]}):
        old, new = row["before"].get(thing, {}), row["after"].get(thing, {})
        fields = ", ".join(
            f"{key} {_short(old.get(key))} -> {_short(new.get(key))}"
            for key in sorted({*old, *new})
        )
        words.append(f"{thing}: {fields}")
    return "; ".join(words) or "-"


def _short(value: object) -> str:
    said = value if isinstance(value, str) else json.dumps(value)
    return said if len(said) <= 60 else f"{said[:57]}..."


_COLUMNS = [
    Column("TIME", _time),
    Column("WHO", _who),
    Column("ROLE", text("role")),
    Column("ACTION", text("action")),
    Column("ON", _about),
    Column("OUTCOME", text("outcome")),
    Column("WHY", _why),
    Column("CHANGED", _changes, wide=True),
]
