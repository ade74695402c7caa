"""Queries of the run database, except samples and tokens. Each runs in the caller's transaction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Select, and_, false, func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from jobs.shards import ShardReport
from orchestrator.core.messages.instructions import INSTRUCTION
from orchestrator.core.model.entities import (
    Attempt,
    Checkpoint,
    Fleet,
    Incident,
    Node,
    Queue,
    Run,
    Worker,
)
from orchestrator.core.model.states import (
    LIVE_ATTEMPT_STATES,
    TERMINAL_RUN_STATES,
    IncidentState,
    RunState,
    WorkerState,
)
from orchestrator.database import sample_rows
from orchestrator.database.mapping import (
    ATTEMPTS,
    CHECKPOINTS,
    FLEET,
    INCIDENTS,
    NODES,
    QUEUES,
    RUNS,
    WORKERS,
    Mapped,
    table_of,
)
from orchestrator.database.models import JournalRow, OutboxRow, ShardRow
from orchestrator.database.packing import unpack
from orchestrator.database.port import JournalEntry, RunNumbers, Snapshot
from orchestrator.database.references import SHORTEST, ids_of, pick_incident, pick_run
from orchestrator.errors import NotFoundError

E = TypeVar("E")

_SHARDS = table_of(ShardRow)
_JOURNAL = table_of(JournalRow)
_OUTBOX = table_of(OutboxRow)
_HINTS = 1000
"""Number of newest names searched for similar ones."""
_RUN, _ATTEMPT, _WORKER = RUNS.table.c, ATTEMPTS.table.c, WORKERS.table.c
_NODE, _CHECKPOINT, _INCIDENT = NODES.table.c, CHECKPOINTS.table.c, INCIDENTS.table.c


async def _entities(
    connection: AsyncConnection,
    mapped: Mapped[E],
    *where: ColumnElement[bool],
    order: Sequence[Any],
    limit: int | None = None,
) -> list[E]:
    query: Select[Any] = select(mapped.table.c.body).where(*where).order_by(*order).limit(limit)
    return [mapped.entity_of(body) for body in (await connection.execute(query)).scalars()]


async def load(connection: AsyncConnection) -> Snapshot:
    """See :meth:`orchestrator.database.port.Store.load`."""
    running = _RUN.id.in_(select(_WORKER.run).where(_WORKER.state != WorkerState.ENDED.value))
    alive = _RUN.id.in_(
        select(_ATTEMPT.run).where(_ATTEMPT.state.in_([s.value for s in LIVE_ATTEMPT_STATES]))
    )
    open_run = or_(_RUN.state.not_in([s.value for s in TERMINAL_RUN_STATES]), running, alive)
    ours = select(_RUN.id).where(open_run)
    newest = (
        select(_ATTEMPT.run, func.max(_ATTEMPT.number).label("number"))
        .group_by(_ATTEMPT.run)
        .subquery()
    )
    is_newest = (
        select(newest.c.run)
        .where(newest.c.run == _ATTEMPT.run, newest.c.number == _ATTEMPT.number)
        .exists()
    )
    return Snapshot(
        runs=await _entities(connection, RUNS, open_run, order=[_RUN.submitted_at, _RUN.id]),
        attempts=await _entities(
            connection, ATTEMPTS, _ATTEMPT.run.in_(ours), is_newest, order=[_ATTEMPT.run]
        ),
        workers=await workers(connection, None, ended=False),
        nodes=await nodes(connection),
        checkpoints=await _entities(
            connection,
            CHECKPOINTS,
            _CHECKPOINT.run.in_(ours),
            _CHECKPOINT.removed_at.is_(None),
            order=[_CHECKPOINT.run, _CHECKPOINT.step, _CHECKPOINT.id],
        ),
        incidents=await _entities(
            connection,
            INCIDENTS,
            or_(_INCIDENT.run.in_(ours), _INCIDENT.run.is_(None)),
            _INCIDENT.state != IncidentState.RESOLVED.value,
            order=[_INCIDENT.opened_at, _INCIDENT.id],
        ),
        queues=await queues(connection),
        fleet=await _fleet(connection),
        sequences=await _sequences(connection),
        outbox=await _outbox(connection),
    )


async def _fleet(connection: AsyncConnection) -> Fleet:
    found = await _entities(connection, FLEET, order=[FLEET.table.c.id])
    return found[0] if found else Fleet()


async def _sequences(connection: AsyncConnection) -> dict[str, int]:
    query = select(_WORKER.id, _WORKER.last_sequence).where(
        _WORKER.state != WorkerState.ENDED.value, _WORKER.last_sequence >= 0
    )
    return {worker: sequence for worker, sequence in await connection.execute(query)}  # noqa: C416 (rows are not pairs to mypy)


async def _outbox(connection: AsyncConnection) -> list[Any]:
    query = select(_OUTBOX.c.body).where(~_OUTBOX.c.done).order_by(_OUTBOX.c.position)
    bodies = (await connection.execute(query)).scalars()
    # Ignore fields that an older version wrote: a leftover instruction must not stop a server.
    return [INSTRUCTION.validate_python(body, extra="ignore") for body in bodies]


async def run_numbers(connection: AsyncConnection, runs: Sequence[Run]) -> dict[str, RunNumbers]:
    """See :meth:`orchestrator.database.port.Store.run_numbers`."""
    started = [run.id for run in runs if run.attempt > 0]
    newest = await sample_rows.newest_steps(connection, started)
    again = [run.id for run in runs if run.attempt > 1]
    attempts = (
        await _entities(connection, ATTEMPTS, _ATTEMPT.run.in_(again), order=[]) if again else []
    )
    restarts = Counter(attempt.run for attempt in attempts if attempt.restart is not None)
    return {
        run.id: RunNumbers(
            step=newest[run.id].step if run.id in newest else None,
            loss=newest[run.id].loss if run.id in newest else None,
            restarts=restarts[run.id],
        )
        for run in runs
    }


async def run(connection: AsyncConnection, reference: str) -> Run:
    """See :meth:`orchestrator.database.port.Store.run`."""
    named = select(_RUN.id, _RUN.name).order_by(_RUN.submitted_at.desc(), _RUN.id.desc())
    meant = or_(
        _RUN.id == reference,
        _RUN.name == reference,
        _begins(_RUN.id, reference),
        _ends(_RUN.id, reference),
    )
    candidates = [(id_, name) for id_, name in await connection.execute(named.where(meant))]
    names: list[str] = []
    if not candidates:
        names = [name for _, name in await connection.execute(named.limit(_HINTS))]
    id_ = pick_run(reference, candidates, names)
    return (await _entities(connection, RUNS, _RUN.id == id_, order=[_RUN.id]))[0]


def _begins(column: ColumnElement[str], reference: str) -> ColumnElement[bool]:
    if len(reference) < SHORTEST:
        return false()
    return func.upper(func.substr(column, 1, len(reference))) == reference.upper()


def _ends(column: ColumnElement[str], reference: str) -> ColumnElement[bool]:
    if len(reference) < SHORTEST:
        return false()
    start = func.length(column) - len(reference) + 1
    fits = func.length(column) >= len(reference)
    return and_(fits, func.upper(func.substr(column, start)) == reference.upper())


async def runs(
    connection: AsyncConnection, states: Sequence[RunState], name: str | None, limit: int
) -> list[Run]:
    """Runs, newest first."""
    where: list[ColumnElement[bool]] = []
    if states:
        where.append(_RUN.state.in_([state.value for state in states]))
    if name is not None:
        where.append(_RUN.name == name)
    order = [_RUN.submitted_at.desc(), _RUN.id.desc()]
    return await _entities(connection, RUNS, *where, order=order, limit=limit)


async def attempts(connection: AsyncConnection, run: str) -> list[Attempt]:
    """Attempts of a run, oldest first."""
    return await _entities(connection, ATTEMPTS, _ATTEMPT.run == run, order=[_ATTEMPT.number])


async def workers(connection: AsyncConnection, run: str | None, *, ended: bool) -> list[Worker]:
    """Workers of a run (None: of all runs), oldest first."""
    where: list[ColumnElement[bool]] = []
    if run is not None:
        where.append(_WORKER.run == run)
    if not ended:
        where.append(_WORKER.state != WorkerState.ENDED.value)
    return await _entities(connection, WORKERS, *where, order=[_WORKER.launched_at, _WORKER.id])


async def nodes(connection: AsyncConnection) -> list[Node]:
    """All nodes, by id."""
    return await _entities(connection, NODES, order=[_NODE.id])


async def checkpoints(connection: AsyncConnection, run: str, *, deleted: bool) -> list[Checkpoint]:
    """Checkpoints of a run, newest step first; of equal steps, the newest first."""
    where: list[ColumnElement[bool]] = [_CHECKPOINT.run == run]
    if not deleted:
        where.append(_CHECKPOINT.removed_at.is_(None))
    order = [_CHECKPOINT.step.desc(), _CHECKPOINT.created_at.desc(), _CHECKPOINT.id.desc()]
    return await _entities(connection, CHECKPOINTS, *where, order=order)


async def checkpoint(connection: AsyncConnection, id_: str) -> tuple[Checkpoint, list[ShardReport]]:
    """One checkpoint with its shards, by rank.

    Raises:
        NotFoundError: There is no such checkpoint.
    """
    found = await _entities(connection, CHECKPOINTS, _CHECKPOINT.id == id_, order=[_CHECKPOINT.id])
    if not found:
        raise no_such_checkpoint(id_)
    query = select(_SHARDS.c.body).where(_SHARDS.c.checkpoint == id_).order_by(_SHARDS.c.rank)
    bodies = (await connection.execute(query)).scalars()
    return found[0], [ShardReport.model_validate(body, extra="ignore") for body in bodies]


def no_such_checkpoint(id_: str) -> NotFoundError:
    """The error for an unknown checkpoint id."""
    return NotFoundError(
        f"no checkpoint {id_!r}; `babysit checkpoints ls RUN` lists the checkpoints of a run"
    )


async def incidents(
    connection: AsyncConnection, run: str | None, *, open_only: bool, limit: int
) -> list[Incident]:
    """Incidents of a run (None: of all runs), newest first."""
    where: list[ColumnElement[bool]] = []
    if run is not None:
        where.append(_INCIDENT.run == run)
    if open_only:
        where.append(_INCIDENT.state != IncidentState.RESOLVED.value)
    order = [_INCIDENT.opened_at.desc(), _INCIDENT.id.desc()]
    return await _entities(connection, INCIDENTS, *where, order=order, limit=limit)


async def incident(connection: AsyncConnection, reference: str) -> Incident:
    """One incident by id, prefix or suffix.

    Raises:
        NotFoundError: No or several incidents match.
    """
    ids = select(_INCIDENT.id).order_by(_INCIDENT.opened_at.desc(), _INCIDENT.id.desc())
    meant = or_(
        _INCIDENT.id == reference, _begins(_INCIDENT.id, reference), _ends(_INCIDENT.id, reference)
    )
    candidates = list((await connection.execute(ids.where(meant))).scalars())
    known: list[str] = []
    if not candidates:
        known = list((await connection.execute(ids.limit(_HINTS))).scalars())
    id_ = pick_incident(reference, candidates, known)
    return (await _entities(connection, INCIDENTS, _INCIDENT.id == id_, order=[_INCIDENT.id]))[0]


async def queues(connection: AsyncConnection) -> list[Queue]:
    """All queues that are not removed, by name."""
    found = await _entities(connection, QUEUES, order=[QUEUES.table.c.name])
    return [queue for queue in found if not queue.removed]


def _journal_entry(row: dict[str, Any]) -> JournalEntry:
    packed = row.pop("packed")
    return JournalEntry(**{**row, "payload": unpack(row["payload"], packed)})


async def journal(
    connection: AsyncConnection,
    run: str | None,
    after: int,
    before: int | None,
    limit: int,
    kind: str | None,
) -> list[JournalEntry]:
    """Journal entries in order of writing; with `before`, the last `limit` below that position."""
    query = select(_JOURNAL).where(_JOURNAL.c.position > after)
    order = _JOURNAL.c.position.asc()
    if before is not None:
        query, order = query.where(_JOURNAL.c.position < before), _JOURNAL.c.position.desc()
    if run is not None:
        query = query.where(_JOURNAL.c.run == run)
    if kind is not None:
        query = query.where(_JOURNAL.c.kind == kind)
    rows = await connection.execute(query.order_by(order).limit(limit))
    entries = [_journal_entry(dict(row)) for row in rows.mappings()]
    return entries if before is None else entries[::-1]


async def journal_of(connection: AsyncConnection, event: str) -> list[JournalEntry]:
    """An event, by its id, with its first instructions, in order of writing."""
    query = select(_JOURNAL).where(_JOURNAL.c.id.in_(ids_of(event)))
    rows = await connection.execute(query.order_by(_JOURNAL.c.position))
    return [_journal_entry(dict(row)) for row in rows.mappings()]
