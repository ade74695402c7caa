"""The controller's only write transaction: all changes of one batch, or none.

The order inside matters. The epoch check comes first and locks the leader row, so a server that has
lost the lead writes nothing. Shards precede checkpoints, because a guard counts the shards when a
checkpoint becomes complete. Samples come last, as they refer to attempts of the same batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import bindparam, func, literal, select, text, union_all, update
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.core.messages.instructions import Instruction
from orchestrator.core.model.entities import Attempt, Entity, Worker
from orchestrator.database import sample_appends
from orchestrator.database.engine import to_text
from orchestrator.database.leadership import (
    NEVER,
    Claim,
    check,
    check_epoch,
    locked_lease,
    started,
)
from orchestrator.database.mapping import ATTEMPTS, MAPPED, WORKERS, printable, table_of, upsert
from orchestrator.database.models import FindingRow, JournalRow, OutboxRow, ShardRow
from orchestrator.database.packing import pack
from orchestrator.database.port import (
    Batch,
    FindingRecord,
    JournalEntry,
    Lease,
    ShardRecord,
    WorkerSamples,
)
from orchestrator.database.sample_appends import Key, Tail
from orchestrator.errors import InvariantError

_SHARDS = table_of(ShardRow)
_JOURNAL = table_of(JournalRow)
_OUTBOX = table_of(OutboxRow)
_FINDINGS = table_of(FindingRow)
_ADVANCE = text(
    """
    UPDATE workers SET last_sequence = given.newest
    FROM unnest(CAST(:workers AS text[]), CAST(:sequences AS bigint[])) AS given (worker, newest)
    WHERE id = given.worker AND last_sequence < given.newest
    """
)


class Names(NamedTuple):
    """Entities that a batch names, and of which its transaction must know something."""

    workers: set[str]
    runs: set[str]
    ranks: set[Key]

    @classmethod
    def of(cls, batch: Batch) -> Names:
        """The names in a batch."""
        return cls(
            {*batch.sequences, *(each.worker for each in batch.samples if each.worker)},
            {each.run for each in batch.samples},
            {
                (each.run, each.attempt, rank.rank)
                for each in batch.samples
                for rank in each.ranks
                if rank.step
            },
        )


class Stored(NamedTuple):
    """Facts that a transaction must know before it writes.

    Read before the entities are written: a report that ends an attempt may hold its last samples.
    """

    sequences: Mapping[str, int]
    """Worker → sequence of its newest stored report; workers that are not stored are left out."""
    attempts: Mapping[str, int]
    """Run → number of its newest attempt; runs without one are left out, or 0."""
    tails: Mapping[Key, Tail]
    """Rank of an attempt → its newest chunk of samples."""


class Written(NamedTuple):
    """Facts that a transaction has written."""

    refused: int
    """Number of samples refused because their attempt is over."""
    attempts: Mapping[str, int]
    """Run → number of its newest attempt, where the batch has one."""
    tails: Mapping[Key, Tail]


async def read(connection: AsyncConnection, batch: Batch, claim: Claim) -> Stored:
    """Check the epoch, and read what the batch needs; both stay as they are until the commit.

    Raises:
        LeadershipLostError: The lead is over.
    """
    names = Names.of(batch)
    sequences, attempts = await _known(connection, names, claim)
    tails = await sample_appends.read_tails(connection, sorted(names.ranks))
    return Stored(sequences, attempts, tails)


async def write_known(connection: AsyncConnection, batch: Batch, stored: Stored) -> Written:
    """Write a batch, given what is stored. Reads nothing.

    Raises:
        InvariantError: The batch names an unknown worker.
    """
    _refuse_unknown(batch, stored)
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
    new: dict[str, int] = {}
    for entity in batch.entities:
        if isinstance(entity, Attempt):
            newest = max(new.get(entity.run, 0), stored.attempts.get(entity.run, 0))
            new[entity.run] = max(entity.number, newest)
    # Samples last: their foreign key needs the attempts of this batch.
    after = {**stored.attempts, **new}
    accepted, refused = admit(fresh(batch, stored.sequences), stored.attempts, after)
    appended = sample_appends.append(accepted, stored.tails)
    await sample_appends.write(connection, appended)
    await _advance_sequences(connection, batch.sequences)
    return Written(refused, new, appended.tails)


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
    connection: AsyncConnection, names: Names, claim: Claim
) -> tuple[dict[str, int], dict[str, int]]:
    """Check the epoch, and read sequences and attempts, in one round trip for all reports.

    The rows of the leader and of the workers stay locked until the commit, so that epoch and
    sequences stay what they are.

    Raises:
        LeadershipLostError: The lead is over.
    """
    if not names.workers and not names.runs:
        await check_epoch(connection, claim)
        return {}, {}
    worker, attempt = WORKERS.table.c, ATTEMPTS.table.c
    # Locked until the commit: a transaction whose answer was lost may be under way still, and the
    # samples that it has stored must not be appended to themselves.
    locked = select(worker.id, worker.last_sequence).where(worker.id.in_(names.workers))
    ours = locked.order_by(worker.id).with_for_update(key_share=True).cte("ours")
    sequences = select(literal(0), ours.c.id, ours.c.last_sequence)
    newest = select(literal(1), attempt.run, func.max(attempt.number))
    newest = newest.where(attempt.run.in_(names.runs)).group_by(attempt.run)
    lease = locked_lease()
    holder = select(literal(2), lease.c.holder, lease.c.epoch)
    server = select(literal(3), literal(""), started(connection))
    found: tuple[dict[str, int], ...] = {}, {}, {}, {}
    rows = await connection.execute(union_all(holder, sequences, newest, server))
    for which, key, number in rows:
        found[which][key] = number
    check(_lease(found[2], found[3][""]), *claim)
    return found[0], found[1]


def _lease(epochs: Mapping[str, int], server_started: int) -> Lease | None:
    """The lease, of which a transaction read the epoch of the holder only."""
    for holder, epoch in epochs.items():
        return Lease(holder=holder, epoch=epoch, expires_at=NEVER, started=server_started)
    return None


async def _write_entities(connection: AsyncConnection, entities: Sequence[Entity]) -> None:
    for mapped in MAPPED:
        found: list[Any] = [each for each in entities if isinstance(each, mapped.entity)]
        if mapped.entity is Attempt:
            found.sort(
                key=lambda attempt: attempt.number
            )  # end the old attempt first: at most one may be alive
        await upsert(connection, mapped.table, [mapped.row(each) for each in found])


def _refuse_unknown(batch: Batch, stored: Stored) -> None:
    launched = {entity.id for entity in batch.entities if isinstance(entity, Worker)}
    if unknown := batch.sequences.keys() - stored.sequences.keys() - launched:
        raise unknown_worker(unknown)


async def _advance_sequences(connection: AsyncConnection, sequences: Mapping[str, int]) -> None:
    table = WORKERS.table
    if not sequences:
        return
    if connection.dialect.name == "postgresql":
        given = {"workers": list(sequences), "sequences": list(sequences.values())}
        await connection.execute(_ADVANCE, given)
        return
    changes = (
        update(table)
        .where(table.c.id == bindparam("worker"), table.c.last_sequence < bindparam("newest"))
        .values(last_sequence=bindparam("newest"))
    )
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


async def mark_carried_out(connection: AsyncConnection, ids: Sequence[str], claim: Claim) -> None:
    """Mark outbox entries as done.

    Raises:
        LeadershipLostError: The lead is over.
    """
    await check_epoch(connection, claim)
    await mark_done(connection, ids)


async def mark_done(connection: AsyncConnection, ids: Sequence[str]) -> None:
    """Mark outbox entries as done, at whatever epoch."""
    await connection.execute(update(_OUTBOX).where(_OUTBOX.c.id.in_(ids)).values(done=True))
