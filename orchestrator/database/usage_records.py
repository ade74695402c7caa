"""Runs of a period with everything that says what they used.

Runs, attempts and workers stay when the history of a run is removed, so usage of the past does not
change with retention.
"""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from sqlalchemy import or_, select

from orchestrator.core.model.entities import Attempt, Run, Worker
from orchestrator.core.views.usage import RunRecord
from orchestrator.database.engine import Database
from orchestrator.database.mapping import ATTEMPTS, RUNS, WORKERS


class UsageRecords(Protocol):
    """The part of the run database that says what runs used."""

    async def usage_records(
        self, since: dt.datetime, until: dt.datetime, *, after: str = "", limit: int = 100
    ) -> list[RunRecord]:
        """Runs that existed in a period, by id, after an id; with all attempts and workers."""


def _records(
    runs: Sequence[Run], attempts: Iterable[Attempt], workers: Iterable[Worker]
) -> list[RunRecord]:
    by_run: dict[str, tuple[list[Attempt], list[Worker]]] = defaultdict(lambda: ([], []))
    for attempt in attempts:
        by_run[attempt.run][0].append(attempt)
    for worker in workers:
        by_run[worker.run][1].append(worker)
    return [
        RunRecord(
            run=run,
            attempts=sorted(by_run[run.id][0], key=lambda each: each.number),
            workers=by_run[run.id][1],
        )
        for run in runs
    ]


class SqlUsageRecords:
    """Implements :class:`UsageRecords` over a database."""

    _database: Database

    async def usage_records(
        self, since: dt.datetime, until: dt.datetime, *, after: str = "", limit: int = 100
    ) -> list[RunRecord]:
        """Runs that existed in a period."""
        run = RUNS.table.c
        alive = or_(run.ended_at.is_(None), run.ended_at > since)
        wanted = select(run.body).where(run.id > after, run.submitted_at < until, alive)
        async with self._database.reading() as connection:
            rows = (await connection.execute(wanted.order_by(run.id).limit(limit))).scalars()
            runs = [RUNS.entity_of(body) for body in rows]
            found: list[list[Any]] = []
            for mapped in (ATTEMPTS, WORKERS):
                table = mapped.table.c
                query = select(table.body).where(table.run.in_([each.id for each in runs]))
                bodies = (await connection.execute(query)).scalars()
                found.append([mapped.entity_of(body) for body in bodies])
        return _records(runs, *found)


class MemoryUsageRecords:
    """Implements :class:`UsageRecords` over entities in memory."""

    _entities: dict[type, dict[str, Any]]

    async def usage_records(
        self, since: dt.datetime, until: dt.datetime, *, after: str = "", limit: int = 100
    ) -> list[RunRecord]:
        """Runs that existed in a period."""
        runs = [
            run
            for run in sorted(self._entities[Run].values(), key=lambda each: str(each.id))
            if run.id > after
            and run.submitted_at < until
            and (run.ended_at is None or run.ended_at > since)
        ][:limit]
        return _records(runs, self._entities[Attempt].values(), self._entities[Worker].values())
