"""Readers have connections and a limit of their own: they delay no write, and nothing fails."""

from __future__ import annotations

import asyncio

from orchestrator.core.model.entities import Queue
from orchestrator.database.engine import READERS
from orchestrator.database.port import Batch
from orchestrator.database.sql_store import SqlStore
from tests.database_data import NOW


async def test_readers_that_hold_every_connection_keep_no_write_waiting(database_url: str) -> None:
    store = await SqlStore.open(database_url)
    readers = store.for_readers()
    under_way, wanted = 0, asyncio.Event()
    done = asyncio.Event()

    async def read() -> None:
        nonlocal under_way
        async with readers._database.reading():
            under_way += 1
            if under_way == READERS:
                wanted.set()
            await done.wait()
            under_way -= 1

    reading = [asyncio.create_task(read()) for _ in range(5 * READERS)]
    await wanted.wait()
    lease = await store.acquire("a", 10.0, NOW)
    assert lease is not None
    for number in range(5):
        queue = Queue(name=f"queue-{number}")
        await store.commit(Batch(entities=[queue]), epoch=lease.epoch)
        assert (await store.acquire("a", 10.0, NOW)) == lease, "and the lease is renewed"
    assert len((await store.load()).queues) == 5, "a new leader reads"
    assert under_way == READERS, "and none of the others was let in, nor failed"
    done.set()
    await asyncio.gather(*reading)
    await readers.close()
    await store.close()
