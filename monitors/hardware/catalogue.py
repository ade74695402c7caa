"""The catalogue of signs that a machine gives, and of actions on them, as data.

The problem: NVIDIA, gpud, NVSentinel and Meta disagree about the same Xid, drivers change their
words, and a site knows better about its own machines. So neither signs nor thresholds nor actions
are code. The design: `monitors/hardware/rules/*.yaml` holds the rows that come with babysit, each
with its source and an example of what it finds and of what it does not; a cluster puts a file of
changes over them. This module describes and compiles rows; it reads no files.

Limits: a row sees one line, or one series of readings of one device, at a time. What needs to be
known of the runs on the node (`runs`) is for the core.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from monitors import patterns
from monitors.failures import FailureClass
from monitors.hardware.types import NodeAction
from monitors.types import Severity


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class When(_Model):
    """The condition on one series of readings. Exactly one kind of threshold is given."""

    above: float | None = Field(default=None, description="The reading is above this.")
    below: float | None = Field(default=None, description="The reading is below this.")
    beyond: float | None = Field(default=None, description="Its amount is above this, either way.")
    equals: tuple[float, ...] | None = Field(
        default=None, min_length=1, description="The reading is one of these."
    )
    below_reading: str | None = Field(
        default=None, description="The reading is below another one of the same device."
    )
    ratio: float = Field(
        default=1, gt=0, description="The other reading is multiplied by this first."
    )
    fell: bool = Field(default=False, description="It is below its highest value since the boot.")
    increase: float | None = Field(
        default=None, gt=0, description="A counter rose by at least this within `window_seconds`."
    )
    reaches: float | None = Field(
        default=None, description="A straight line reaches this within `within_seconds`."
    )
    for_seconds: float = Field(
        default=0, ge=0, description="The condition must have held for this time; s."
    )
    comes_back: bool = Field(
        default=False, description="Counts once the condition held for that time and ended: a flap."
    )
    share: float | None = Field(
        default=None, gt=0, le=1, description="Held in this share of readings in `window_seconds`."
    )
    window_seconds: float = Field(default=600, gt=0, description="s.")
    within_seconds: float = Field(default=0, ge=0, description="Horizon of `reaches`; s.")

    @model_validator(mode="after")
    def _is_one_condition(self) -> When:
        kinds = [self.above, self.below, self.beyond, self.equals, self.below_reading]
        given = [kind for kind in (*kinds, self.increase, self.reaches) if kind is not None]
        if len(given) + self.fell != 1:
            raise ValueError(
                "expected exactly one of above, below, beyond, equals, below_reading, fell,"
                " increase and reaches"
            )
        return self


ANY_XID = 0
"""The number of the row for Xids that no row names."""

Point = tuple[float, float] | tuple[float, float, float]
"""Seconds, the reading, and the other reading of `below_reading`."""


def _lines(value: object) -> object:
    if isinstance(value, str):
        return tuple(line for line in value.splitlines() if line.strip())
    return value


class Row(_Model):
    """One row of the catalogue: a sign, and what is done about it."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$", description="Name of the row.")
    says: str = Field(min_length=1, description="What the sign means, in words for people.")
    source: str = Field(min_length=1, description="Who says so; where the threshold comes from.")
    severity: Severity = Severity.WARNING
    action: NodeAction = Field(description="What is done to the node.")
    failure_class: FailureClass = Field(
        default=FailureClass.GPU_HARDWARE,
        alias="class",
        description="What a run dies of whose end the sign explains.",
    )
    xid: int | None = Field(default=None, description="Number of an Xid of the NVIDIA driver.")
    line: Annotated[tuple[str, ...], BeforeValidator(_lines)] = Field(
        default=(),
        description="Regular expressions for a line of the kernel's log, one a line; of an Xid:"
        " for what follows its number.",
    )
    unless: str | None = Field(default=None, description="Must not occur in the line.")
    reading: str | None = Field(default=None, description="Name of a reading.")
    sources: tuple[str, ...] = Field(default=(), description="Of these sources only; none: of any.")
    when: When | None = Field(default=None, description="The condition on the reading.")
    boot: bool = Field(default=False, description="The machine was started anew.")
    times: int = Field(
        default=1, ge=1, le=1000, description="Needed on one device within `window_hours`."
    )
    window_hours: float = Field(default=24, gt=0, description="h.")
    runs: int = Field(
        default=1, ge=1, le=20, description="Different runs that must have met it on the device."
    )
    shadow: bool = Field(default=False, description="Record what would be done, and do nothing.")
    examples: tuple[str | tuple[Point, ...], ...] = Field(
        default=(), description="Lines, or series of readings, that the row must find."
    )
    counterexamples: tuple[str | tuple[Point, ...], ...] = Field(
        default=(), description="Lines, or series, that it must not find."
    )

    @field_validator("line", "unless")
    @classmethod
    def _are_patterns(cls, value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        patterns.check(value)
        return value

    @model_validator(mode="after")
    def _has_one_sign(self) -> Row:
        line = self.xid is not None or bool(self.line)
        if line + (self.reading is not None) + self.boot != 1:
            raise ValueError("expected exactly one sign: xid or line, reading, or boot")
        if (self.when is None) != (self.reading is None):
            raise ValueError("a reading needs `when`, the condition on it; nothing else has one")
        return self


class Change(_Model):
    """A site's changes of one row; what is not given stays."""

    action: NodeAction | None = None
    severity: Severity | None = None
    failure_class: FailureClass | None = Field(default=None, alias="class")
    when: dict[str, Any] | None = Field(default=None, description="Thresholds by name.")
    times: int | None = None
    window_hours: float | None = None
    runs: int | None = None
    shadow: bool | None = None
    unless: str | None = None


class RowFile(_Model):
    """One file of rows: babysit's own have `rows`; a site's may change some by id."""

    rows: tuple[Row, ...] = Field(default=(), description="New rows, asked before babysit's own.")
    change: dict[str, Change] = Field(
        default_factory=dict, description="Changes by the id of the row; `*`: of all rows."
    )

    @model_validator(mode="after")
    def _is_not_empty(self) -> RowFile:
        if not (self.rows or self.change):
            raise ValueError("holds no row: give `rows` or `change` (docs/monitors.md, Hardware)")
        return self


class Catalogue:
    """Rows in the order in which they are asked: a site's, then babysit's own.

    Raises:
        ValueError: Two rows have one id, or a change names a row that does not exist.
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows: dict[str, Row] = {}
        for row in rows:
            if row.id in self.rows:
                raise ValueError(f"two rows are called {row.id}")
            self.rows[row.id] = row
        self.xids: dict[int, list[Row]] = {}
        self.lines: list[tuple[Row, re.Pattern[str]]] = []
        self.readings: dict[str, list[tuple[Row, When]]] = {}
        self.details: dict[str, re.Pattern[str]] = {}
        self.unless: dict[str, re.Pattern[str]] = {}
        self.boots = [row for row in self.rows.values() if row.boot]
        for row in self.rows.values():
            self._index(row)
        whens = [row.when for row in self.rows.values() if row.when is not None]
        self.others = {when.below_reading for when in whens if when.below_reading is not None}
        """Readings that others are compared with."""

    def _index(self, row: Row) -> None:
        if row.unless:
            self.unless[row.id] = re.compile(row.unless, re.IGNORECASE)
        if row.xid is not None:
            self.xids.setdefault(row.xid, []).append(row)
            if row.line:
                self.details[row.id] = _one_of(row.line)
        elif row.line:
            self.lines.append((row, _one_of(row.line)))
        elif row.reading is not None and row.when is not None:
            self.readings.setdefault(row.reading, []).append((row, row.when))

    def changed(self, file: RowFile) -> Catalogue:
        """With the rows of a site before these, and its changes.

        Raises:
            ValueError: A change names no row (the message has the nearest), or the row that
                follows from it is not valid.
        """
        new = [row for row in file.rows if row.id not in self.rows]
        replaced = {row.id: row for row in file.rows if row.id in self.rows}
        rows = {row.id: row for row in (*new, *self.rows.values())} | replaced
        for id_, change in sorted(file.change.items(), key=lambda item: item[0] != "*"):
            if id_ != "*" and id_ not in rows:
                near = difflib.get_close_matches(id_, rows, n=3, cutoff=0.5)
                hint = f"did you mean {' or '.join(near)}?" if near else "see docs/monitors.md"
                raise ValueError(f"change.{id_}: no row is called so; {hint}")
            for each in rows if id_ == "*" else (id_,):
                rows[each] = _changed(rows[each], change)
        return Catalogue(rows.values())

    def is_ruled_out(self, row: Row, text: str) -> bool:
        """True if a line holds what must not occur in lines of this row."""
        unless = self.unless.get(row.id)
        return unless is not None and unless.search(text) is not None

    def rows_of_xid(self, code: int) -> list[Row]:
        """The rows that speak of an Xid, in the order in which they are asked."""
        return self.xids.get(code) or self.xids.get(ANY_XID, [])


def _one_of(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{each})" for each in patterns), re.IGNORECASE)


def _changed(row: Row, change: Change) -> Row:
    new: dict[str, Any] = change.model_dump(exclude_none=True)
    if row.when is not None and change.when is not None:
        new["when"] = row.when.model_dump(exclude_defaults=True) | change.when
    elif change.when is not None:
        raise ValueError(f"change.{row.id}.when: the row has no readings")
    try:
        return Row.model_validate(row.model_dump() | new)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(each) for each in first["loc"])
        raise ValueError(f"change.{row.id}.{where}: {first['msg']}") from error


def _said(value: object) -> str:
    if isinstance(value, tuple):
        return " or ".join(f"{each:g}" for each in value)
    return f"{value:g}" if isinstance(value, float) else f"{value}"


Kind = Literal["xid", "line", "reading", "boot"]


def kind_of(row: Row) -> Kind:
    """The kind of sign of a row."""
    if row.xid is not None:
        return "xid"
    if row.line:
        return "line"
    return "reading" if row.reading is not None else "boot"


def sign(row: Row) -> str:
    """The sign of a row in words, with its thresholds."""
    if row.xid == ANY_XID:
        return "an Xid without a row"
    if row.xid is not None:
        return f"Xid {row.xid}" + (f" with `{'`, `'.join(row.line)}`" if row.line else "")
    if row.boot:
        return "another boot id"
    if row.when is None:
        return "a line of the kernel's log"
    return f"`{row.reading}` {condition(row.when)}"


def condition(when: When) -> str:
    """A condition on readings in words."""
    words: Mapping[str, str] = {
        "above": "above {}",
        "below": "below {}",
        "beyond": "more than {} away from 0",
        "equals": "{}",
        "below_reading": f"below {when.ratio:g} times `{{}}`" if when.ratio != 1 else "below `{}`",
        "increase": f"rises by {{}} within {when.window_seconds:g} s",
        "reaches": f"reaches {{}} within {when.within_seconds:g} s as it goes",
    }
    given = [
        text.format(_said(value))
        for name, text in words.items()
        if (value := getattr(when, name)) is not None
    ]
    text = given[0] if given else "below its highest since the boot"
    if when.share is not None:
        return f"{text} in {when.share:.0%} of {when.window_seconds:g} s"
    if when.for_seconds:
        text = f"{text} for {when.for_seconds:g} s"
    return f"{text}, then back" if when.comes_back else text
