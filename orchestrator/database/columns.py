"""Column types that behave alike on SQLite and PostgreSQL."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from enum import StrEnum

from sqlalchemy import BigInteger, CheckConstraint, DateTime, Dialect, Integer, TypeDecorator

BigKey = BigInteger().with_variant(Integer, "sqlite")
"""An automatic 64-bit key; SQLite numbers rows only in a column of type INTEGER."""


class UtcDateTime(TypeDecorator[dt.datetime]):
    """A UTC time with microseconds on both databases. Naive times are rejected."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(
        self,
        value: dt.datetime | None,
        dialect: Dialect,  # noqa: ARG002 (theirs)
    ) -> dt.datetime | None:
        """Convert to UTC for the driver.

        Raises:
            ValueError: The time has no zone.
        """
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value.isoformat()} has no time zone; give times in UTC")
        return value.astimezone(dt.UTC)

    def process_result_value(
        self,
        value: dt.datetime | None,
        dialect: Dialect,  # noqa: ARG002 (theirs)
    ) -> dt.datetime | None:
        """Convert to UTC: SQLite returns no zone, PostgreSQL the zone of the session."""
        if value is None:
            return None
        return value.replace(tzinfo=dt.UTC) if value.tzinfo is None else value.astimezone(dt.UTC)


def one_of(column: str, words: Iterable[StrEnum]) -> CheckConstraint:
    """A CHECK constraint: the column holds a value of the enum."""
    listed = ", ".join(f"'{word.value}'" for word in words)
    return CheckConstraint(f"{column} IN ({listed})", name=column)
