"""Samples in SQL: appends to the newest chunk of a rank."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from sqlalchemy import select, text, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from jobs.events import RankSamples
from orchestrator.database import metric_columns
from orchestrator.database import samples as arrays
from orchestrator.database.mapping import table_of, upsert
from orchestrator.database.models import SampleDataRow, SampleRow
from orchestrator.database.port import WorkerSamples

_SAMPLES = table_of(SampleRow)
_DATA = table_of(SampleDataRow)
IS_TAIL = text("samples.tail")
"""As in the partial index of newest chunks: SQLite takes that for this very text only."""
_PAGE = 400
"""Ranks per query."""

Key = tuple[str, int, int]
"""Run, attempt, rank."""


class Tail(NamedTuple):
    """The newest chunk of a rank's samples, as it is stored."""

    chunk: int
    lost: int
    samples: int
    data: bytes
    metrics: bytes | None


class Appended(NamedTuple):
    """Rows of samples, and the newest chunk of each rank among them."""

    summaries: list[dict[str, Any]]
    data: list[dict[str, Any]]
    tails: dict[Key, Tail]


def append(samples: Sequence[WorkerSamples], tails: Mapping[Key, Tail]) -> Appended:
    """The rows of samples that are appended to the newest chunks of their ranks. Pure."""
    merged: dict[Key, list[RankSamples]] = defaultdict(list)
    for worker in samples:
        for rank in worker.ranks:
            if rank.step:
                merged[worker.run, worker.attempt, rank.rank].append(rank)
    made = Appended([], [], {})
    for of, parts in merged.items():
        _append_to(made, of, parts, tails.get(of))
    return made


def _append_to(made: Appended, of: Key, parts: Sequence[RankSamples], tail: Tail | None) -> None:
    run, attempt, number = of
    new = np.concatenate([arrays.block_of(part) for part in parts], axis=1)
    blocks = arrays.split(arrays.unpack(tail.data) if tail else None, new)
    named = [metric_columns.unpack(tail.metrics, tail.samples)] if tail else []
    metrics = metric_columns.join([*named, *(metric_columns.columns_of(part) for part in parts)])
    for at, block in enumerate(blocks):
        chunk = at + (tail.chunk if tail else 0)
        key = {"run": run, "rank": number, "attempt": attempt, "chunk": chunk}
        lost = tail.lost if tail and at == 0 else 0
        last = at == len(blocks) - 1
        if last:
            lost += sum(part.lost for part in parts)
        made.summaries.append({**key, "tail": last, "lost": lost, **arrays.summary(block)})
        first = at * arrays.CHUNK
        packed = metric_columns.pack(metrics.part(first, first + block.shape[1]))
        data = arrays.pack(block)
        made.data.append({**key, "data": data, "metrics": packed})
        if last:
            made.tails[of] = Tail(chunk, lost, block.shape[1], data, packed)


async def write(connection: AsyncConnection, appended: Appended) -> None:
    """Write rows of samples."""
    await upsert(connection, _SAMPLES, appended.summaries)
    await upsert(connection, _DATA, appended.data)


async def read_tails(connection: AsyncConnection, keys: Sequence[Key]) -> dict[Key, Tail]:
    """The newest chunk of each rank; the number of queries grows with pages of ranks only."""
    names = ("run", "attempt", "rank", "chunk", "lost", "count")
    found: dict[Key, Tail] = {}
    for at in range(0, len(keys), _PAGE):
        query = (
            select(*(_SAMPLES.c[name] for name in names), _DATA.c.data, _DATA.c.metrics)
            .join_from(_SAMPLES, _DATA)
            .where(
                tuple_(_SAMPLES.c.run, _SAMPLES.c.attempt, _SAMPLES.c.rank).in_(
                    keys[at : at + _PAGE]
                ),
                _SAMPLES.c.run.in_({run for run, _, _ in keys[at : at + _PAGE]}),
                IS_TAIL,
            )
        )
        for run, attempt, rank, *tail in await connection.execute(query):
            found[run, attempt, rank] = Tail(*tail)
    return found
