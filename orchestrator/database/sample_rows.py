"""Samples in SQL: reads curves; :mod:`.sample_appends` writes them.

A curve over millions of steps comes from summaries; only chunks at the borders between attempts are
unpacked.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from sqlalchemy import ColumnElement, and_, func, select, text, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from jobs.events import RankSamples
from orchestrator.database import samples as arrays
from orchestrator.database.mapping import table_of
from orchestrator.database.models import SampleDataRow, SampleRow
from orchestrator.database.port import Series
from orchestrator.database.sample_appends import IS_TAIL
from orchestrator.database.samples import Block, Points

_SAMPLES = table_of(SampleRow)
_DATA = table_of(SampleDataRow)
_KEY = ("run", "rank", "attempt", "chunk")
_GROUPED = (
    *("attempt", "part", "first_step", "count"),
    *("loss_min", "loss_max", "loss_count", "seconds_sum"),
)
_OF_THE_LAST = ("last_step", "loss_last", "grad_norm_last", "last_time")
UNPACKED = 128
"""Curves of up to this many chunks (65 thousand samples) use the samples, longer ones summaries."""
_RUNS = 64
"""Runs whose newest samples are read by one query."""
_PAGE = 400
"""Chunks per query."""


async def speaker(connection: AsyncConnection, run: str) -> int:
    """The lowest rank with a loss; while there is none, the lowest rank."""
    ranks = select(_SAMPLES.c.rank).where(_SAMPLES.c.run == run).order_by(_SAMPLES.c.rank).limit(1)
    found = (await connection.execute(ranks.where(_SAMPLES.c.loss_max.is_not(None)))).scalar()
    if found is None:
        found = (await connection.execute(ranks)).scalar()
    return found or 0


class Newest(NamedTuple):
    """The newest sample of the rank that speaks for a run."""

    step: int
    loss: float
    """NaN where it has none."""
    rank: int


async def newest_steps(connection: AsyncConnection, runs: Sequence[str]) -> dict[str, Newest]:
    """Run → the newest sample of the rank that speaks.

    The newest chunks of ranks and attempts tell who speaks; unlike for :func:`speaker`, a rank
    counts as one with a loss only while it has one among its last samples.
    """
    if not runs:
        return {}
    columns = ("run", "rank", "attempt", "last_step", "loss_last", "loss_max")
    query = select(*(_SAMPLES.c[name] for name in columns))
    rows = await connection.execute(query.where(_SAMPLES.c.run.in_(runs), IS_TAIL))
    best: dict[str, tuple[tuple[bool, int, int], Newest]] = {}
    for run, rank, attempt, step, loss, most in rows:
        order = (most is None, rank, -attempt)
        if run not in best or order < best[run][0]:
            best[run] = order, Newest(step, float("nan") if loss is None else loss, rank)
    return {run: newest for run, (_, newest) in best.items()}


async def series(
    connection: AsyncConnection, run: str, *, points: int, first_step: int, attempt: int | None
) -> Series:
    """See :meth:`orchestrator.database.port.Store.samples`.

    The query goes from coarse to fine: summaries of groups of chunks; the chunks of groups that
    newer attempts hide in part; and the samples of chunks that they hide in part.
    """
    rank = await speaker(connection, run)
    where = [
        _SAMPLES.c.run == run,
        _SAMPLES.c.rank == rank,
        _SAMPLES.c.last_step >= first_step,
        *([] if attempt is None else [_SAMPLES.c.attempt == attempt]),
    ]
    count = (await connection.execute(select(func.count()).where(*where))).scalar_one()
    size = max(1, count // max(1, 2 * points)) if count > UNPACKED else 1
    groups = await _groups(connection, where, size)
    hidden = _hidden(groups, first_step)
    if count <= UNPACKED:
        parts = await _unpacked(connection, (run, rank), groups, hidden)
    else:
        whole, touched = _split(groups, hidden)
        parts = [arrays.points_of_summaries(whole)]
        if size > 1:
            chunks = await _chunks(connection, where, touched, size)
            whole, touched = _split(chunks, hidden)
            parts.append(arrays.points_of_summaries(whole))
        parts += await _unpacked(connection, (run, rank), touched, hidden)
    return arrays.thin(arrays.join(parts), points)


Table = dict[str, Block]
"""Columns of equal length: `attempt`, `part` (a group of consecutive chunks), and summaries."""
Hull = tuple[float, float]
"""First and last step, both inclusive."""
Hulls = tuple[Hull, ...]


async def _groups(
    connection: AsyncConnection, where: Sequence[ColumnElement[bool]], size: int
) -> Table:
    """Summaries of groups of `size` chunks, in order of attempts and steps."""
    samples = _SAMPLES.c
    groups = (
        select(
            samples.run,
            samples.rank,
            samples.attempt,
            (samples.chunk // size).label("part"),
            func.max(samples.chunk).label("chunk"),
            func.min(samples.first_step).label("first_step"),
            func.sum(samples.count).label("count"),
            func.min(samples.loss_min).label("loss_min"),
            func.max(samples.loss_max).label("loss_max"),
            func.sum(func.coalesce(samples.loss_count, samples.count)).label("loss_count"),
            func.sum(samples.seconds_sum).label("seconds_sum"),
        )
        .where(*where)
        .group_by(samples.run, samples.rank, samples.attempt, text("part"))
        .subquery()
    )
    last = [groups.c[name] == samples[name] for name in _KEY]
    query = select(
        *(groups.c[name] for name in _GROUPED), *(samples[name] for name in _OF_THE_LAST)
    ).join_from(groups, _SAMPLES, and_(*last))
    rows = (await connection.execute(query.order_by(groups.c.attempt, groups.c.part))).all()
    columns = zip(*rows, strict=True) if rows else [()] * len(_GROUPED + _OF_THE_LAST)
    # Convert by column: numpy converts the same values by row a hundred times slower.
    arrays_ = (np.array(column, dtype=np.float64) for column in columns)
    return dict(zip(_GROUPED + _OF_THE_LAST, arrays_, strict=True))


async def _chunks(
    connection: AsyncConnection, where: Sequence[ColumnElement[bool]], groups: Table, size: int
) -> Table:
    """The single chunks of some groups."""
    keys = _keys(groups)
    pages = [
        await _groups(
            connection,
            [
                *where,
                tuple_(_SAMPLES.c.attempt, _SAMPLES.c.chunk // size).in_(keys[at : at + _PAGE]),
            ],
            1,
        )
        for at in range(0, len(keys), _PAGE)
    ]
    if not pages:
        return groups
    return {name: np.concatenate([page[name] for page in pages]) for name in pages[0]}


def _keys(table: Table) -> list[tuple[int, int]]:
    return [(int(a), int(p)) for a, p in zip(table["attempt"], table["part"], strict=True)]


def _hidden(table: Table, first_step: int) -> dict[int, Hulls]:
    """Hidden steps of each attempt: steps of newer attempts, and steps before `first_step`."""
    hulls: Hulls = ((-np.inf, first_step - 1.0),)
    hidden: dict[int, Hulls] = {}
    for attempt in np.unique(table["attempt"])[::-1]:
        mine = slice(*np.searchsorted(table["attempt"], (attempt, attempt + 1)))
        hidden[int(attempt)] = hulls
        hulls = _joined(hulls, (table["first_step"][mine].min(), table["last_step"][mine].max()))
    return hidden


def _split(table: Table, hidden: Mapping[int, Hulls]) -> tuple[Table, Table]:
    """Rows whose steps are all visible, and rows whose steps are visible in part."""
    attempts, first, last = table["attempt"], table["first_step"], table["last_step"]
    touched, covered = np.zeros(len(attempts), bool), np.zeros(len(attempts), bool)
    for attempt, hulls in hidden.items():
        mine = slice(*np.searchsorted(attempts, (attempt, attempt + 1)))
        for low, high in hulls:
            touched[mine] |= (first[mine] <= high) & (last[mine] >= low)
            covered[mine] |= (first[mine] >= low) & (last[mine] <= high)
    return (
        {name: column[~touched] for name, column in table.items()},
        {name: column[touched & ~covered] for name, column in table.items()},
    )


def _joined(hulls: Hulls, new: Hull) -> Hulls:
    """Add a hull to others and merge those that touch, so that few remain for many attempts."""
    apart = tuple(hull for hull in hulls if hull[1] < new[0] - 1 or hull[0] > new[1] + 1)
    touching = [hull for hull in hulls if hull not in apart]
    lows, highs = zip(new, *touching, strict=True)
    return (*apart, (float(min(lows)), float(max(highs))))


async def _unpacked(
    connection: AsyncConnection,
    of: tuple[str, int],
    chunks: Table,
    hidden: Mapping[int, Hulls],
) -> list[Points]:
    """The samples of some chunks of a run and rank, without the hidden steps."""
    keys = _keys(chunks)
    parts: list[Points] = []
    for at in range(0, len(keys), _PAGE):
        query = select(_DATA.c.attempt, _DATA.c.data).where(
            _DATA.c.run == of[0],
            _DATA.c.rank == of[1],
            tuple_(_DATA.c.attempt, _DATA.c.chunk).in_(keys[at : at + _PAGE]),
        )
        for attempt, data in await connection.execute(query):
            found = arrays.points_of(attempt, arrays.unpack(data))
            visible = np.ones(len(found.step), bool)
            for low, high in hidden[attempt]:
                visible &= (found.step < low) | (found.step > high)
            parts.append(arrays.select(found, visible))
    return parts


async def tail(connection: AsyncConnection, run: str, count: int) -> list[tuple[int, RankSamples]]:
    """See :meth:`orchestrator.database.port.Store.sample_tail`."""
    rank = await speaker(connection, run)
    found: list[tuple[int, Block]] = []
    missing, offset = count, 0
    while missing > 0:
        page = await _newest(
            connection, run, rank, limit=missing // arrays.CHUNK + 8, offset=offset
        )
        if not page:
            break
        offset += len(page)
        found += page
        missing -= sum(block.shape[1] for _, block in page)
    blocks = [(attempt, block) for attempt, block in reversed(found)]
    return newest_samples(blocks, count, rank)


async def tails(
    connection: AsyncConnection, runs: Sequence[str], count: int
) -> dict[str, list[tuple[int, RankSamples]]]:
    """See :meth:`orchestrator.database.port.Store.sample_tails`."""
    found: dict[str, list[tuple[int, RankSamples]]] = {}
    for at in range(0, len(runs), _RUNS):
        speakers = await newest_steps(connection, runs[at : at + _RUNS])
        found |= await _tails_of(
            connection, {run: newest.rank for run, newest in speakers.items()}, count
        )
    return found


async def _tails_of(
    connection: AsyncConnection, speakers: Mapping[str, int], count: int
) -> dict[str, list[tuple[int, RankSamples]]]:
    if not speakers:
        return {}
    key = (_DATA.c.run, _DATA.c.attempt, _DATA.c.chunk)
    order = [_DATA.c.attempt.desc(), _DATA.c.chunk.desc()]
    place = func.row_number().over(partition_by=_DATA.c.run, order_by=order).label("place")
    numbered = (
        select(*key, _DATA.c.rank, place)
        .where(tuple_(_DATA.c.run, _DATA.c.rank).in_(list(speakers.items())))
        .where(_DATA.c.run.in_(list(speakers)))
        .subquery()
    )
    same = and_(*(numbered.c[name] == _DATA.c[name] for name in _KEY))
    query = (
        select(_DATA.c.run, _DATA.c.attempt, _DATA.c.data)
        .join_from(numbered, _DATA, same)
        .where(numbered.c.place <= count // arrays.CHUNK + 8)
        .order_by(numbered.c.run, numbered.c.place.desc())
    )
    blocks: dict[str, list[tuple[int, Block]]] = defaultdict(list)
    for run, attempt, data in await connection.execute(query):
        blocks[run].append((attempt, arrays.unpack(data)))
    return {run: newest_samples(each, count, speakers[run]) for run, each in blocks.items()}


def newest_samples(
    blocks: Sequence[tuple[int, Block]], count: int, rank: int
) -> list[tuple[int, RankSamples]]:
    """The last `count` samples of blocks (oldest first), joined by attempt."""
    by_attempt: dict[int, list[Block]] = defaultdict(list)
    missing = count
    for attempt, block in reversed(blocks):
        if missing <= 0:
            break
        by_attempt[attempt].insert(0, block[:, -missing:])
        missing -= block.shape[1]
    return [
        (attempt, arrays.samples_of(rank, np.concatenate(by_attempt[attempt], axis=1)))
        for attempt in sorted(by_attempt)
    ]


async def _newest(
    connection: AsyncConnection, run: str, rank: int, *, limit: int, offset: int
) -> list[tuple[int, Block]]:
    query = (
        select(_DATA.c.attempt, _DATA.c.data)
        .where(_DATA.c.run == run, _DATA.c.rank == rank)
        .order_by(_DATA.c.attempt.desc(), _DATA.c.chunk.desc())
        .limit(limit)
        .offset(offset)
    )
    return [(a, arrays.unpack(data)) for a, data in await connection.execute(query)]


async def total(connection: AsyncConnection, run: str, attempt: int | None) -> int:
    """Number of stored samples, over all ranks."""
    query = select(func.coalesce(func.sum(_SAMPLES.c.count), 0)).where(_SAMPLES.c.run == run)
    if attempt is not None:
        query = query.where(_SAMPLES.c.attempt == attempt)
    return int((await connection.execute(query)).scalar_one())
