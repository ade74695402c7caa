"""The controller's only write transaction: all changes of one batch, or none.

The order inside matters. The epoch check comes first and locks the leader row, so a server that has
lost the lead writes nothing. Shards precede checkpoints, because a guard counts the shards when a
checkpoint becomes complete. Samples come last, as they refer to attempts of the same batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import bindparam, func, literal, select, union_all, update
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.core.messages.instructions import Instruction
from orchestrator.core.model.entities import Attempt, Entity
from orchestrator.database import sample_rows
from orchestrator.database.engine import to_text
from orchestrator.database.leadership import check_epoch, check_found, locked_lease
from orchestrator.database.mapping import ATTEMPTS, MAPPED, WORKERS, printable, table_of, upsert
from orchestrator.database.models import FindingRow, JournalRow, OutboxRow, ShardRow
from orchestrator.database.packing import pack
from orchestrator.database.port import (
    Batch,
    FindingRecord,
    JournalEntry,
    ShardRecord,
    WorkerSamples,
)
from orchestrator.errors import InvariantError

_SHARDS = table_of(ShardRow)
_JOURNAL = table_of(JournalRow)
_OUTBOX = table_of(OutboxRow)
_FINDINGS = table_of(FindingRow)


async def write(connection: AsyncConnection, batch: Batch, epoch: int) -> int:
    """Implement :meth:`orchestrator.database.port.Store.commit` in the caller's transaction.

    Returns:
        Number of samples refused because their attempt is over.

    Raises:
        LeadershipLostError: `epoch` is not current.
        InvariantError: The batch names an unknown worker.
    """
    # Read before the entities are written: a report that ends an attempt may hold its last samples.
    runs = {samples.run for samples in batch.samples}
    stored, before = await _known(connection, batch, runs, epoch)
    # Shards first: a guard counts them when a checkpoint below becomes complete.
    await upsert(connection, _SHARDS, [_shard_row(shard) for shard in batch.shards])
    await _write_entities(connection, batch.entities)
    await upsert(
        connection,
        _JOURNAL,
        [_journal_row(entry) for entry in batch.journal],
        keys=["id"],
        overwrite=False,
    )
    await upsert(
        connection,
        _OUTBOX,
        [_outbox_row(each) for each in batch.outbox],
        keys=["id"],
        overwrite=False,
    )
    await upsert(
        connection, _FINDINGS, [_finding_row(each) for each in batch.findings], overwrite=False
    )
    after = await newest_attempts(connection, runs) if batch.entities else before
    # Samples last: their foreign key needs the attempts of this batch.
    accepted, refused = admit(fresh(batch, stored), before, after)
    await sample_rows.append(connection, accepted)
    await _advance_sequences(connection, batch.sequences, stored)
    return refused


def fresh(batch: Batch, stored: Mapping[str, int]) -> list[WorkerSamples]:
    """Select the samples that are not stored yet. Pure; shared by all stores.

    Samples without a worker or sequence count as stored if any report of the batch is stored.
    """
    newest = dict.fromkeys(batch.sequences, -1) | dict(stored)
    repeated = any(sequence <= newest[worker] for worker, sequence in batch.sequences.items())
    return [
        samples
        for samples in batch.samples
        if (
            samples.sequence > newest.get(samples.worker, -1)
            if samples.worker and samples.sequence is not None
            else not repeated
        )
    ]


def admit(
    samples: Iterable[WorkerSamples], before: Mapping[str, int], after: Mapping[str, int]
) -> tuple[list[WorkerSamples], int]:
    """Drop samples of attempts that are over. Pure; shared by all stores.

    The last samples of attempt n may arrive in the report that lets n+1 start, so the lower bound
    is the newest attempt before the batch.

    Returns:
        The accepted samples, and the number of refused ones.
    """
    accepted: list[WorkerSamples] = []
    refused = 0
    for each in samples:
        if max(1, before.get(each.run, 0)) <= each.attempt <= after.get(each.run, 0):
            accepted.append(each)
        else:
            refused += sum(len(rank.step) for rank in each.ranks)
    return accepted, refused


async def _known(
    connection: AsyncConnection, batch: Batch, runs: set[str], epoch: int
) -> tuple[dict[str, int], dict[str, int]]:
    """Check the epoch, and read sequences and attempts, in one round trip for all reports.

    The rows of the leader and of the workers stay locked until the commit, so that epoch and
    sequences stay what they are.

    Returns:
        Worker → sequence of its newest stored report, for each worker that the batch names; and
        run → number of its newest attempt, for each of `runs`.

    Raises:
        LeadershipLostError: `epoch` is not current.
    """
    workers = set(batch.sequences) | {each.worker for each in batch.samples if each.worker}
    if not workers and not runs:
        await check_epoch(connection, epoch)
        return {}, {}
    worker, attempt = WORKERS.table.c, ATTEMPTS.table.c
    # Locked until the commit: a transaction whose answer was lost may be under way still, and the
    # samples that it has stored must not be appended to themselves.
    locked = select(worker.id, worker.last_sequence).where(worker.id.in_(workers))
    ours = locked.order_by(worker.id).with_for_update(key_share=True).cte("ours")
    sequences = select(literal(0), ours.c.id, ours.c.last_sequence)
    newest = select(literal(1), attempt.run, func.max(attempt.number)).where(attempt.run.in_(runs))
    lease = locked_lease()
    holder = select(literal(2), lease.c.holder, lease.c.epoch)
    found: tuple[dict[str, int], dict[str, int], dict[str, int]] = {}, {}, {}
    rows = await connection.execute(union_all(holder, sequences, newest.group_by(attempt.run)))
    for which, key, number in rows:
        found[which][key] = number
    check_found(found[2], epoch)
    return found[0], found[1]


async def newest_attempts(connection: AsyncConnection, runs: set[str]) -> dict[str, int]:
    """Number of the newest attempt of each run; a run without attempts is absent."""
    if not runs:
        return {}
    table = ATTEMPTS.table
    query = select(table.c.run, func.max(table.c.number)).where(table.c.run.in_(runs))
    rows = await connection.execute(query.group_by(table.c.run))
    return {run: number for run, number in rows}  # noqa: C416 (rows are not pairs to mypy)


async def _write_entities(connection: AsyncConnection, entities: Sequence[Entity]) -> None:
    for mapped in MAPPED:
        found: list[Any] = [each for each in entities if isinstance(each, mapped.entity)]
        if mapped.entity is Attempt:
            found.sort(
                key=lambda attempt: attempt.number
            )  # end the old attempt first: at most one may be alive
        await upsert(connection, mapped.table, [mapped.row(each) for each in found])


async def _advance_sequences(
    connection: AsyncConnection, sequences: Mapping[str, int], stored: Mapping[str, int]
) -> None:
    table = WORKERS.table
    if not sequences:
        return
    if new := sequences.keys() - stored.keys():  # launched in this batch, or never
        query = select(table.c.id).where(table.c.id.in_(new))
        if unknown := new - set((await connection.execute(query)).scalars()):
            raise unknown_worker(unknown)
    changes = (
        update(table)
        .where(table.c.id == bindparam("worker"), table.c.last_sequence < bindparam("newest"))
        .values(last_sequence=bindparam("newest"))
    )
    # The drivers send these in one go, however many there are.
    await connection.execute(
        changes,
        [{"worker": worker, "newest": sequence} for worker, sequence in sequences.items()],
    )


def unknown_worker(workers: Iterable[str]) -> InvariantError:
    """The error for a report of a worker that was never stored."""
    return InvariantError(
        f"sequences name workers that are not stored ({', '.join(sorted(workers))}): "
        "commit a worker at its launch, before its reports"
    )


def _shard_row(record: ShardRecord) -> dict[str, Any]:
    return {
        "checkpoint": record.checkpoint,
        "rank": record.shard.rank,
        "bytes": sum(file.bytes for file in record.shard.files),
        "body": record.shard.model_dump(),
    }


def _journal_row(entry: JournalEntry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "at": entry.at,
        "run": entry.run,
        "attempt": entry.attempt,
        "actor": printable(entry.actor),
        "kind": entry.kind,
        "name": entry.name,
        "cause": entry.cause,
        "reason": printable(entry.reason),
        **pack(entry.payload, to_text(entry.payload)),
    }


def _outbox_row(instruction: Instruction) -> dict[str, Any]:
    return {
        "id": instruction.id,
        "run": instruction.run,
        "kind": instruction.kind,
        "body": instruction.model_dump(),
    }


def _finding_row(record: FindingRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "run": record.run,
        "attempt": record.attempt,
        "at": record.at,
        "kind": record.kind,
        "severity": record.severity,
        "body": dict(record.body),
    }


async def carried_out(connection: AsyncConnection, ids: Sequence[str], epoch: int) -> None:
    """Mark outbox entries as done.

    Raises:
        LeadershipLostError: `epoch` is not current.
    """
    await check_epoch(connection, epoch)
    await connection.execute(update(_OUTBOX).where(_OUTBOX.c.id.in_(ids)).values(done=True))
