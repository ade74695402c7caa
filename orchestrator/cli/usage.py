"""`babysit usage`: GPU-hours by project, queue, user, cause or run."""

from __future__ import annotations

import csv
import io
from enum import StrEnum
from typing import Annotated, Any

import typer

from orchestrator.cli.audit import moment
from orchestrator.cli.output import Column, Format, Row, emit, put, say
from orchestrator.cli.paths import path
from orchestrator.cli.session import session


class Key(StrEnum):
    """The keys by which usage is summed."""

    PROJECT = "project"
    QUEUE = "queue"
    USER = "user"
    CAUSE = "cause"
    RUN = "run"


class Form(StrEnum):
    """How usage is printed."""

    TABLE = "table"
    JSON = "json"  # the API's schema
    YAML = "yaml"
    CSV = "csv"  # one line a key, a header, hours with all digits
    NAME = "name"  # keys only


_USES = ("productive", "checkpointing", "unknown", "starting", "waiting", "stopping")


def usage(
    ctx: typer.Context,
    by: Annotated[Key, typer.Option(help="What to sum by.")] = Key.PROJECT,
    since: Annotated[
        str, typer.Option(metavar="30d|2026-11-01", help="Only within this time, or since.")
    ] = "30d",
    until: Annotated[
        str | None, typer.Option(metavar="1d|2026-12-01", help="Only before this time.")
    ] = None,
    form: Annotated[Form, typer.Option("-o", "--output", help="How to print it.")] = Form.TABLE,
) -> None:
    """Show the GPU-hours that runs held, and what they were spent on. Times are UTC.

    Runs that are not over are counted up to now; those that the period cuts, for their part in it.

    For example:

        babysit usage --by user --since 7d
        babysit usage --by cause --since 2026-11-01 --until 2026-12-01
        babysit usage --by run -o csv
    """
    here = session(ctx)
    found = here.api.get(
        path("usage"),
        by=by.value,
        since=moment(here, "--since", since),
        until=moment(here, "--until", until),
    )
    if form is Form.CSV:
        put(_csv(found).rstrip("\n"))
    elif form is Form.TABLE:
        rows = found["rows"]
        total = [{**found["total"], "key": "total"}] if rows else []
        columns = _columns(by)
        emit(rows + total, columns, Format.TABLE, empty="No run held a node in that time.")
        say(f"From {_minute(found['since'])} to {_minute(found['until'])} UTC.")
    elif form is Form.NAME:
        emit(found["rows"], [], Format.NAME, name="key")
    else:
        emit(found, [], Format(form.value))


def _columns(by: Key) -> list[Column]:
    shared = [
        Column(by.value.upper(), lambda row: str(row.get("name") or row["key"] or "-")),
        Column("RUNS", lambda row: str(row["runs"])),
        Column("GPU-HOURS", lambda row: f"{row['gpu_hours']:,.2f}"),
        Column("NODE-HOURS", lambda row: f"{row['node_hours']:,.2f}"),
    ]
    if by is Key.CAUSE:
        return shared
    return [
        *shared,
        Column("PRODUCTIVE", lambda row: _share(row, row["causes"].get("productive", 0.0))),
        Column("LOST", lambda row: _share(row, _lost(row))),
        Column("OTHER", lambda row: _share(row, _other(row))),
    ]


def _share(row: Row, hours: float) -> str:
    return f"{hours / row['gpu_hours']:.1%}" if row["gpu_hours"] else "-"


def _lost(row: Row) -> float:
    return float(sum(h for use, h in row["causes"].items() if use.startswith("lost: ")))


def _other(row: Row) -> float:
    return float(row["gpu_hours"] - row["causes"].get("productive", 0.0) - _lost(row))


def _minute(time: str) -> str:
    return time[:16].replace("T", " ")


def _csv(found: dict[str, Any]) -> str:
    """One line a key; the uses have columns, and all losses one."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow([found["by"], "name", "runs", "gpu_hours", "node_hours", *_USES, "lost"])
    for row in found["rows"]:
        uses = [repr(row["causes"].get(use, 0.0)) for use in _USES]
        hours = [repr(row["gpu_hours"]), repr(row["node_hours"])]
        words = [_plain(row["key"]), _plain(row["name"] or "")]
        lines.writerow([*words, row["runs"], *hours, *uses, repr(_lost(row))])
    return text.getvalue()


def _plain(word: str) -> str:
    """A word that no spreadsheet takes for a formula."""
    return f"'{word}" if word[:1] in {"=", "+", "-", "@"} else word
