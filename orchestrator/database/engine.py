"""Connections: URLs, settings, and the kinds of transactions."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from typing import Any

from pydantic_core import from_json, to_json
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

from orchestrator.database.driver_errors import (
    data_at_fault,
    is_sqlite,
    our_errors,
    refusal_or_same,
    wrapped,
)
from orchestrator.database.time_limits import ServerLimits, TransactionLimit
from orchestrator.errors import (
    InvalidError,
)

_DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "sqlite+aiosqlite": "sqlite+aiosqlite",
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}
_BUSY_SECONDS = 60
"""Seconds for which a SQLite writer waits for another writer's transaction."""
_POSTGRES_SETTINGS: dict[str, Any] = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 2,
    "tcp_user_timeout": 9_000,  # milliseconds: detect a vanished host instead of waiting
    # Statements prepared by the server break when a migration changes a table under them, or a
    # pooler gives the next transaction another connection.
    "prepare_threshold": None,
}
_SQLITE_PRAGMAS = (
    f"PRAGMA busy_timeout={_BUSY_SECONDS * 1000}",
    "PRAGMA synchronous=NORMAL",
    "PRAGMA foreign_keys=ON",
)
_WAL_ATTEMPTS = 50
READERS = 8
"""Transactions of people's requests at a time, on connections of their own. The controller has
others, so that no crowd of clients keeps a turn or a renewal of the lease waiting."""


def database_url(url: str) -> URL:
    """Add the asynchronous driver to `sqlite:///path` or `postgresql://…`.

    Raises:
        InvalidError: The text is not a URL of these two kinds. The message holds no secret.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise InvalidError(
            "the database URL cannot be read; expected sqlite:///path or postgresql://user@host/name"
        ) from None  # the cause would quote the URL with its password
    if parsed.drivername not in _DRIVERS:
        raise InvalidError(
            f"no support for {parsed.drivername} databases; expected sqlite:///path or "
            "postgresql://user@host/name"
        )
    return parsed.set(drivername=_DRIVERS[parsed.drivername])


def in_memory(url: URL) -> bool:
    """True if the database ends with its connection."""
    return is_sqlite(url) and url.database in {None, "", ":memory:"}


def to_text(value: object) -> str:
    """JSON of any value that pydantic can write. NaN and infinities become strings.

    Typed fields read these back as numbers; in free-form evidence they remain strings.
    """
    return to_json(value, inf_nan_mode="strings").decode()


def create_engine(
    url: URL,
    limits: ServerLimits | None = None,
    *,
    readers: bool = False,
    connections: int | None = None,
) -> AsyncEngine:
    """Create an engine, without connecting yet.

    Errors never show parameters, which may be secrets. An in-memory database has one connection,
    which all users share in turn. Connections of `readers` are tried before use, as one that broke
    would be an error for a person; the controller tries again anyway, and each try costs a round
    trip.

    Args:
        url: The database.
        limits: Of a server on PostgreSQL.
        readers: For people's requests.
        connections: At most this many. None: the default.
    """
    settings: dict[str, Any] = {
        "hide_parameters": True,
        "json_serializer": to_text,
        "json_deserializer": from_json,
        "poolclass": AsyncAdaptedQueuePool,
    }
    if not is_sqlite(url):
        settings |= {"pool_pre_ping": readers, "connect_args": _connect_args(url, limits)}
        if connections is not None:
            settings |= {"pool_size": connections, "max_overflow": 0}
    elif in_memory(url):
        settings |= {"pool_size": 1, "max_overflow": 0}
    if readers:
        settings |= {"pool_size": READERS, "max_overflow": 0}
    engine = create_async_engine(url, **settings)
    if is_sqlite(url):
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
        event.listen(engine.sync_engine, "begin", begin_sqlite)
    return engine


def _connect_args(url: URL, limits: ServerLimits | None) -> dict[str, Any]:
    if limits is None:
        return _POSTGRES_SETTINGS
    given = url.query.get("options", "")
    options = f"{limits.options} {given if isinstance(given, str) else ' '.join(given)}".strip()
    most = int(900 * limits.lease_seconds)
    return {
        **_POSTGRES_SETTINGS,
        "options": options,
        "application_name": limits.application_name,
        "tcp_user_timeout": min(most, _POSTGRES_SETTINGS["tcp_user_timeout"]),
    }


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # begin_sqlite begins transactions, not the driver
    cursor = connection.cursor()
    try:
        for pragma in _SQLITE_PRAGMAS:
            cursor.execute(pragma)
        _use_wal(cursor)
    except BaseException:
        connection.close()  # otherwise its thread outlives it, and perhaps the event loop
        raise
    cursor.close()


def _use_wal(cursor: Any) -> None:
    """Enable the write-ahead log, a persistent setting of the file.

    While another process opens the same new file, SQLite fails at once instead of waiting. An empty
    transaction does wait, so the function runs one between its attempts.
    """
    for attempt in range(1, _WAL_ATTEMPTS + 1):
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError:
            if attempt == _WAL_ATTEMPTS:
                raise
            cursor.execute("BEGIN IMMEDIATE")
            cursor.execute("COMMIT")
        else:
            return


def begin_sqlite(connection: Connection) -> None:
    """Begin a transaction in place of the driver (listener of the engine's `begin` event)."""
    # SQLite cannot upgrade a read lock while another writer waits: lock for writing at once.
    write = connection.get_execution_options().get("write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


class Database:
    """Engines with the kinds of transactions that the stores use.

    Attributes:
        at_once: True if a transaction can take one round trip: on PostgreSQL, with libpq 14.
        limits: Of a server on PostgreSQL. The lease then has a connection of its own, so that its
            renewal waits for no transaction.
    """

    def __init__(
        self,
        url: str,
        engine: AsyncEngine | None = None,
        *,
        readers: bool = False,
        limits: ServerLimits | None = None,
    ) -> None:
        """Prepare a database.

        Args:
            url: Of the database.
            engine: Replaces those made from the URL.
            readers: True for people's requests: READERS transactions at a time. The others wait
                for them without a limit, since waiting for this server is not an outage.
            limits: Of a server.
        """
        self.url = database_url(url)
        self.sqlite = is_sqlite(self.url)
        self.limits = None if self.sqlite else limits
        self.engine = engine or create_engine(self.url, self.limits, readers=readers)
        dbapi: Any = self.engine.dialect.dbapi
        self.at_once = not self.sqlite and bool(dbapi.Pipeline.is_supported())
        self._turnstile = asyncio.Semaphore(READERS) if readers else contextlib.nullcontext()
        leasing, committing = self.engine, self.engine
        if not self.sqlite and engine is None and not readers:
            committing = create_engine(self.url, self.limits, connections=1)
            if self.limits is not None:
                leasing = create_engine(self.url, self.limits, connections=1)
        self._engines = {self.engine, leasing, committing}
        self._snapshots = (
            self.engine
            if self.sqlite  # every SQLite transaction is a snapshot
            else self.engine.execution_options(isolation_level="REPEATABLE READ")
        )
        self._writers = self.engine.execution_options(write=True)
        self._commits = committing.execution_options(write=True)
        self._leases = leasing.execution_options(write=True)

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """One transaction on one consistent state of the database.

        Raises:
            DatabaseUnavailableError: The connection could not be made, or it broke.
        """
        seconds = None if self.limits is None else self.limits.read_seconds
        async with self._turnstile:
            with our_errors(self.url):
                async with (
                    TransactionLimit(seconds) as limit,
                    self._snapshots.connect() as connection,
                ):
                    await limit.watch(connection)
                    async with self._dropped_on_error(connection):
                        yield connection

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """One transaction: committed at the end, rolled back on any error.

        Raises:
            DatabaseUnavailableError: The connection could not be made, or it broke. If it breaks
                during the commit itself, the outcome is unknown, so every write must be idempotent.
            InvariantError: A constraint or guard rejected the change.
        """
        async with (
            self._turnstile,
            self._transaction(self._writers, self._write_seconds) as connection,
        ):
            yield connection

    @contextlib.asynccontextmanager
    async def committing(self) -> AsyncIterator[AsyncConnection]:
        """As `writing`, for the transactions of the controller: over one connection, in turn."""
        async with self._transaction(self._commits, self._write_seconds) as connection:
            yield connection

    @contextlib.asynccontextmanager
    async def committing_at_once(self) -> AsyncIterator[AsyncConnection]:
        """As `committing`, in one round trip, on PostgreSQL. Raises as `writing_at_once`."""
        async with self._pipeline(self._commits) as connection:
            yield connection

    @contextlib.asynccontextmanager
    async def writing_at_once(self) -> AsyncIterator[AsyncConnection]:
        """As `writing`, in one round trip, on PostgreSQL: no statement has a result.

        Statements are sent without waiting for those before them; if one fails, the database skips
        all that follow, the commit among them.

        Raises:
            NotAsRememberedError: A statement divided by zero, which says so; nothing was written.
            DatabaseUnavailableError: As for `writing`.
            InvariantError: As for `writing`.
        """
        async with self._pipeline(self._writers) as connection:
            yield connection

    @contextlib.asynccontextmanager
    async def _pipeline(self, engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
        # The driver's own BEGIN and COMMIT would each wait for an answer.
        engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        dbapi: Any = engine.dialect.dbapi
        with our_errors(self.url):
            async with TransactionLimit(self._write_seconds) as limit, engine.connect() as found:
                await limit.watch(found)
                async with self._dropped_on_error(found):
                    raw: Any = (await found.get_raw_connection()).driver_connection
                    try:
                        async with raw.pipeline():
                            await found.exec_driver_sql("BEGIN")
                            yield found
                            await found.exec_driver_sql("COMMIT")
                    except dbapi.Error as error:  # at the end: the driver's own
                        raise refusal_or_same(wrapped(error, engine.dialect, raw)) from error
                    except DBAPIError as error:
                        raise refusal_or_same(error) from error

    @property
    def _write_seconds(self) -> float | None:
        return None if self.limits is None else self.limits.write_seconds

    @contextlib.asynccontextmanager
    async def leasing(self) -> AsyncIterator[AsyncConnection]:
        """One transaction about the lease, which waits for no other. Raises like `writing`."""
        seconds = None if self.limits is None else self.limits.lease_write_seconds
        async with self._transaction(self._leases, seconds) as connection:
            yield connection

    @contextlib.asynccontextmanager
    async def _transaction(
        self, engine: AsyncEngine, seconds: float | None
    ) -> AsyncIterator[AsyncConnection]:
        with our_errors(self.url):
            async with TransactionLimit(seconds) as limit, engine.begin() as connection:
                await limit.watch(connection)
                async with self._dropped_on_error(connection):
                    yield connection

    @contextlib.asynccontextmanager
    async def _dropped_on_error(self, connection: AsyncConnection) -> AsyncIterator[None]:
        """Close a connection to PostgreSQL over which a statement failed, unless the data did.

        The next one may reach the new primary after a failover, and knows nothing of old plans.
        Where the connection broke, idle ones are closed with it: they probably did, too.
        """
        try:
            yield
        except DBAPIError as error:
            kept = isinstance(error, IntegrityError) or data_at_fault(error)
            if not self.sqlite and not kept:
                await connection.invalidate()
            if not self.sqlite and error.connection_invalidated:
                await self.close()  # opens again when it is used
            raise

    async def close(self) -> None:
        """Close all connections."""
        for engine in self._engines:
            await engine.dispose()
