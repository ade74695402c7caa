"""PostgreSQL goes away and comes back: nothing half-written, and no restart of ours needed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import psycopg
import pytest

from jobs.clock import SystemClock
from orchestrator.controller.database_trouble import DatabaseTrouble
from orchestrator.controller.transaction import commit_when_possible
from orchestrator.database import schema
from orchestrator.database.port import Batch
from orchestrator.database.sql_store import SqlStore
from orchestrator.errors import (
    DatabaseUnavailableError,
    InvariantError,
    LeadershipLostError,
    SchemaError,
)
from tests.database_data import RUN, begin, columns, entry, lead, samples
from tests.postgres import PostgresServer


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A server these tests may stop."""
    server = PostgresServer()
    try:
        server.start()
        asyncio.run(schema.upgrade(server.url()))
        yield server
    finally:
        server.remove()


@pytest.fixture(autouse=True)
def running_and_empty(server: PostgresServer) -> None:
    """Each test begins alike."""
    if not server.running:
        server.start()
    asyncio.run(schema.downgrade(server.url(), "base"))
    asyncio.run(schema.upgrade(server.url()))


async def test_the_store_recovers_when_the_server_is_back(server: PostgresServer) -> None:
    store = await SqlStore.open(server.url())
    try:
        epoch = await begin(store)
        snapshot = await store.load()
        await asyncio.to_thread(server.stop)
        for _ in range(2):
            with pytest.raises(DatabaseUnavailableError, match="does not answer"):
                await store.commit(Batch(journal=[entry("E1")]), epoch=epoch)
            with pytest.raises(DatabaseUnavailableError):
                await store.load()
            with pytest.raises(DatabaseUnavailableError):
                await lead(store)
        await asyncio.to_thread(server.start)
        assert await store.load() == snapshot
        with pytest.raises(LeadershipLostError, match="PostgreSQL was restarted"):
            await store.commit(Batch(journal=[entry("E1")]), epoch=epoch)
        assert await lead(store) > epoch
        await store.commit(Batch(journal=[entry("E2")]), epoch=await lead(store))
        assert [each.id for each in await store.journal()] == ["E2"]
    finally:
        await store.close()


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_a_server_stopped_in_mid_transaction_leaves_nothing_half_made(
    server: PostgresServer, mode: str
) -> None:
    store = await SqlStore.open(server.url())
    try:
        epoch = await begin(store)
        batch = Batch(journal=[entry("E1")], samples=[samples(columns(1, 9))], sequences={"w1": 0})
        # The lock is asked for in the middle of a commit: the epoch is checked by then.
        blocker = await psycopg.AsyncConnection.connect(server.url())
        await blocker.execute("LOCK TABLE journal IN EXCLUSIVE MODE")
        commit = asyncio.create_task(store.commit(batch, epoch=epoch))
        await _until_someone_waits(server)
        await asyncio.to_thread(server.stop, mode)
        with pytest.raises(DatabaseUnavailableError) as caught:
            await commit
        assert caught.value.__cause__ is not None
        await blocker.close()

        await asyncio.to_thread(server.start)
        assert await store.journal() == []
        assert await store.sample_total(RUN) == 0
        epoch = await lead(store)
        for _ in range(2):
            await store.commit(batch, epoch=epoch)
        assert len(await store.journal()) == 1
        assert await store.sample_total(RUN) == 9
    finally:
        await store.close()


FAILS_ONCE = """
CREATE SEQUENCE failures;
CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF nextval('failures') = 1 THEN RAISE EXCEPTION 'once' USING ERRCODE = '{code}'; END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER fail BEFORE INSERT ON journal FOR EACH ROW EXECUTE FUNCTION fail();
"""
FORGET = "DROP TRIGGER fail ON journal; DROP FUNCTION fail; DROP SEQUENCE failures"


@pytest.mark.parametrize(
    "code",
    [
        "0A000",  # cached plan must not change result type
        "25006",  # read-only: a failover, a full disk of a managed server
        "26000",  # a prepared statement that a pooler lost
        "42P05",
        "42501",  # somebody changes privileges
        "42P01",  # a restore in place
        "XX000",
        "40001",
        "57014",
        "53100",  # the disk is full
        "P0001",
    ],
)
async def test_whatever_the_database_fails_over_the_batch_is_kept_and_written(
    server: PostgresServer, code: str
) -> None:
    store = await SqlStore.open(server.url())
    try:
        epoch = await begin(store)
        async with await psycopg.AsyncConnection.connect(server.url(), autocommit=True) as raw:
            await raw.execute(FAILS_ONCE.format(code=code).encode())
            try:
                batch = Batch(journal=[entry("E1")])
                await commit_when_possible(store, batch, epoch, SystemClock(), DatabaseTrouble())
                assert [each.id for each in await store.journal()] == ["E1"]
            finally:
                await raw.execute(FORGET.encode())
    finally:
        await store.close()


@pytest.mark.parametrize("reason", ["\ud800", "ends \udfff here"])
async def test_a_text_that_no_database_takes_is_the_fault_of_the_batch(
    server: PostgresServer, reason: str
) -> None:
    store = await SqlStore.open(server.url())
    try:
        epoch = await begin(store)
        with pytest.raises(InvariantError, match="cannot store a value"):
            await commit_when_possible(
                store, Batch(journal=[entry(reason)]), epoch, SystemClock(), DatabaseTrouble()
            )
        await store.commit(Batch(journal=[entry("E1")]), epoch=epoch)
    finally:
        await store.close()


async def test_missing_rights_are_said_in_one_sentence(server: PostgresServer) -> None:
    async with await psycopg.AsyncConnection.connect(server.url(), autocommit=True) as raw:
        await raw.execute("DROP ROLE IF EXISTS app")
        await raw.execute("CREATE ROLE app LOGIN")
    url = server.url().replace("postgres@", "app@")
    says = r"the user app lacks a right in .*grant the user SELECT, INSERT"
    with pytest.raises(DatabaseUnavailableError, match=says):
        await SqlStore.open(url)
    with pytest.raises(DatabaseUnavailableError, match=says):
        await schema.upgrade(url)
    with pytest.raises(DatabaseUnavailableError, match=says):
        await schema.check(url)


async def _until_someone_waits(server: PostgresServer) -> None:
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    async with await psycopg.AsyncConnection.connect(server.url(), autocommit=True) as watcher:
        while True:
            row = await (await watcher.execute(query)).fetchone()
            if row and row[0]:
                return
            await SystemClock().sleep(0.01)


async def test_opening_a_server_that_is_down_says_so_without_the_password(
    server: PostgresServer,
) -> None:
    await asyncio.to_thread(server.stop)
    url = server.url().replace("postgres@", "postgres:hunter2@") + "?password=hunter2"
    with pytest.raises(DatabaseUnavailableError) as caught:
        await SqlStore.open(url)
    error: BaseException | None = caught.value
    while error is not None:
        assert "hunter2" not in str(error)
        error = error.__cause__ or error.__context__
    assert str(server.port) in str(caught.value)


async def test_errors_hold_no_parameters(server: PostgresServer) -> None:
    """A failed statement may have had a secret among its parameters."""
    store = await SqlStore.open(server.url())
    try:
        await asyncio.to_thread(server.stop)
        with pytest.raises(DatabaseUnavailableError) as caught:
            await store.find_token("babysit_secret")
        assert "babysit_secret" not in str(caught.value.__cause__)
    finally:
        await store.close()


async def test_a_database_without_schema_says_what_to_do(server: PostgresServer) -> None:
    await schema.downgrade(server.url(), "base")
    with pytest.raises(SchemaError, match="babysit db upgrade"):
        await SqlStore.open(server.url())
