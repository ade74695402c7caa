"""Benchmark of the run database; prints a table and, as the last line, JSON.

The long run has 10 million steps (`--steps`) of one rank over 40 attempts, each of which restarts
700 steps back. Both databases are as durable as in production: PostgreSQL syncs every commit;
SQLite, in WAL mode with `synchronous=NORMAL`, syncs at its checkpoints.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import datetime as dt
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import numpy as np
from sqlalchemy import insert

sys.path.insert(0, str(Path(__file__).parents[1]))  # run from anywhere

from jobs.events import RankSamples
from orchestrator.core.model.entities import Attempt
from orchestrator.core.model.states import AttemptState
from orchestrator.database import samples as arrays
from orchestrator.database import schema
from orchestrator.database.engine import Database
from orchestrator.database.mapping import table_of
from orchestrator.database.models import SampleDataRow, SampleRow
from orchestrator.database.port import Batch
from orchestrator.database.sql_store import SqlStore
from tests.database_data import RUN, attempt, begin, columns, entry, run, samples
from tests.postgres import PostgresServer

ATTEMPTS = 40
BACK = 700  # steps that each attempt repeats


def long_run(steps: int) -> Iterator[tuple[int, arrays.Block, int, bool]]:
    """Yield (attempt, samples, chunk, tail) of a run that ends at `steps`."""
    noise = np.random.default_rng(1)
    each = steps // ATTEMPTS
    for number in range(1, ATTEMPTS + 1):
        first, last = max(1, (number - 1) * each + 1 - BACK), number * each
        for chunk, at in enumerate(range(first, last + 1, arrays.CHUNK)):
            step = np.arange(at, min(at + arrays.CHUNK, last + 1), dtype=float)
            block = np.zeros((len(arrays.COLUMNS), len(step)))
            block[arrays.STEP] = block[1] = step
            block[arrays.TIME] = 1.7e9 + step * 0.25 + noise.normal(0, 1e-3, len(step))
            block[arrays.LOSS] = 2 + 9 / np.sqrt(step) + noise.normal(0, 0.05, len(step))
            block[arrays.GRAD_NORM] = noise.lognormal(0, 0.2, len(step))
            block[arrays.SECONDS] = 0.25 + noise.normal(0, 1e-3, len(step))
            block[5], block[8] = 4096.0, 3e-4
            yield number, block, chunk, at + arrays.CHUNK > last


async def fill(url: str, steps: int) -> int:
    """Write the long run as commits would have; returns the bytes of its packed samples."""
    store = await SqlStore.open(url)
    epoch = await begin(store)
    for number in range(2, ATTEMPTS + 1):
        turn: list[Attempt] = [attempt(number - 1, state=AttemptState.ENDED), attempt(number)]
        await store.commit(Batch(entities=[run(attempt=number), *turn]), epoch=epoch)
    await store.close()
    database, size = Database(url), 0
    rows: list[tuple[dict[str, object], dict[str, object]]] = []
    async with database.writing() as connection:
        for number, block, chunk, tail in long_run(steps):
            key = {"run": RUN, "rank": 0, "attempt": number, "chunk": chunk}
            data = arrays.pack(block)
            size += len(data)
            rows.append(
                ({**key, "tail": tail, "lost": 0, **arrays.summary(block)}, {**key, "data": data})
            )
            if len(rows) == 500 or (tail and number == ATTEMPTS):
                for table, at in ((SampleRow, 0), (SampleDataRow, 1)):
                    await connection.execute(insert(table_of(table)), [row[at] for row in rows])
                rows.clear()
    await database.close()
    return size


async def milliseconds(repeats: int, call: Callable[[int], Awaitable[object]]) -> float:
    """Median duration of `call` over the repeats, in milliseconds."""
    took = []
    for index in range(repeats):
        begun = time.perf_counter()
        await call(index)
        took.append((time.perf_counter() - begun) * 1e3)
    return statistics.median(took)


async def measure_reading(url: str, steps: int) -> dict[str, float]:
    """Durations of curves, tail and count of the long run, in milliseconds."""
    store = await SqlStore.open(url)
    try:
        figures = {
            "series": await milliseconds(15, lambda _: store.samples(RUN)),
            "series_last_tenth": await milliseconds(
                15, lambda _: store.samples(RUN, first_step=steps // 10 * 9)
            ),
            "series_last_20k_steps": await milliseconds(
                15, lambda _: store.samples(RUN, first_step=steps - 20_000)
            ),
            "sample_tail": await milliseconds(15, lambda _: store.sample_tail(RUN)),
            "sample_total": await milliseconds(15, lambda _: store.sample_total(RUN)),
            "load": await milliseconds(15, lambda _: store.load()),
        }
    finally:
        await store.close()
    return {f"{name}_milliseconds_median": value for name, value in figures.items()}


async def measure_commits(url: str, steps: int) -> dict[str, float]:
    """Durations of a turn's commit, and of one with a second's samples of 8 ranks at 20 steps/s."""
    store = await SqlStore.open(url)
    lease = await store.acquire("benchmark", 3600.0, dt.datetime.now(dt.UTC), force=True)
    assert lease is not None
    now = run(attempt=ATTEMPTS)

    async def turn(index: int) -> None:
        changed = dataclasses.replace(now, best_step=index)
        journal = [entry(f"T{index}.{part}") for part in range(3)]
        await store.commit(Batch(entities=[changed], journal=journal), epoch=lease.epoch)

    async def report(index: int) -> None:
        first = steps + 1 + index * 20
        ranks: list[RankSamples] = [columns(first, first + 19, rank=rank) for rank in range(8)]
        batch = Batch(samples=[samples(*ranks, attempt=ATTEMPTS)], sequences={"w1": index})
        await store.commit(batch, epoch=lease.epoch)

    figures = {
        "commit_milliseconds_median": await milliseconds(200, turn),
        "commit_8_ranks_samples_milliseconds_median": await milliseconds(100, report),
    }
    await store.close()
    return figures


async def measure(name: str, url: str, steps: int) -> dict[str, float]:
    """All figures of one database."""
    await schema.upgrade(url)
    begun = time.perf_counter()
    size = await fill(url, steps)
    figures = {
        "fill_seconds": time.perf_counter() - begun,
        "bytes_per_sample": size / steps,
        **await measure_reading(url, steps),
        **await measure_commits(url, steps),
    }
    return {f"{name}_{key}": value for key, value in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10_000_000)
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as directory:
        url = f"sqlite:///{directory}/benchmark.db"
        sqlite = asyncio.run(measure("sqlite", url, steps))
    server = PostgresServer(durable=True)
    try:
        server.start()
        postgresql = asyncio.run(measure("postgresql", server.url(), steps))
    finally:
        server.remove()
    print(f"{'':52} {'SQLite':>10} {'PostgreSQL':>10}")
    for key, value in sqlite.items():
        name = key.removeprefix("sqlite_")
        print(f"{name:52} {value:10.2f} {postgresql['postgresql_' + name]:10.2f}")
    figures = {key: round(value, 3) for key, value in {**sqlite, **postgresql}.items()}
    print(json.dumps({"steps": steps, **figures}))


if __name__ == "__main__":
    main()
