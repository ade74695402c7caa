"""What is SQLite's own: one file, many writers, outages of its kind."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

from orchestrator.database import schema
from orchestrator.database.engine import Database
from orchestrator.database.port import Batch
from orchestrator.database.sql_store import SqlStore
from orchestrator.errors import DatabaseUnavailableError, InvariantError, SchemaError
from tests.database_data import RUN, begin, entry, lead, run


async def test_the_settings_of_every_connection(sqlite_database: str) -> None:
    database = Database(sqlite_database)
    try:
        async with database.reading() as first, database.reading() as second:
            for connection in (first, second):
                found = [
                    (await connection.exec_driver_sql(f"PRAGMA {name}")).scalar_one()
                    for name in ("journal_mode", "foreign_keys", "busy_timeout", "synchronous")
                ]
                assert found == ["wal", 1, 60000, 1]
    finally:
        await database.close()


async def test_writers_queue_and_readers_do_not_wait(sqlite_database: str) -> None:
    store, other = await SqlStore.open(sqlite_database), await SqlStore.open(sqlite_database)
    try:
        epoch = await lead(store)
        await asyncio.gather(
            *(
                each.commit(Batch(journal=[entry(f"{name}{i}")]), epoch=epoch)
                for i in range(20)
                for name, each in (("a", store), ("b", other))
            )
        )
        assert len(await store.journal()) == 40
        path = sqlite_database.removeprefix("sqlite:///")
        with closing(sqlite3.connect(path, isolation_level=None)) as writer:
            writer.execute("BEGIN IMMEDIATE")
            assert len(await store.journal()) == 40
            waiting = asyncio.create_task(store.commit(Batch(journal=[entry("c")]), epoch=epoch))
            assert len(await other.journal()) == 40
            writer.execute("ROLLBACK")
            await waiting
        assert len(await other.journal()) == 41
    finally:
        await store.close()
        await other.close()


async def test_a_cancelled_commit_writes_nothing_and_blocks_nobody(sqlite_database: str) -> None:
    store = await SqlStore.open(sqlite_database)
    try:
        epoch = await begin(store)
        path = sqlite_database.removeprefix("sqlite:///")
        with closing(sqlite3.connect(path, isolation_level=None)) as writer:
            writer.execute("BEGIN IMMEDIATE")
            commit = asyncio.create_task(store.commit(Batch(journal=[entry("E1")]), epoch=epoch))
            assert await store.journal() == []  # by now the commit waits for the writer
            commit.cancel()
            writer.execute("ROLLBACK")
        with pytest.raises(asyncio.CancelledError):
            await commit
        await store.commit(Batch(journal=[entry("E2")]), epoch=epoch)
        assert [each.id for each in await store.journal()] == ["E2"]
    finally:
        await store.close()


async def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    with pytest.raises(DatabaseUnavailableError, match=r"nowhere/b\.db"):
        await SqlStore.open(f"sqlite:///{tmp_path}/nowhere/b.db")
    # Where nothing could be opened, the driver does not wait for its thread, which then speaks to
    # an event loop that may be closed.
    for thread in set(threading.enumerate()) - before:
        await asyncio.to_thread(thread.join)


async def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "b.db").write_bytes(b"this is not a database, though long enough" * 100)
    with pytest.raises(DatabaseUnavailableError, match="not a database"):
        await SqlStore.open(f"sqlite:///{tmp_path}/b.db")


async def test_a_database_without_schema_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="babysit db upgrade"):
        await SqlStore.open(f"sqlite:///{tmp_path}/b.db")


async def test_a_table_lost_later_says_what_to_do(sqlite_database: str) -> None:
    store = await SqlStore.open(sqlite_database)
    try:
        with closing(sqlite3.connect(sqlite_database.removeprefix("sqlite:///"))) as connection:
            connection.execute("DROP TABLE journal")
        with pytest.raises(SchemaError, match="journal"):
            await store.journal()
    finally:
        await store.close()


async def test_a_newer_schema_is_fine(sqlite_database: str) -> None:
    """Expand/contract: servers of version n go on while n+1 has upgraded the database."""
    with closing(sqlite3.connect(sqlite_database.removeprefix("sqlite:///"))) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()
    store = await SqlStore.open(sqlite_database)
    await store.close()
    assert any("9999" in each for each in await schema.check(sqlite_database))


async def test_memory_databases_are_apart_and_bear_many_tasks() -> None:
    store, other = await SqlStore.open("sqlite://"), await SqlStore.open("sqlite://")
    try:
        epoch = await begin(store)
        await asyncio.gather(
            *(store.commit(Batch(journal=[entry(f"E{i}")]), epoch=epoch) for i in range(20)),
            *(store.load() for _ in range(20)),
        )
        assert len(await store.journal()) == 20
        with pytest.raises(InvariantError):
            await store.commit(Batch(entities=[run(attempt=0)]), epoch=epoch)
        assert (await store.run(RUN)).attempt == 1
        assert await other.runs() == []
    finally:
        await store.close()
        await other.close()
