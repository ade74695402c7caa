"""Statements per transaction: few, and no more for many agents and runs. Each is a round trip."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import event, text

from orchestrator.core.model.states import RunState
from orchestrator.database import commit
from orchestrator.database.leadership import Claim
from orchestrator.database.port import Batch, RunNumbers, Store, WorkerSamples
from orchestrator.database.sql_store import SqlStore
from tests.database_data import attempt, columns, lead, run, worker

RUNS = 40


@contextmanager
def statements(store: SqlStore) -> Iterator[list[str]]:
    """The statements that are executed inside, but for `BEGIN` and `COMMIT`."""
    executed: list[str] = []

    def note(*arguments: Any) -> None:
        if not arguments[2].startswith("BEGIN"):
            executed.append(arguments[2])

    engine = store._database.engine.sync_engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        yield executed
    finally:
        event.remove(engine, "before_cursor_execute", note)


async def training(store: Store) -> int:
    """Forty runs of one worker each."""
    epoch = await lead(store)
    entities = [
        each
        for n in range(RUNS)
        for each in (
            run(f"run-{n}", attempt=1),
            worker(f"w{n}", f"run-{n}"),
            attempt(1, run=f"run-{n}"),
        )
    ]
    await store.commit(Batch(entities=entities), epoch=epoch)
    return epoch


def report(numbers: range, first: int, sequence: int) -> Batch:
    told = [
        WorkerSamples(
            run=f"run-{n}",
            attempt=1,
            ranks=[columns(first, first + 3)],
            worker=f"w{n}",
            sequence=sequence,
        )
        for n in numbers
    ]
    return Batch(samples=told, sequences={f"w{n}": sequence for n in numbers})


async def test_samples_of_many_agents_take_no_more_statements_than_those_of_one(
    database_url: str,
) -> None:
    store = await SqlStore.open(database_url)
    epoch = await training(store)
    with statements(store) as for_one:
        await store.commit(report(range(1), 1, 1), epoch=epoch)
    with statements(store) as for_all:
        await store.commit(report(range(RUNS), 5, 2), epoch=epoch)
    assert len(for_all) == len(for_one) <= 5, for_all
    assert await store.sample_total("run-7") == 4
    await store.close()


async def test_a_report_that_is_under_way_twice_is_stored_once(
    postgres_database: Callable[[], str],
) -> None:
    """The answer of a commit was lost, and it takes effect only while it is tried again."""
    store = await SqlStore.open(postgres_database())
    epoch = await training(store)
    batch = report(range(3), 1, 1)
    waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    async with store._database.writing() as first:
        await commit.write_known(first, batch, await commit.read(first, batch, Claim(epoch)))
        with statements(store) as executed:
            again = asyncio.create_task(store.commit(batch, epoch=epoch))
            while not (await first.execute(waiting)).scalar_one():
                assert not again.done(), "it must wait for the first"
                await asyncio.sleep(0)  # noqa: TID251 (lets the other come to its lock)
    assert not any("samples" in each for each in executed), "it waits before it reads samples"
    await again
    assert [await store.sample_total(f"run-{n}") for n in range(3)] == [4, 4, 4]
    await store.close()


async def test_a_list_of_runs_takes_two_queries(database_url: str) -> None:
    store = await SqlStore.open(database_url)
    epoch = await training(store)
    await store.commit(report(range(RUNS), 1, 1), epoch=epoch)
    with statements(store) as executed:
        runs = await store.runs(states=list(RunState), limit=1000)
        numbers = await store.run_numbers(runs)
    assert len(executed) == 2
    with statements(store) as executed:
        tails = await store.sample_tails([each.id for each in runs])
    assert len(executed) == 2, "a new leader reads all of them"
    assert len(tails) == RUNS
    assert numbers["run-3"] == RunNumbers(step=4, loss=2.5, restarts=0)
    await store.close()
