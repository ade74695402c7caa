"""Implements :mod:`.sample_records`: parts and pages of stored samples, in SQL and in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from sqlalchemy import and_, func, select

from jobs.events import RankSamples
from orchestrator.database import samples as arrays
from orchestrator.database.engine import Database
from orchestrator.database.mapping import table_of
from orchestrator.database.models import SampleDataRow, SampleRow
from orchestrator.database.sample_records import PAGE_SAMPLES, SamplePart
from orchestrator.database.samples import Block

_SAMPLES = table_of(SampleRow)
_DATA = table_of(SampleDataRow)
_KEY = ("run", "rank", "attempt", "chunk")


class SqlSampleRecords:
    """Implements :class:`.sample_records.SampleRecords` in SQL."""

    _database: Database

    async def sample_parts(self, run: str) -> list[SamplePart]:
        """See :class:`.sample_records.SampleRecords`."""
        key, of = (_SAMPLES.c.attempt, _SAMPLES.c.rank), _SAMPLES.c
        query = select(
            *key,
            func.min(of.first_step),
            func.max(of.last_step),
            func.sum(of.count),
            func.sum(func.coalesce(of.loss_count, of.count)),
        )
        query = query.where(of.run == run).group_by(*key).order_by(*key)
        async with self._database.reading() as connection:
            rows = await connection.execute(query)
            return [SamplePart(*map(int, row)) for row in rows]

    async def sample_page(
        self, run: str, attempt: int, rank: int, *, after: int = -1
    ) -> RankSamples:
        """See :class:`.sample_records.SampleRecords`."""
        same = and_(*(_SAMPLES.c[name] == _DATA.c[name] for name in _KEY))
        query = (
            select(_DATA.c.data)
            .join_from(_SAMPLES, _DATA, same)
            .where(
                _SAMPLES.c.run == run,
                _SAMPLES.c.rank == rank,
                _SAMPLES.c.attempt == attempt,
                _SAMPLES.c.last_step > after,
            )
            .order_by(_SAMPLES.c.chunk)
            .limit(PAGE_SAMPLES // arrays.CHUNK)
        )
        async with self._database.reading() as connection:
            found = [arrays.unpack(data) for (data,) in await connection.execute(query)]
        return _page(rank, found, after)


class MemorySampleRecords:
    """Implements :class:`.sample_records.SampleRecords` in memory."""

    _samples: Mapping[tuple[str, int, int], list[Block]]

    async def sample_parts(self, run: str) -> list[SamplePart]:
        """See :class:`.sample_records.SampleRecords`."""
        found = []
        for (owner, attempt, rank), blocks in sorted(self._samples.items()):
            if owner == run and blocks:
                whole = np.concatenate(blocks, axis=1)
                steps, losses = whole[arrays.STEP], np.isfinite(whole[arrays.LOSS])
                first, last = int(steps.min()), int(steps.max())
                part = SamplePart(attempt, rank, first, last, len(steps), int(losses.sum()))
                found.append(part)
        return found

    async def sample_page(
        self, run: str, attempt: int, rank: int, *, after: int = -1
    ) -> RankSamples:
        """See :class:`.sample_records.SampleRecords`."""
        return _page(rank, self._samples.get((run, attempt, rank), []), after, PAGE_SAMPLES)


def _page(rank: int, blocks: Sequence[Block], after: int, most: int | None = None) -> RankSamples:
    if not blocks:
        return RankSamples(rank=rank)
    whole = np.concatenate(blocks, axis=1)
    return arrays.samples_of(rank, whole[:, whole[arrays.STEP] > after][:, :most])
