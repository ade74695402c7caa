"""The only place that translates the drivers' errors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from pydantic_core import PydanticSerializationError
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from orchestrator.errors import (
    BabysitError,
    DatabaseFullError,
    DatabaseUnavailableError,
    InvariantError,
    SchemaError,
    UnstorableError,
)

_DIVISION_BY_ZERO = "22012"
_MISSING_RIGHTS = "42501"
_DISK_FULL = "53100"
_MISSING_TABLE = {"UndefinedTable", "UndefinedColumn"}


class NotAsRememberedError(Exception):
    """The database is not what the writer remembers: it must read, and write then."""


def describe(url: URL) -> str:
    """Name a database in messages, without user, password and options."""
    if is_sqlite(url):
        return f"SQLite database {url.database or 'in memory'}"
    port = f":{url.port}" if url.port else ""
    return f"PostgreSQL database {url.database} at {url.host or 'the local socket'}{port}"


def is_sqlite(url: URL) -> bool:
    """True for SQLite, False for PostgreSQL."""
    return url.drivername.startswith("sqlite")


@contextlib.contextmanager
def our_errors(url: URL) -> Iterator[None]:
    """Translate the driver's errors, with the original as cause.

    Raises:
        DatabaseUnavailableError: The connection could not be made, or it broke; or the database
            failed over the statement, for whatever reason. It may do so again, or never.
        InvariantError: A constraint or guard rejected the change, or a value cannot be stored.
        SchemaError: A table or column is missing.
    """
    try:
        yield
    except IntegrityError as error:
        raise InvariantError(f"{describe(url)} refused the change: {_first_line(error)}") from error
    except (UnicodeError, OverflowError, PydanticSerializationError) as error:
        # Raised by the driver itself, for text and numbers that no database takes.
        raise UnstorableError(f"{describe(url)} cannot store a value: {error}") from error
    except (DBAPIError, PoolTimeoutError, OSError) as error:
        raise _ours(url, error) from error


def _ours(url: URL, error: Exception) -> BabysitError:
    """The error of ours for one of the driver's."""
    if _schema_is_missing(error):
        return SchemaError(
            f"{describe(url)}: {_first_line(error)}; run `babysit db upgrade`, and where that"
            " changes nothing, `babysit db check`: it names what differs"
        )
    if sqlstate(error) == _MISSING_RIGHTS:
        return DatabaseUnavailableError(
            f"the user {url.username or 'of this process'} lacks a right in {describe(url)}"
            f" ({_first_line(error)}): have the owner of the tables run `babysit db upgrade`, and"
            " grant the user SELECT, INSERT, UPDATE and DELETE on all tables and USAGE on all"
            " sequences of the schema"
        )
    if _is_full(error):
        return DatabaseFullError(
            f"{describe(url)} has no room left ({_first_line(error)}): free some on its disk"
        )
    if isinstance(error, DBAPIError) and data_at_fault(error):
        return UnstorableError(f"{describe(url)} cannot store a value: {_first_line(error)}")
    return DatabaseUnavailableError(
        f"{describe(url)} does not answer ({_first_line(error)}); try again later"
    )


def wrapped(error: Exception, dialect: Any, connection: Any) -> DBAPIError:
    """SQLAlchemy's error for one that the driver has raised past it."""
    lost = dialect.is_disconnect(error, connection, None)
    made = DBAPIError.instance(
        "COMMIT",
        None,
        error,
        dialect.dbapi.Error,
        hide_parameters=True,
        connection_invalidated=lost,
        dialect=dialect,
    )
    assert isinstance(made, DBAPIError)  # noqa: S101 (for mypy: the driver's error became one)
    return made


def refusal_or_same(error: DBAPIError) -> Exception:
    """NotAsRememberedError for a division by zero, which says so; else the error itself."""
    return NotAsRememberedError() if sqlstate(error) == _DIVISION_BY_ZERO else error


def data_at_fault(error: DBAPIError) -> bool:
    """True if the values cannot be stored, whenever and however often it is tried."""
    return type(error.orig).__name__ == "DataError" or sqlstate(error)[:2] in {"22", "23"}


def _is_full(error: Exception) -> bool:
    """True if SQLite's disk, or PostgreSQL's, is full."""
    return sqlstate(error) == _DISK_FULL or "disk is full" in _first_line(error)


def sqlstate(error: Exception) -> str:
    """PostgreSQL's code of an error; empty: it has none."""
    return str(getattr(getattr(error, "orig", None), "sqlstate", None) or "")


def _schema_is_missing(error: Exception) -> bool:
    cause = getattr(error, "orig", None)
    return type(cause).__name__ in _MISSING_TABLE or str(cause).startswith(
        ("no such table", "no such column")
    )


def _first_line(error: Exception) -> str:
    text = str(getattr(error, "orig", None) or error).strip()
    return text.splitlines()[0] if text else type(error).__name__
