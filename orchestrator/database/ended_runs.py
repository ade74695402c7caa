"""Runs that have ended, in the order in which they did, and the restarts of runs: for metrics.

Counters must not depend on how many runs there ever were: a server reads each ended run once, and
then only those that have ended since.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from typing import Protocol

from sqlalchemy import ColumnElement, and_, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.core.model.decisions import Restart
from orchestrator.core.model.entities import Attempt, Run
from orchestrator.database.engine import Database
from orchestrator.database.mapping import ATTEMPTS, RUNS

_RUN, _ATTEMPT = RUNS.table.c, ATTEMPTS.table.c
Place = tuple[dt.datetime, str]
"""Where an ended run stands in the order of ends: its end, and its id."""


class EndedRuns(Protocol):
    """The part of the run database that counts the past."""

    async def ended_runs(self, after: Place | None, *, limit: int) -> list[Run]:
        """Runs that have ended, the first to end first, after a place in that order."""

    async def restarts(self, runs: Sequence[str]) -> dict[str, list[Restart]]:
        """Restarts of some runs, in order; a run without any is absent. Takes one query."""


def place_of(run: Run) -> Place:
    """The place of a run that has ended.

    Raises:
        ValueError: It has not.
    """
    if run.ended_at is None:
        raise ValueError(f"run {run.id} has not ended")
    return run.ended_at, run.id


def _restarts(attempts: Iterable[Attempt]) -> dict[str, list[Restart]]:
    found: dict[str, list[Restart]] = {}
    for attempt in sorted(attempts, key=lambda each: each.number):
        if attempt.restart is not None:
            found.setdefault(attempt.run, []).append(attempt.restart)
    return found


class SqlEndedRuns:
    """Implements :class:`EndedRuns` over a database."""

    _database: Database

    async def ended_runs(self, after: Place | None, *, limit: int) -> list[Run]:
        """Runs that have ended, the first to end first."""
        where: list[ColumnElement[bool]] = [_RUN.ended_at.is_not(None)]
        if after is not None:
            at, id_ = after
            where.append(or_(_RUN.ended_at > at, and_(_RUN.ended_at == at, _RUN.id > id_)))
            where.append(_RUN.ended_at >= at)  # the index begins here
        query = select(_RUN.body).where(*where).order_by(_RUN.ended_at, _RUN.id).limit(limit)
        async with self._database.reading() as connection:
            bodies = (await connection.execute(query)).scalars()
            return [RUNS.entity_of(body) for body in bodies]

    async def restarts(self, runs: Sequence[str]) -> dict[str, list[Restart]]:
        """Restarts of some runs, in order."""
        if not runs:
            return {}
        async with self._database.reading() as connection:
            return _restarts(await _later_attempts(connection, runs))


async def _later_attempts(connection: AsyncConnection, runs: Sequence[str]) -> list[Attempt]:
    query = select(_ATTEMPT.body).where(_ATTEMPT.run.in_(runs), _ATTEMPT.number > 1)
    return [ATTEMPTS.entity_of(body) for body in (await connection.execute(query)).scalars()]


class MemoryEndedRuns:
    """Implements :class:`EndedRuns` over entities in memory."""

    _entities: dict[type, dict[str, object]]

    async def ended_runs(self, after: Place | None, *, limit: int) -> list[Run]:
        """Runs that have ended, the first to end first."""
        runs = [run for run in self._entities[Run].values() if isinstance(run, Run)]
        ended = sorted((run for run in runs if run.ended_at is not None), key=place_of)
        return [run for run in ended if after is None or place_of(run) > after][:limit]

    async def restarts(self, runs: Sequence[str]) -> dict[str, list[Restart]]:
        """Restarts of some runs, in order."""
        attempts = [a for a in self._entities[Attempt].values() if isinstance(a, Attempt)]
        return _restarts(attempt for attempt in attempts if attempt.run in set(runs))
