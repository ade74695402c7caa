"""The controller's transactions, in one round trip to PostgreSQL where that can be done.

The problem: a transaction reads before it writes: the epoch, the newest report of each agent, and
the newest chunk of samples, to which it appends. With a round trip for each statement, a database
20 ms away makes every report wait for an eighth of a second.

The design: only the leader writes any of this, so it remembers what it has written last. It sends
the whole transaction at once, up to the commit (a pipeline of statements). The first of them fails
unless the epoch, and the newest report of each agent, are as remembered; the database then skips
the rest. After that, and after any error, the memory is dropped, and the transaction begins with
reading. The memory belongs to one connection: a failover to a database that lacks the last
transactions ends both, and the lead with them (:mod:`orchestrator.database.leadership`).

Limits: the first transaction of a leader, of an agent and of an attempt reads, as does the one
after an error. SQLite has no network between and always reads;
so does a driver whose libpq is older than 14.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Mapping, Sequence

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.database.commit import (
    Names,
    Stored,
    Written,
    mark_carried_out,
    mark_done,
    read,
    write_known,
)
from orchestrator.database.driver_errors import NotAsRememberedError
from orchestrator.database.engine import Database
from orchestrator.database.leadership import Claim
from orchestrator.database.port import Batch
from orchestrator.database.sample_appends import Key, Tail

MOST_TAILS = 4096
"""Chunks of samples that are remembered: 13 kB each, when full."""
MOST_WORKERS = 50_000
"""Agents and runs that are remembered."""
_AS_REMEMBERED = text(
    """
    WITH lease AS (SELECT epoch FROM leader FOR KEY SHARE),
         ours AS (SELECT id, last_sequence FROM workers WHERE id = ANY(CAST(:workers AS text[]))
                  ORDER BY id FOR NO KEY UPDATE)
    SELECT 1 / CASE WHEN (SELECT epoch FROM lease) = :epoch
                     AND (CAST(:started AS bigint) IS NULL
                          OR CAST(EXTRACT(EPOCH FROM pg_postmaster_start_time()) * 1000000
                                  AS bigint) = :started)
                     AND ARRAY(SELECT last_sequence FROM ours ORDER BY id COLLATE "C")
                         = CAST(:sequences AS bigint[])
               THEN 1 ELSE 0 END
    """
)
"""Fails with a division by zero unless epoch, server and sequences are these; locks them."""


@dataclasses.dataclass(slots=True)
class _Memory:
    """Facts that one connection has read and written."""

    connection: object = None
    sequences: dict[str, int] = dataclasses.field(default_factory=dict)
    attempts: dict[str, int] = dataclasses.field(default_factory=dict)
    tails: dict[Key, Tail | None] = dataclasses.field(default_factory=dict)

    def of(self, batch: Batch) -> Stored | None:
        """Facts that a transaction must know; None: some of them are not remembered."""
        names = Names.of(batch)
        if not (
            names.workers <= self.sequences.keys()
            and names.runs <= self.attempts.keys()
            and names.ranks <= self.tails.keys()
        ):
            return None
        return Stored(
            sequences={worker: self.sequences[worker] for worker in names.workers},
            attempts={run: self.attempts[run] for run in names.runs},
            tails={rank: tail for rank in names.ranks if (tail := self.tails[rank]) is not None},
        )

    def learn(self, batch: Batch, stored: Stored, written: Written) -> None:
        """Remember what a transaction has read and written."""
        names = Names.of(batch)
        if len(self.sequences) + len(self.attempts) > MOST_WORKERS:
            self.sequences, self.attempts, self.tails = {}, {}, {}
        self.sequences |= {w: n for w, n in stored.sequences.items() if w in names.workers}
        self.sequences |= {
            worker: max(sequence, self.sequences.get(worker, -1))
            for worker, sequence in batch.sequences.items()
        }
        self.attempts |= dict.fromkeys(names.runs - self.attempts.keys(), 0)
        self.attempts |= dict(stored.attempts) | {
            run: number for run, number in written.attempts.items() if run in self.attempts
        }
        for rank in names.ranks:  # the newest last: the oldest are forgotten first
            tail = written.tails.get(rank, stored.tails.get(rank))
            self.tails.pop(rank, None)
            self.tails[rank] = tail
        for rank in list(self.tails)[: max(0, len(self.tails) - MOST_TAILS)]:
            del self.tails[rank]


class Committer:
    """Implements the writes of :class:`orchestrator.database.port.Store` for the controller."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._turn = asyncio.Lock()
        self._memory = _Memory()

    async def commit(self, batch: Batch, claim: Claim) -> int:
        """See :meth:`orchestrator.database.port.Store.commit`."""
        async with self._turn:
            memory, self._memory = self._memory, _Memory()  # nothing is known after an error
            stored = memory.of(batch) if self._database.at_once else None
            if stored is not None:
                with contextlib.suppress(NotAsRememberedError):
                    written = await self._at_once(batch, claim, memory, stored)
                    self._remember(memory, batch, stored, written)
                    return written.refused
                memory = _Memory()
            async with self._database.committing() as connection:
                raw = await _raw(connection)
                stored = await read(connection, batch, claim)
                written = await write_known(connection, batch, stored)
            if raw is not memory.connection:
                memory = _Memory(raw)
            self._remember(memory, batch, stored, written)
            return written.refused

    async def _at_once(
        self, batch: Batch, claim: Claim, memory: _Memory, stored: Stored
    ) -> Written:
        async with self._database.committing_at_once() as connection:
            if await _raw(connection) is not memory.connection:
                raise NotAsRememberedError
            await _expect(connection, claim, stored.sequences)
            return await write_known(connection, batch, stored)

    def _remember(self, memory: _Memory, batch: Batch, stored: Stored, written: Written) -> None:
        if self._database.at_once:
            memory.learn(batch, stored, written)
            self._memory = memory

    async def carried_out(self, ids: Sequence[str], claim: Claim) -> None:
        """See :meth:`orchestrator.database.port.Store.carried_out`."""
        if self._database.at_once:
            with contextlib.suppress(NotAsRememberedError):
                async with self._database.writing_at_once() as connection:
                    await _expect(connection, claim, {})
                    await mark_done(connection, ids)
                return
        async with self._database.writing() as connection:
            await mark_carried_out(connection, ids, claim)


async def _raw(connection: AsyncConnection) -> object:
    return (await connection.get_raw_connection()).driver_connection


async def _expect(connection: AsyncConnection, claim: Claim, sequences: Mapping[str, int]) -> None:
    workers = sorted(sequences)
    given = {
        "epoch": claim.epoch,
        "started": claim.started,
        "workers": workers,
        "sequences": [sequences[worker] for worker in workers],
    }
    await connection.execute(_AS_REMEMBERED, given)
