"""A server on PostgreSQL that waits for nothing for ever: frozen holders, locks, dead silence."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import signal
from collections.abc import AsyncIterator

import psycopg
import pytest

from jobs.clock import SystemClock
from orchestrator.controller.database_trouble import DatabaseTrouble
from orchestrator.controller.transaction import commit_when_possible
from orchestrator.database.leadership import application_name
from orchestrator.database.port import Batch, Lease
from orchestrator.database.sql_store import SqlStore
from orchestrator.database.time_limits import ServerLimits
from orchestrator.errors import DatabaseUnavailableError, LeadershipLostError
from tests.database_data import NOW, entry

TTL = 2.0
LONG_AGO, FAR_AHEAD = NOW - dt.timedelta(days=4000), NOW + dt.timedelta(days=4000)


def limits(holder: str) -> ServerLimits:
    return ServerLimits(lease_seconds=TTL, application_name=application_name(holder))


@pytest.fixture
async def stores(postgres_database: object) -> AsyncIterator[tuple[SqlStore, SqlStore, str]]:
    """Two servers of one database, and its URL."""
    url = postgres_database()  # type: ignore[operator]
    a, b = (
        await SqlStore.open(url, limits("host:1:a")),
        await SqlStore.open(url, limits("host:2:b")),
    )
    yield a, b, url
    await a.close()
    await b.close()


async def until_taken(store: SqlStore, holder: str, tries: int = 60) -> Lease:
    for _ in range(tries):
        lease = await store.acquire(holder, TTL, NOW)
        if lease is not None:
            return lease
        await SystemClock().sleep(0.1)
    raise AssertionError("nobody leads")


async def test_leases_go_by_the_clock_of_the_database(
    stores: tuple[SqlStore, SqlStore, str],
) -> None:
    a, b, _ = stores
    assert await a.acquire("host:1:a", TTL, LONG_AGO, address="wss://a/agent")
    ahead = await b.acquire("host:2:b", TTL, FAR_AHEAD, address="wss://b/agent")
    assert ahead is None, "its clock is years ahead"
    renewed = await a.acquire("host:1:a", TTL, LONG_AGO, address="wss://a/agent")
    assert renewed is not None
    assert renewed.servers == ["wss://a/agent", "wss://b/agent"], "agents are told of both"
    assert (lease := await b.leader()) is not None
    assert lease.address == "wss://a/agent"
    assert (await until_taken(b, "host:2:b")).epoch == lease.epoch + 1


async def test_a_leader_frozen_in_mid_transaction_does_not_keep_the_next_from_leading(
    stores: tuple[SqlStore, SqlStore, str],
) -> None:
    a, b, url = stores
    first = await a.acquire("host:1:a", TTL, NOW)
    assert first is not None
    frozen = await psycopg.AsyncConnection.connect(
        url, application_name=application_name("host:1:a")
    )
    await frozen.execute("SELECT epoch FROM leader FOR KEY SHARE")  # and then nothing more
    second = await until_taken(b, "host:2:b")
    assert second.epoch == first.epoch + 1
    with pytest.raises(psycopg.OperationalError):
        await frozen.execute("SELECT 1")
    batch, clock = Batch(journal=[entry("E1")]), SystemClock()
    with pytest.raises(LeadershipLostError):
        await commit_when_possible(a, batch, first.epoch, clock, DatabaseTrouble())


async def test_a_long_transaction_of_its_own_does_not_depose_a_leader(
    stores: tuple[SqlStore, SqlStore, str],
) -> None:
    a, b, _ = stores
    first = await a.acquire("host:1:a", TTL, NOW)
    assert first is not None
    async with a._database.writing() as connection:
        for _ in range(2):
            await connection.exec_driver_sql("SELECT epoch FROM leader FOR KEY SHARE")
            renewed = await a.acquire("host:1:a", TTL, NOW)
            assert renewed is not None
            assert renewed.expires_at > first.expires_at
            assert await b.acquire("host:2:b", TTL, NOW) is None


async def test_a_lock_that_nobody_releases_ends_the_transaction_not_the_server(
    stores: tuple[SqlStore, SqlStore, str],
) -> None:
    a, _, url = stores
    lease = await a.acquire("host:1:a", TTL, NOW)
    assert lease is not None
    async with await psycopg.AsyncConnection.connect(url) as blocker:
        await blocker.execute("LOCK TABLE journal IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(DatabaseUnavailableError, match="lock timeout"):
            await a.commit(Batch(journal=[entry("E1")]), epoch=lease.epoch)
        assert await a.acquire("host:1:a", TTL, NOW), "and the lease is renewed meanwhile"
    await a.commit(Batch(journal=[entry("E1")]), epoch=lease.epoch)


async def test_a_connection_on_which_nothing_is_ever_answered_is_cut(
    stores: tuple[SqlStore, SqlStore, str],
) -> None:
    """The backend is stopped: TCP is well, and no time-out of PostgreSQL's own can go off."""
    a, b, url = stores
    lease = await a.acquire("host:1:a", TTL, NOW)
    assert lease is not None
    await a.commit(Batch(journal=[entry("E1")]), epoch=lease.epoch)
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as watcher:
        rows = await watcher.execute(
            "SELECT pid FROM pg_stat_activity WHERE application_name = %s",
            (application_name("host:1:a"),),
        )
        pids = [pid for (pid,) in await rows.fetchall()]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            loop = asyncio.get_running_loop()
            began = loop.time()
            with pytest.raises(DatabaseUnavailableError, match="no end within"):
                await a.acquire("host:1:a", TTL, NOW)
            assert loop.time() - began < TTL, "there is time for another try"
            assert await a.acquire("host:1:a", TTL, NOW), "over a new connection"
            with pytest.raises(DatabaseUnavailableError, match="no end within"):
                await a.commit(Batch(journal=[entry("E2")]), epoch=lease.epoch)
            assert loop.time() - began < 4 * TTL
            await a.commit(Batch(journal=[entry("E3")]), epoch=lease.epoch)
            assert [each.id for each in await b.journal()] == ["E1", "E3"]
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
