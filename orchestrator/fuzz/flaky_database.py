"""The database of a run of the fuzzer: SQLite in memory, shared by all servers, that fails.

The store, its SQL, the constraints and triggers are the real ones. Only the driver is ours: it
executes at once on one `sqlite3` connection, and waits, fails or dies at the edges of transactions.
One transaction is open at a time; that of a server that was killed is rolled back.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import random
import sqlite3
from collections import deque
from collections.abc import Callable
from typing import Any, Self

import sqlalchemy
from pydantic_core import from_json
from sqlalchemy import event
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from orchestrator.database import guards
from orchestrator.database.engine import Database, begin_sqlite, to_text
from orchestrator.database.models import Base
from orchestrator.fuzz.event_loop import PROCESS, VirtualLoop, rest
from orchestrator.fuzz.fault_rates import FaultRates

CURRENT: contextvars.ContextVar[FlakyDatabase] = contextvars.ContextVar("disk")
"""The database of the run that is under way; the engine below serves all of them."""
INTENT: contextvars.ContextVar[Any] = contextvars.ContextVar("intent", default=None)
"""The intended writes of the transaction under way."""


class FlakyDatabase:
    """One database, its one lock, and what goes wrong with it.

    Attributes:
        raw: The connection, to look behind the scenes.
        away: True if it does not answer at all.
        full: True if it has no room: it can be read, and takes no writes.
        holder: The connection whose transaction is open.
        on_commit: Called with the intent of a transaction just as it takes effect.
    """

    def __init__(self, loop: VirtualLoop, rng: random.Random, rates: FaultRates) -> None:
        self.raw = sqlite3.connect(":memory:", isolation_level=None)
        self.raw.deserialize(_schema())
        self.raw.execute("PRAGMA foreign_keys=ON")
        self.away = self.full = False
        self.on_commit: Callable[[Any], None] = lambda _intent: None
        self._loop, self._rng, self._rates = loop, rng, rates
        self.holder: FlakyConnection | None = None
        self._waiting: deque[tuple[str, FlakyConnection, asyncio.Future[None]]] = deque()

    async def pause(self) -> None:
        """Take the time that a disk takes."""
        await rest(self._loop, self._rates.database_seconds(self._rng))

    def fails(self) -> bool:
        """True if this step of a transaction fails."""
        return self.away or self._rates.strikes("database", self._rng)

    async def lock(self, connection: FlakyConnection) -> None:
        """Wait for the transaction under way."""
        if self.holder is not None:
            waker = self._loop.create_future()
            self._waiting.append((PROCESS.get(), connection, waker))
            await waker
        else:
            self.holder = connection

    def unlock(self, connection: FlakyConnection) -> None:
        """Let the next one in."""
        if self.holder is not connection:
            return
        self.holder = None
        while self._waiting:
            process, waiter, waker = self._waiting.popleft()
            if not waker.done() and not self._loop.killed(process):
                self.holder = waiter
                waker.set_result(None)
                return

    def drop(self, process: str) -> None:
        """A server was killed: what it had begun is undone."""
        if self.holder is not None and self.holder.process == process:
            self.holder.undo()

    def replace(self, data: bytes) -> None:
        """Put another database in its place, while no server runs."""
        self.undo_open()
        self.raw.deserialize(data)

    def undo_open(self) -> None:
        """Undo the transaction under way, as at the end of a run.

        All share one connection, so `raw` shows what is written but not committed, too.
        """
        if self.holder is not None:
            self.holder.undo()


class FlakyConnection:
    """To SQLAlchemy, a connection of aiosqlite."""

    def __init__(self, disk: FlakyDatabase) -> None:
        self.disk, self.process = disk, PROCESS.get()
        self.isolation_level: str | None = None
        self._connection, self._conn, self._tx = disk.raw, self, self

    def put_nowait(self, order: tuple[asyncio.Future[None], Callable[[], None]]) -> None:
        """Run the order, as aiosqlite would in its thread."""
        order[1]()
        order[0].set_result(None)

    def cursor(self) -> FlakyCursor:
        """A cursor."""
        return FlakyCursor(self)

    async def create_function(self, *_: Any, **__: Any) -> None:
        """Do nothing: none of our statements needs a function of SQLAlchemy's."""

    async def begin(self, statement: str) -> None:
        """Wait for the lock, and begin."""
        await self.disk.pause()
        if self.disk.fails():
            raise sqlite3.OperationalError("disk I/O error")
        if self.disk.full and statement == "BEGIN IMMEDIATE":
            raise sqlite3.OperationalError("database or disk is full")
        await self.disk.lock(self)
        self.disk.raw.execute(statement)

    async def commit(self) -> None:
        """Commit; a failure may come before it took effect, or after."""
        if not self._open:
            return
        await self.disk.pause()
        if self.disk.fails():
            raise sqlite3.OperationalError("disk I/O error")
        self.disk.on_commit(INTENT.get())
        self.disk.raw.execute("COMMIT")
        self.disk.unlock(self)
        await self.disk.pause()
        if self.disk.fails():
            raise sqlite3.OperationalError("the answer was lost")

    async def rollback(self) -> None:
        """Undo."""
        self.undo()

    def undo(self) -> None:
        """Undo what was begun, if anything was, and let the next one in."""
        if self._open:
            self.disk.raw.execute("ROLLBACK")
        self.disk.unlock(self)

    async def close(self) -> None:
        """Close."""
        self.undo()

    def stop(self) -> None:
        """Close at once."""
        self.undo()

    @property
    def _open(self) -> bool:
        return self.disk.holder is self and self.disk.raw.in_transaction


class FlakyCursor:
    """To SQLAlchemy, a cursor of aiosqlite: one that never waits, but for a `BEGIN`."""

    arraysize = 1

    def __init__(self, connection: FlakyConnection) -> None:
        self._connection = connection
        self._cursor = connection.disk.raw.cursor()

    async def __aenter__(self) -> Self:
        return self

    @property
    def description(self) -> Any:
        """Of the columns."""
        return self._cursor.description

    @property
    def rowcount(self) -> int:
        """How many rows were touched."""
        return self._cursor.rowcount

    @property
    def lastrowid(self) -> Any:
        """Of the row inserted last."""
        return self._cursor.lastrowid

    async def execute(self, statement: str, parameters: Any = ()) -> None:
        """Execute, now."""
        if statement.startswith("BEGIN"):
            await self._connection.begin(statement)
        else:
            self._cursor.execute(statement, parameters or ())

    async def executemany(self, statement: str, parameters: Any) -> None:
        """Execute for each, now."""
        self._cursor.executemany(statement, parameters)

    async def fetchall(self) -> list[Any]:
        """All rows."""
        return self._cursor.fetchall()

    async def fetchone(self) -> Any:
        """The next row."""
        return self._cursor.fetchone()

    async def close(self) -> None:
        """Close."""
        self._cursor.close()


@functools.cache
def _schema() -> bytes:
    """A fresh database, made once: making the schema takes longer than most runs."""
    assert guards.GUARDS  # noqa: S101 (importing them attaches the triggers to the schema)
    engine = sqlalchemy.create_engine("sqlite://")
    with engine.connect() as connection:
        Base.metadata.create_all(connection)
        connection.commit()
        raw: Any = connection.connection.driver_connection
        schema: bytes = raw.serialize()
    engine.dispose()
    return schema


@functools.cache
def database() -> Database:
    """The engine of all runs: it remembers how statements are compiled, which takes most time."""

    async def connect(*_: Any, **__: Any) -> FlakyConnection:
        return FlakyConnection(CURRENT.get())

    engine = create_async_engine(
        "sqlite+aiosqlite://",
        async_creator=connect,
        poolclass=NullPool,
        hide_parameters=True,
        json_serializer=to_text,
        json_deserializer=from_json,
    )
    event.listen(engine.sync_engine, "begin", begin_sqlite)
    return Database("sqlite://", engine)
