"""Data on stdout, in the format asked for; everything else on stderr. Colour on a terminal only.

A table fits the terminal (80 columns where there is none): its free text is shortened, with `…`.
`-o wide` shows more columns and shortens nothing; the other formats are for programs.
"""

from __future__ import annotations

import datetime as dt
import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any, NamedTuple

import typer

from orchestrator.cli.terminal import cut, padded, width
from orchestrator.core.text import visible, words

Row = Mapping[str, Any]


class Format(StrEnum):
    """How data is printed."""

    TABLE = "table"  # fits the terminal
    WIDE = "wide"  # more columns, nothing shortened
    JSON = "json"  # the API's schema
    YAML = "yaml"
    NAME = "name"  # ids or names only, one per line


FormatOption = Annotated[
    Format, typer.Option("-o", "--output", help="Output format.", show_choices=True)
]


class Column(NamedTuple):
    """One column of a table."""

    title: str
    cell: Callable[[Row], str]
    wide: bool = False
    """Shown with `-o wide` only."""
    shrinks: bool = False
    """Free text: shortened where the table would be wider than the terminal."""


_COLOURS = {
    "running": typer.colors.GREEN,
    "succeeded": typer.colors.GREEN,
    "ready": typer.colors.GREEN,
    "good": typer.colors.GREEN,
    "resolved": typer.colors.GREEN,
    "verified": typer.colors.GREEN,
    "recovering": typer.colors.YELLOW,
    "starting": typer.colors.YELLOW,
    "queued": typer.colors.YELLOW,
    "held": typer.colors.YELLOW,
    "mitigating": typer.colors.YELLOW,
    "cordoned": typer.colors.YELLOW,
    "draining": typer.colors.YELLOW,
    "warning": typer.colors.YELLOW,
    "failed": typer.colors.RED,
    "bad": typer.colors.RED,
    "critical": typer.colors.RED,
    "open": typer.colors.RED,
    "gone": typer.colors.RED,
}


_SHORTEST = 6
"""A column is not shortened below this many characters."""


def say(message: str) -> None:
    """Print a message for the person at the keyboard, on stderr."""
    typer.echo(visible(message), err=True)


def put(text: str) -> None:
    """Print data: on stdout."""
    typer.echo(visible(text, colour=coloured()))


def emit(
    data: Any, columns: Sequence[Column], form: Format, *, name: str = "id", empty: str = ""
) -> None:
    """Print a list of rows, or one row, in the format `form`.

    Args:
        data: The API's answer, unchanged.
        columns: Used by the formats table and wide.
        form: The format.
        name: The field that names a row.
        empty: Printed on stderr when there are no rows.
    """
    rows = data if isinstance(data, list) else [data]
    if form is Format.JSON:
        put(json.dumps(data, indent=2))
    elif form is Format.YAML:
        put(to_yaml(data))
    elif form is Format.NAME:
        for row in rows:
            put(_in_one_line(str(row[name])))
    elif rows:
        put(table(rows, columns, wide=form is Format.WIDE))
    elif empty:
        say(empty)


class Stream:
    """Prints rows that come one after the other, in a form that can be read while they come.

    JSON is one object per line, YAML one document per row, a table has one head.
    """

    def __init__(self, columns: Sequence[Column], form: Format) -> None:
        self._columns, self._form = columns, form
        self._begun = False

    def emit(self, rows: Sequence[Row]) -> None:
        """Print rows."""
        for row in rows if self._form in {Format.JSON, Format.YAML} else ():
            put(json.dumps(row) if self._form is Format.JSON else f"---\n{to_yaml(row)}")
        if self._form is Format.NAME:
            emit(list(rows), self._columns, self._form)
        elif rows and self._form in {Format.TABLE, Format.WIDE}:
            lines = table(rows, self._columns, wide=self._form is Format.WIDE).split("\n")
            put("\n".join(lines[self._begun :]))
            self._begun = True
        sys.stdout.flush()


def conclude(data: Row, form: Format, *, said: str, name: str = "id") -> None:
    """Report what a command has done: a sentence on stderr, or data in the format asked for."""
    if form in {Format.TABLE, Format.WIDE}:
        say(said)
    else:
        emit(data, [], form, name=name)


def to_yaml(data: Any) -> str:
    """YAML in block style."""
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe")
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    stream = io.StringIO()
    yaml.dump(data, stream)
    return stream.getvalue().removesuffix("...\n").rstrip("\n")


def table(rows: Sequence[Row], columns: Sequence[Column], *, wide: bool = False) -> str:
    """Aligned columns under their titles, no wider than the terminal unless `wide`.

    A table whose other columns alone are too wide stays too wide: only free text is shortened.
    """
    shown = [column for column in columns if wide or not column.wide]
    cells = [[_in_one_line(column.cell(row)) for column in shown] for row in rows]
    titles = [column.title for column in shown]
    widths = [max(map(width, column)) for column in zip(titles, *cells, strict=True)]
    if not wide:
        _shrink(widths, [column.shrinks for column in shown])
    lines = [_line(titles, widths)]
    lines += [_line(line, widths, colour=True) for line in cells]
    return "\n".join(lines)


def _shrink(widths: list[int], shrinks: Sequence[bool]) -> None:
    """Take from the widest column of free text until all fit the terminal."""
    room = shutil.get_terminal_size().columns - 2 * (len(widths) - 1)
    while sum(widths) > room:
        widest = max(
            (i for i, may in enumerate(shrinks) if may), key=lambda i: widths[i], default=-1
        )
        if widest < 0 or widths[widest] <= _SHORTEST:
            return
        widths[widest] -= 1


def _in_one_line(text: str) -> str:
    """A cell without controls and ends of lines: a name cannot forge a row."""
    return visible(text).replace("\n", "\\n").replace("\t", " ")


def _line(cells: Sequence[str], widths: Sequence[int], *, colour: bool = False) -> str:
    fitted = [padded(cut(cell, most), most) for cell, most in zip(cells, widths, strict=True)]
    fitted[-1] = fitted[-1].rstrip()
    if colour and coloured():
        fitted = [_styled(cell) for cell in fitted]
    return "  ".join(fitted).rstrip()


def coloured() -> bool:
    """True if stdout is a terminal, and colour is not turned off (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def _styled(cell: str) -> str:
    colour = _COLOURS.get(cell.strip())
    return typer.style(cell, fg=colour) if colour else cell


# cells


def text(field: str) -> Callable[[Row], str]:
    """A field unchanged; `-` when it is empty."""

    def cell(row: Row) -> str:
        value = row.get(field)
        return "-" if value is None or value == "" else str(value)

    return cell


def known_step(run: Row) -> str:
    """The newest step of a run; `-` if its script neither reports steps nor prints them."""
    return str(run["step"]) if run.get("reports", True) else "-"


def step_words(run: Row) -> str:
    """`step 57`, for a sentence."""
    return f"step {known_step(run)}" if run.get("reports", True) else "a step that is not known"


def number(field: str, pattern: str = "{:.4g}") -> Callable[[Row], str]:
    """A number; `-` when there is none."""

    def cell(row: Row) -> str:
        return "-" if row.get(field) is None else pattern.format(row[field])

    return cell


def share(field: str) -> Callable[[Row], str]:
    """A ratio as a percentage."""
    return number(field, "{:.0%}")


def duration(field: str) -> Callable[[Row], str]:
    """Seconds in words."""

    def cell(row: Row) -> str:
        return "-" if row.get(field) is None else words(float(row[field]))

    return cell


def since(field: str, now: dt.datetime) -> Callable[[Row], str]:
    """The time since a moment, in words."""

    def cell(row: Row) -> str:
        if row.get(field) is None:
            return "-"
        return words(max(0.0, (now - dt.datetime.fromisoformat(row[field])).total_seconds()))

    return cell


def size(field: str) -> Callable[[Row], str]:
    """Bytes, in binary units."""

    def cell(row: Row) -> str:
        return human_bytes(row.get(field))

    return cell


def human_bytes(count: float | None) -> str:
    """`512 B`, `1.5 KiB`, `2.0 GiB`."""
    if count is None:
        return "-"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def moment(at: str | dt.datetime, *, since: dt.datetime | None = None) -> str:
    """`2026-11-29 03:12:07`, in UTC.

    Args:
        at: A time; text is in ISO format.
        since: The begin of a story that prints many times. Within its first day, the clock is
            enough: `03:12:07`; later times have their date and zone: `2026-11-29 03:12:07Z`.
    """
    when = (at if isinstance(at, dt.datetime) else dt.datetime.fromisoformat(at)).astimezone(dt.UTC)
    if since is not None and when - since < dt.timedelta(days=1):
        return f"{when:%H:%M:%S}"
    return f"{when:%Y-%m-%d %H:%M:%S}" + ("" if since is None else "Z")
