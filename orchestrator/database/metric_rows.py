"""Named metrics in SQL: reads series. :mod:`.sample_rows` writes them with the samples."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.database import metric_columns, sample_rows, samples
from orchestrator.database.mapping import table_of
from orchestrator.database.metric_columns import MetricPoints
from orchestrator.database.models import SampleDataRow, SampleRow
from orchestrator.database.port import MetricSeries

_SAMPLES = table_of(SampleRow)
_DATA = table_of(SampleDataRow)
CHUNKS_READ = 128
"""Most chunks that one series reads."""


async def series(
    connection: AsyncConnection, run: str, *, points: int, first_step: int, attempt: int | None
) -> MetricSeries:
    """See :meth:`orchestrator.database.port.Store.metrics`."""
    told = (_DATA.c.run == run, _DATA.c.metrics.is_not(None))
    speaker = await sample_rows.speaker(connection, run)
    ranks = select(_DATA.c.rank).where(*told).order_by(_DATA.c.rank != speaker, _DATA.c.rank)
    rank = (await connection.execute(ranks.limit(1))).scalar()
    if rank is None:
        return metric_columns.series([], first_step, points)
    key = [_DATA.c.attempt, _DATA.c.chunk]
    where = [
        *told,
        _DATA.c.rank == rank,
        _SAMPLES.c.last_step >= first_step,
        *([] if attempt is None else [_DATA.c.attempt == attempt]),
    ]
    count = (
        await connection.execute(
            select(func.count()).select_from(_DATA).join(_SAMPLES).where(*where)
        )
    ).scalar_one()
    place = func.row_number().over(order_by=[column.desc() for column in key])
    numbered = (
        select(*key, _SAMPLES.c.count, _DATA.c.data, _DATA.c.metrics, (place - 1).label("place"))
        .select_from(_DATA)
        .join(_SAMPLES)
        .where(*where)
        .subquery()
    )
    apart = max(1, -(-count // CHUNKS_READ))  # the newest chunk is always one of them
    query = (
        select(numbered)
        .where(numbered.c.place % apart == 0)
        .order_by(numbered.c.attempt, numbered.c.chunk)
    )
    parts = []
    for number, _, size, data, metrics, _ in await connection.execute(query):
        steps = samples.unpack(data)[samples.STEP]
        parts.append(MetricPoints(number, steps, metric_columns.unpack(metrics, size)))
    return metric_columns.series(parts, first_step, points)
