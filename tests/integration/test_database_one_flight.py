"""Transactions of the controller that PostgreSQL gets in one flight: few waits, and each once."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable

import pytest
from sqlalchemy import text

from orchestrator.core.messages.instructions import StopWorker
from orchestrator.core.model.states import AttemptState
from orchestrator.database.port import Batch
from orchestrator.database.sql_store import SqlStore
from orchestrator.errors import DatabaseUnavailableError, InvariantError, LeadershipLostError
from tests.database_data import NOW, RUN, attempt, begin, columns, entry, samples, worker
from tests.database_proxy import proxied

MakeDatabase = Callable[[], str]


def steps(first: int, last: int, sequence: int) -> Batch:
    told = samples(columns(first, last), worker="w1", sequence=sequence)
    return Batch(samples=[told], sequences={"w1": sequence})


def order(key: str) -> StopWorker:
    return StopWorker(id=key, cause="E", run=RUN, reason="", worker="w1", node="node-1")


async def test_a_transaction_waits_for_no_answer_before_its_commit(
    postgres_database: MakeDatabase,
) -> None:
    """Whatever it holds. An answer that comes before the COMMIT is sent is kept back for ever."""
    async with proxied(postgres_database()) as (url, proxy):
        store = await SqlStore.open(url)
        epoch = await begin(store)
        await store.commit(steps(1, 4, 1), epoch=epoch)
        stopping = attempt(state=AttemptState.STOPPING)
        last = Batch(
            entities=[stopping, worker("w2")],
            journal=[entry("E1")],
            outbox=[order("E1.1")],
            samples=steps(701, 702, 4).samples,
            sequences={"w1": 4},
        )
        for batch in (steps(5, 8, 2), steps(9, 700, 3), last, Batch(journal=[entry("E2")])):
            proxy.keep_answers_back()
            await asyncio.wait_for(store.commit(batch, epoch=epoch), 60)
        assert await store.sample_total(RUN) == 702
        snapshot = await store.load()
        assert (snapshot.sequences["w1"], len(snapshot.outbox)) == (4, 1)
        proxy.keep_answers_back()
        await asyncio.wait_for(store.carried_out(["E1.1"], epoch=epoch), 60)
        assert (await store.load()).outbox == []
        await store.close()


@pytest.mark.parametrize("seed", range(3))
async def test_reports_are_stored_once_wherever_the_connection_breaks(
    postgres_database: MakeDatabase, seed: int
) -> None:
    chance = random.Random(seed)
    direct = postgres_database()
    async with proxied(direct) as (url, proxy):
        store = await SqlStore.open(url)
        epoch = await begin(store)
        broken = 0
        for number in range(1, 41):
            batch = steps(100 * number, 100 * number + 99, number)
            batch = Batch(
                samples=batch.samples, sequences=batch.sequences, journal=[entry(f"E{number}")]
            )
            if chance.random() < 0.6:
                proxy.cut_after = chance.randrange(1, 12_000)
            while True:
                try:
                    assert await store.commit(batch, epoch=epoch) == 0
                    break
                except DatabaseUnavailableError:
                    broken += 1
        proxy.cut_after = None
        assert broken > 5
        stored = await store.samples(RUN, points=5000)
        assert stored.step == list(range(100, 4100))
        assert await store.sample_total(RUN) == 4000
        assert [each.id for each in await store.journal()] == [f"E{n}" for n in range(1, 41)]
        await store.close()


async def test_a_leader_that_was_deposed_writes_nothing(postgres_database: MakeDatabase) -> None:
    store = await SqlStore.open(postgres_database())
    epoch = await begin(store)
    await store.commit(steps(1, 4, 1), epoch=epoch)
    await store.acquire("another", 60.0, NOW, force=True)
    with pytest.raises(LeadershipLostError, match="another at epoch"):
        await store.commit(steps(5, 8, 2), epoch=epoch)
    with pytest.raises(LeadershipLostError, match="another at epoch"):
        await store.commit(Batch(journal=[entry("E1")]), epoch=epoch)
    with pytest.raises(LeadershipLostError, match="another at epoch"):
        await store.carried_out(["E1"], epoch=epoch)
    assert await store.sample_total(RUN) == 4
    assert await store.journal() == []
    await store.close()


async def test_a_database_that_is_not_as_remembered_is_read(
    postgres_database: MakeDatabase,
) -> None:
    """As after a failover that has lost the last transaction behind an address that stays."""
    store = await SqlStore.open(postgres_database())
    epoch = await begin(store)
    await store.commit(steps(1, 4, 1), epoch=epoch)
    async with store._database.writing() as connection:
        for table in ("sample_data", "samples"):
            await connection.execute(text(f"DELETE FROM {table}"))
        await connection.execute(text("UPDATE workers SET last_sequence = 0"))
    await store.commit(steps(1, 8, 2), epoch=epoch)
    assert (await store.samples(RUN)).step == list(range(1, 9))
    await store.close()


async def test_after_a_refusal_the_next_transaction_is_written(
    postgres_database: MakeDatabase,
) -> None:
    store = await SqlStore.open(postgres_database())
    epoch = await begin(store)
    await store.commit(steps(1, 4, 1), epoch=epoch)
    twice = Batch(entities=[attempt(2), attempt(3)], sequences={"w1": 2})
    with contextlib.suppress(InvariantError):
        await store.commit(twice, epoch=epoch)
        pytest.fail("two attempts live at once")
    with pytest.raises(InvariantError, match="not stored"):
        await store.commit(Batch(sequences={"w9": 1}), epoch=epoch)
    await store.commit(steps(5, 8, 2), epoch=epoch)
    await store.commit(steps(5, 8, 2), epoch=epoch)
    assert await store.sample_total(RUN) == 8
    await store.close()


async def test_a_driver_without_pipelines_stores_the_same(postgres_database: MakeDatabase) -> None:
    store = await SqlStore.open(postgres_database())
    assert store._database.at_once, "the driver that is installed has them"
    store._database.at_once = False
    epoch = await begin(store)
    for number in range(1, 4):
        await store.commit(steps(4 * number - 3, 4 * number, number), epoch=epoch)
    await store.commit(Batch(outbox=[order("E1.1")]), epoch=epoch)
    await store.carried_out(["E1.1"], epoch=epoch)
    assert (await store.samples(RUN)).step == list(range(1, 13))
    assert (await store.load()).outbox == []
    await store.close()
