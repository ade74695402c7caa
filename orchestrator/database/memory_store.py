"""The run database in memory, for tests and the fuzzer; it passes the contract of the real one.

It rejects what the database's constraints reject, before it changes anything.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, Unpack

import numpy as np

from jobs.events import RankSamples
from jobs.shards import ShardReport
from orchestrator.core.messages.instructions import Instruction
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
from orchestrator.database import leadership, metric_columns, sample_rows, tokens
from orchestrator.database import samples as arrays
from orchestrator.database.commit import admit, fresh
from orchestrator.database.credentials import Limits, Token
from orchestrator.database.ended_runs import MemoryEndedRuns
from orchestrator.database.memory_journal import MemoryJournal
from orchestrator.database.memory_rules import check, key_of, newest_attempt
from orchestrator.database.metric_columns import MetricColumns, MetricPoints
from orchestrator.database.people import MemoryPeople
from orchestrator.database.port import (
    Batch,
    JournalEntry,
    Lease,
    MetricSeries,
    RunNumbers,
    Series,
    Snapshot,
)
from orchestrator.database.queries import no_such_checkpoint
from orchestrator.database.references import is_part_of, pick_incident, pick_run
from orchestrator.database.sample_pages import MemorySampleRecords
from orchestrator.database.samples import Block

E = TypeVar("E", Run, Attempt, Worker, Node, Checkpoint, Incident, Queue, Fleet)


Samples = Mapping[tuple[str, int, int], list[Block]]
"""Samples by run, attempt and rank."""


class MemoryStore(MemoryEndedRuns, MemoryJournal, MemoryPeople, MemorySampleRecords):
    """Implements :class:`orchestrator.database.port.Store`, which documents each method."""

    def __init__(self) -> None:
        self._entities: dict[type, dict[str, Any]] = defaultdict(dict)
        self._shards: dict[str, dict[int, ShardReport]] = defaultdict(dict)
        self._journal: dict[str, JournalEntry] = {}
        self._outbox: dict[str, Instruction] = {}
        self._done: set[str] = set()
        self._samples: dict[tuple[str, int, int], list[Block]] = defaultdict(list)
        self._metrics: dict[tuple[str, int, int], list[MetricColumns]] = defaultdict(list)
        self._sequences: dict[str, int] = {}
        self._lease: Lease | None = None
        self._tokens: dict[str, tuple[Token, str]] = {}
        self._key = tokens.make_signing_key()

    async def close(self) -> None:
        """Do nothing: there is no connection."""

    # leadership

    async def acquire(
        self, holder: str, ttl: float, now: dt.datetime, *, force: bool = False, address: str = ""
    ) -> Lease | None:
        """Take or renew the lease for `ttl` seconds; None: another holder's has not expired."""
        expires_at = now + dt.timedelta(seconds=ttl)
        lease = leadership.decide(self._lease, holder, expires_at, now, force=force)
        self._lease = (lease and dataclasses.replace(lease, address=address)) or self._lease
        return lease and self._lease

    async def release(self, holder: str, epoch: int) -> None:
        """Release the lease if `holder` has it with this epoch."""
        if self._lease and (self._lease.holder, self._lease.epoch) == (holder, epoch):
            self._lease = dataclasses.replace(self._lease, holder="")

    async def leader(self) -> Lease | None:
        """The lease of the current or last holder; None: released, or never held."""
        return self._lease if self._lease and self._lease.holder else None

    # controller

    async def load(self) -> Snapshot:
        """All live runs, with everything that belongs to them."""
        workers = await self.workers()
        busy = {worker.run for worker in workers} | {
            attempt.run for attempt in self._all(Attempt) if attempt.state in LIVE_ATTEMPT_STATES
        }
        runs = sorted(
            (r for r in self._all(Run) if r.state not in TERMINAL_RUN_STATES or r.id in busy),
            key=lambda run: (run.submitted_at, run.id),
        )
        ours = {run.id for run in runs}
        incidents = await self.incidents(open_only=True, limit=len(self._entities[Incident]))
        fleet = self._all(Fleet)
        return Snapshot(
            runs=runs,
            attempts=[(await self.attempts(run))[-1] for run in sorted(ours) if self._newest(run)],
            workers=workers,
            nodes=await self.nodes(),
            checkpoints=sorted(
                (c for c in self._all(Checkpoint) if c.run in ours and c.removed_at is None),
                key=lambda checkpoint: (checkpoint.run, checkpoint.step, checkpoint.id),
            ),
            incidents=[incident for incident in reversed(incidents) if incident.run in {"", *ours}],
            queues=await self.queues(),
            fleet=fleet[0] if fleet else Fleet(),
            sequences={w.id: self._sequences[w.id] for w in workers if w.id in self._sequences},
            outbox=[each for id_, each in self._outbox.items() if id_ not in self._done],
        )

    async def commit(self, batch: Batch, *, epoch: int) -> int:
        """Write a batch; returns the number of samples refused for an old attempt."""
        leadership.check(self._lease, epoch)
        runs = {samples.run for samples in batch.samples}
        before = {run: self._newest(run) for run in runs}
        new = fresh(batch, self._sequences)
        check(batch, self._entities, self._shards)
        for record in batch.shards:
            self._shards[record.checkpoint][record.shard.rank] = record.shard
        for entity in batch.entities:
            self._entities[type(entity)][key_of(entity)] = entity
        for entry in batch.journal:
            position = len(self._journal) + 1
            self._journal.setdefault(entry.id, dataclasses.replace(entry, position=position))
        for instruction in batch.outbox:
            self._outbox.setdefault(instruction.id, instruction)
        accepted, refused = admit(new, before, {run: self._newest(run) for run in runs})
        for samples in accepted:
            for rank in samples.ranks:
                if rank.step:
                    key = samples.run, samples.attempt, rank.rank
                    self._samples[key].append(arrays.block_of(rank))
                    self._metrics[key].append(metric_columns.columns_of(rank))
        for worker, sequence in batch.sequences.items():
            self._sequences[worker] = max(sequence, self._sequences.get(worker, sequence))
        return refused

    async def carried_out(self, ids: Sequence[str], *, epoch: int) -> None:
        """Mark outbox entries as done."""
        leadership.check(self._lease, epoch)
        self._done.update(ids)

    # reading

    async def run(self, reference: str) -> Run:
        """One run by reference."""
        runs = await self.runs(limit=len(self._entities[Run]))
        meant = [r for r in runs if reference == r.name or is_part_of(reference, r.id, suffix=True)]
        names = [run.name for run in runs]
        found = pick_run(reference, [(run.id, run.name) for run in meant], names)
        run: Run = self._entities[Run][found]
        return run

    async def runs(
        self, *, states: Sequence[RunState] = (), name: str | None = None, limit: int = 100
    ) -> list[Run]:
        """Runs, newest first."""
        found = [
            run
            for run in self._all(Run)
            if (not states or run.state in states) and name in {None, run.name}
        ]
        return sorted(found, key=lambda run: (run.submitted_at, run.id), reverse=True)[:limit]

    async def attempts(self, run: str) -> list[Attempt]:
        """Attempts of a run, oldest first."""
        mine = (attempt for attempt in self._all(Attempt) if attempt.run == run)
        return sorted(mine, key=lambda attempt: attempt.number)

    async def workers(self, run: str | None = None, *, ended: bool = False) -> list[Worker]:
        """Workers, oldest first."""
        found = [
            worker
            for worker in self._all(Worker)
            if run in {None, worker.run} and (ended or worker.state is not WorkerState.ENDED)
        ]
        return sorted(found, key=lambda worker: (worker.launched_at, worker.id))

    async def nodes(self) -> list[Node]:
        """All nodes, by id."""
        return sorted(self._all(Node), key=lambda node: node.id)

    async def checkpoints(self, run: str, *, deleted: bool = False) -> list[Checkpoint]:
        """Checkpoints of a run, newest step first."""
        found = [
            each
            for each in self._all(Checkpoint)
            if each.run == run and (deleted or each.removed_at is None)
        ]
        return sorted(found, key=lambda each: (each.step, each.created_at, each.id), reverse=True)

    async def checkpoint(self, id: str) -> tuple[Checkpoint, list[ShardReport]]:  # noqa: A002 (the port's name)
        """One checkpoint with its shards, by rank."""
        if id not in self._entities[Checkpoint]:
            raise no_such_checkpoint(id)
        shards = self._shards[id]
        return self._entities[Checkpoint][id], [shards[rank] for rank in sorted(shards)]

    async def incidents(
        self, run: str | None = None, *, open_only: bool = False, limit: int = 100
    ) -> list[Incident]:
        """Incidents, newest first."""
        found = [
            each
            for each in self._all(Incident)
            if run in {None, each.run} and not (open_only and each.state is IncidentState.RESOLVED)
        ]
        return sorted(found, key=lambda each: (each.opened_at, each.id), reverse=True)[:limit]

    async def incident(self, reference: str) -> Incident:
        """One incident by reference."""
        ids = [each.id for each in self._all(Incident)]
        meant = [id_ for id_ in ids if is_part_of(reference, id_, suffix=True)]
        found: Incident = self._entities[Incident][pick_incident(reference, meant, ids)]
        return found

    async def queues(self) -> list[Queue]:
        """All queues that are not removed, by name."""
        there = (queue for queue in self._all(Queue) if not queue.removed)
        return sorted(there, key=lambda queue: queue.name)

    async def journal(
        self,
        run: str | None = None,
        *,
        after: int = 0,
        before: int | None = None,
        limit: int = 1000,
        kind: str | None = None,
    ) -> list[JournalEntry]:
        """Journal entries in order of writing."""
        found = [
            entry
            for entry in self._journal.values()
            if after < entry.position < (before or math.inf)
            and run in {None, entry.run}
            and kind in {None, entry.kind}
        ]
        return found[:limit] if before is None else found[-limit:]

    async def samples(
        self, run: str, *, points: int = 500, first_step: int = 0, attempt: int | None = None
    ) -> Series:
        """The thinned loss curve."""
        parts = [
            arrays.points_of(number, block[:, block[arrays.STEP] >= first_step])
            for number, block in _blocks(self._samples, run)
            if attempt in {None, number}
        ]
        return arrays.thin(arrays.join(parts), points)

    async def sample_tail(self, run: str, *, count: int = 1000) -> list[tuple[int, RankSamples]]:
        """The newest samples of the rank that speaks for the run, oldest first."""
        return sample_rows.newest_samples(
            _blocks(self._samples, run), count, _speaker(self._samples, run)
        )

    async def sample_tails(
        self, runs: Sequence[str], *, count: int = 1000
    ) -> dict[str, list[tuple[int, RankSamples]]]:
        """The newest samples of the ranks that speak for some runs, oldest first."""
        found = {run: await self.sample_tail(run, count=count) for run in runs}
        return {run: tail for run, tail in found.items() if tail}

    async def metrics(
        self, run: str, *, points: int = 500, first_step: int = 0, attempt: int | None = None
    ) -> MetricSeries:
        """The thinned metrics."""
        told = sorted(k for k, p in self._metrics.items() if k[0] == run and any(x.rows for x in p))
        speaker = _speaker(self._samples, run)
        rank = min((key[2] for key in told), key=lambda rank: (rank != speaker, rank), default=0)
        parts = [
            MetricPoints(
                key[1],
                np.concatenate(self._samples[key], axis=1)[arrays.STEP],
                metric_columns.join(self._metrics[key]),
            )
            for key in told
            if key[2] == rank and attempt in {None, key[1]}
        ]
        return metric_columns.series(parts, first_step, points)

    async def run_numbers(self, runs: Sequence[Run]) -> dict[str, RunNumbers]:
        """The newest numbers of runs, by id."""
        return {run.id: await _numbers(self, run) for run in runs}

    async def sample_total(self, run: str, attempt: int | None = None) -> int:
        """Number of stored samples."""
        return sum(
            block.shape[1]
            for (owner, number, _), blocks in self._samples.items()
            if owner == run and attempt in {None, number}
            for block in blocks
        )

    # tokens

    async def create_token(
        self, name: str, role: str, now: dt.datetime, **limits: Unpack[Limits]
    ) -> tuple[Token, str]:
        """Create a token; returns it with its secret."""
        token, secret = tokens.make_token(name, role, now, **limits)
        self._tokens[token.id] = token, tokens.hash_secret(secret)
        return token, secret

    async def find_token(self, secret: str, now: dt.datetime | None = None) -> Token | None:
        """The token of a secret, also if it is revoked or has expired; None: unknown."""
        hashed = tokens.hash_secret(secret)
        for token, stored in self._tokens.values():
            if stored == hashed:
                if now is not None and tokens.use_is_due(token, now):
                    self._tokens[token.id] = dataclasses.replace(token, last_used_at=now), stored
                return token
        return None

    async def tokens(self) -> list[Token]:
        """All tokens, oldest first, revoked ones included."""
        found = (token for token, _ in self._tokens.values())
        return sorted(found, key=lambda token: (token.created_at, token.id))

    async def revoke_token(self, id: str, now: dt.datetime, request: str | None = None) -> None:  # noqa: A002 (the port's name)
        """Revoke a token; a second call keeps the first time and request."""
        if id not in self._tokens:
            raise tokens.no_such_token(id)
        token, stored = self._tokens[id]
        if token.revoked_at is None:
            revoked = dataclasses.replace(token, revoked_at=now, revoked_by=request)
            self._tokens[id] = revoked, stored

    async def signing_key(self) -> str:
        """The signing key of worker tokens."""
        return self._key

    # helpers

    def _all(self, entity: type[E]) -> list[E]:
        return list(self._entities[entity].values())

    def _newest(self, run: str) -> int:
        return newest_attempt(run, self._all(Attempt))


def _speaker(samples: Samples, run: str) -> int:
    """The lowest rank of a run with a loss; while there is none, the lowest rank."""
    mine = {key: blocks for key, blocks in samples.items() if key[0] == run}
    told = [
        key[2]
        for key, blocks in mine.items()
        if any(not np.isnan(block[arrays.LOSS]).all() for block in blocks)
    ]
    return min(told or [key[2] for key in mine], default=0)


async def _numbers(store: MemoryStore, run: Run) -> RunNumbers:
    tail = await store.sample_tail(run.id, count=1)
    return RunNumbers(
        step=tail[-1][1].step[-1] if tail else None,
        loss=tail[-1][1].loss[-1] if tail else None,
        restarts=sum(each.restart is not None for each in await store.attempts(run.id)),
    )


def _blocks(samples: Samples, run: str) -> list[tuple[int, Block]]:
    """Blocks of the rank that speaks for the run, with their attempts, oldest first."""
    rank = _speaker(samples, run)
    mine = sorted(key for key in samples if key[0] == run and key[2] == rank)
    return [(key[1], np.concatenate(samples[key], axis=1)) for key in mine]
