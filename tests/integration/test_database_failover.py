"""A replica of PostgreSQL takes over without the last transactions: no lead outlives that."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import pytest

from jobs.clock import SystemClock
from orchestrator.database import schema
from orchestrator.database.leadership import application_name
from orchestrator.database.port import Batch, Lease
from orchestrator.database.sql_store import SqlStore
from orchestrator.database.time_limits import ServerLimits
from orchestrator.errors import DatabaseUnavailableError, LeadershipLostError
from tests.database_data import NOW, entry
from tests.postgres import PostgresServer

A, B = "host:1:a", "host:2:b"
T = TypeVar("T")


@pytest.fixture
def pair() -> Iterator[tuple[PostgresServer, PostgresServer]]:
    """A primary with the schema, and its streaming replica."""
    primary = PostgresServer()
    try:
        primary.start()
        asyncio.run(schema.upgrade(primary.url()))
        replica = PostgresServer(primary=primary)
        try:
            replica.start()
            yield primary, replica
        finally:
            replica.remove()
    finally:
        primary.remove()


async def answered(ask: Callable[[], Awaitable[T]]) -> T:
    """What the database answers, once the connections of before are known to be broken."""
    for _ in range(50):
        try:
            return await ask()
        except DatabaseUnavailableError:
            await SystemClock().sleep(0.1)
    return await ask()


async def take(store: SqlStore, holder: str, *, force: bool = False) -> Lease:
    lease = await answered(lambda: store.acquire(holder, 600.0, NOW, force=force))
    assert lease is not None
    return lease


async def refused(store: SqlStore, key: str, epoch: int) -> str:
    """Try to write under an epoch that is over; why not."""
    with pytest.raises(LeadershipLostError, match="nothing was written") as caught:
        await answered(lambda: store.commit(Batch(journal=[entry(key)]), epoch=epoch))
    with pytest.raises(LeadershipLostError):
        await answered(lambda: store.carried_out([f"{key}.1"], epoch=epoch))
    return str(caught.value)


async def test_what_a_leader_remembers_beyond_a_failover_is_never_written(
    pair: tuple[PostgresServer, PostgresServer],
) -> None:
    """The second that is lost holds an election: its epoch is given again, to another server."""
    primary, replica = pair
    a, b = [
        await SqlStore.open(
            primary.url(),
            ServerLimits(lease_seconds=60.0, application_name=application_name(holder)),
        )
        for holder in (A, B)
    ]
    try:
        kept = await take(b, B)
        assert (await take(b, B)).epoch == kept.epoch, "a renewal"
        await b.commit(Batch(journal=[entry("E1")]), epoch=kept.epoch)
        await asyncio.to_thread(replica.cut_off, primary)
        lost = await take(a, A, force=True)
        await a.commit(Batch(journal=[entry("E2")]), epoch=lost.epoch)
        assert "at epoch" in await refused(b, "E3", kept.epoch)
        await asyncio.to_thread(replica.take_over, primary)

        assert [each.id for each in await answered(b.journal)] == ["E1"]
        leader = await answered(b.leader)
        assert leader is not None
        assert (leader.holder, leader.epoch) == (B, kept.epoch), "as the replica has it"
        assert "another server has taken its place" in await refused(b, "E4", kept.epoch)
        renewed = await take(b, B)
        assert renewed.epoch == lost.epoch, "the number is given a second time"
        assert "another server has taken its place" in await refused(a, "E5", lost.epoch)
        await answered(lambda: b.commit(Batch(journal=[entry("E6")]), epoch=renewed.epoch))
        assert (await take(b, B)).epoch == renewed.epoch

        again = await take(a, A, force=True)
        assert again.epoch > renewed.epoch
        await a.commit(Batch(journal=[entry("E7")]), epoch=again.epoch)
        assert [each.id for each in await b.journal()] == ["E1", "E6", "E7"]
    finally:
        await a.close()
        await b.close()
