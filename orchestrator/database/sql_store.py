"""The run database on SQLite or PostgreSQL: each method is one transaction."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Self, Unpack

from jobs.events import RankSamples
from jobs.shards import ShardReport
from orchestrator.core.model.entities import Attempt, Checkpoint, Incident, Node, Queue, Run, Worker
from orchestrator.core.model.states import RunState
from orchestrator.database import (
    leadership,
    metric_rows,
    queries,
    sample_rows,
    schema,
    tokens,
)
from orchestrator.database.alert_memory import SqlAlertMemory
from orchestrator.database.bundle_parts import SqlBundles
from orchestrator.database.committer import Committer
from orchestrator.database.credentials import Limits, Token
from orchestrator.database.ended_runs import SqlEndedRuns
from orchestrator.database.engine import Database, in_memory
from orchestrator.database.leadership import Claim
from orchestrator.database.log_tails import SqlLogTails
from orchestrator.database.people import SqlPeople
from orchestrator.database.port import (
    Batch,
    JournalEntry,
    Lease,
    MetricSeries,
    RunNumbers,
    Series,
    Snapshot,
)
from orchestrator.database.sample_pages import SqlSampleRecords
from orchestrator.database.time_limits import ServerLimits


class SqlStore(SqlEndedRuns, SqlPeople, SqlSampleRecords):
    """Implements :class:`orchestrator.database.port.Store`, which documents each method."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._committer = Committer(database)
        self._claim: Claim | None = None
        """The newest lead that was acquired through this store, as it was when it began."""

    @classmethod
    async def open(cls, url: str, limits: ServerLimits | None = None) -> Self:
        """Connect to `sqlite:///path`, `postgresql://…`, or `sqlite://` (in memory, fresh schema).

        Args:
            url: The database.
            limits: Of a server: how long anything may take on PostgreSQL, and leases by the clock
                of PostgreSQL.

        Raises:
            DatabaseUnavailableError: The database does not answer.
            SchemaError: Its schema is missing or too old.
            InvalidError: The kind of database is not supported.
        """
        database = Database(url, limits=limits)
        try:
            await schema.require(database)
        except BaseException:
            await database.close()
            raise
        return cls(database)

    def for_readers(self) -> SqlStore:
        """A store for people's requests, with connections and a limit of its own; close both.

        A database in memory has one connection, and this store.
        """
        url, limits = self._database.url, self._database.limits
        if in_memory(url):
            return self
        text = url.render_as_string(hide_password=False)
        return SqlStore(Database(text, readers=True, limits=limits))

    @property
    def alert_memory(self) -> SqlAlertMemory:
        """The memory of the alert channel, in the same database."""
        return SqlAlertMemory(self._database)

    @property
    def log_tails(self) -> SqlLogTails:
        """The ends of logs that agents have sent, in the same database."""
        return SqlLogTails(self._database)

    @property
    def bundles(self) -> SqlBundles:
        """The code of runs, where it is kept in the same database."""
        return SqlBundles(self._database)

    async def close(self) -> None:
        """Close all connections."""
        await self._database.close()

    # leadership

    async def acquire(
        self,
        holder: str,
        ttl: float,
        now: dt.datetime,
        *,
        force: bool = False,
        address: str = "",
    ) -> Lease | None:
        """Take or renew the lease for `ttl` seconds; None: another holder's has not expired."""
        wanted = leadership.Wanted(holder=holder, ttl=ttl, address=address, force=force)
        async with self._database.leasing() as connection:
            if self._database.limits is None:
                lease = await leadership.acquire(connection, wanted, now, self._claim)
            else:
                lease = await leadership.acquire_by_database_clock(connection, wanted, self._claim)
        if lease is not None and (self._claim is None or lease.epoch != self._claim.epoch):
            self._claim = Claim(lease.epoch, lease.started)
        return lease

    async def release(self, holder: str, epoch: int) -> None:
        """Release the lease if `holder` has it with this epoch."""
        async with self._database.leasing() as connection:
            await leadership.release(connection, holder, epoch)

    async def leader(self) -> Lease | None:
        """The lease of the current or last holder; None: released, or never held."""
        async with self._database.reading() as connection:
            lease = await leadership.lease(connection)
        return lease if lease is not None and lease.holder else None

    # controller

    async def load(self) -> Snapshot:
        """All live runs with everything that belongs to them, as of one moment."""
        async with self._database.reading() as connection:
            return await queries.load(connection)

    async def commit(self, batch: Batch, *, epoch: int) -> int:
        """Write a batch; returns the number of samples refused for an old attempt."""
        return await self._committer.commit(batch, self._claimed(epoch))

    async def carried_out(self, ids: Sequence[str], *, epoch: int) -> None:
        """Mark outbox entries as done."""
        await self._committer.carried_out(ids, self._claimed(epoch))

    def _claimed(self, epoch: int) -> Claim:
        """The lead of an epoch: where it began is known only of the newest one."""
        claim = self._claim
        return claim if claim is not None and claim.epoch == epoch else Claim(epoch)

    # reading

    async def run(self, reference: str) -> Run:
        """One run by reference."""
        async with self._database.reading() as connection:
            return await queries.run(connection, reference)

    async def runs(
        self, *, states: Sequence[RunState] = (), name: str | None = None, limit: int = 100
    ) -> list[Run]:
        """Runs, newest first."""
        async with self._database.reading() as connection:
            return await queries.runs(connection, states, name, limit)

    async def attempts(self, run: str) -> list[Attempt]:
        """Attempts of a run, oldest first."""
        async with self._database.reading() as connection:
            return await queries.attempts(connection, run)

    async def workers(self, run: str | None = None, *, ended: bool = False) -> list[Worker]:
        """Workers, oldest first."""
        async with self._database.reading() as connection:
            return await queries.workers(connection, run, ended=ended)

    async def nodes(self) -> list[Node]:
        """All nodes, by id."""
        async with self._database.reading() as connection:
            return await queries.nodes(connection)

    async def checkpoints(self, run: str, *, deleted: bool = False) -> list[Checkpoint]:
        """Checkpoints of a run, newest step first."""
        async with self._database.reading() as connection:
            return await queries.checkpoints(connection, run, deleted=deleted)

    async def checkpoint(self, id: str) -> tuple[Checkpoint, list[ShardReport]]:  # noqa: A002 (the port's name)
        """One checkpoint with its shards, by rank."""
        async with self._database.reading() as connection:
            return await queries.checkpoint(connection, id)

    async def incidents(
        self, run: str | None = None, *, open_only: bool = False, limit: int = 100
    ) -> list[Incident]:
        """Incidents, newest first."""
        async with self._database.reading() as connection:
            return await queries.incidents(connection, run, open_only=open_only, limit=limit)

    async def incident(self, reference: str) -> Incident:
        """One incident by reference."""
        async with self._database.reading() as connection:
            return await queries.incident(connection, reference)

    async def queues(self) -> list[Queue]:
        """All queues, by name."""
        async with self._database.reading() as connection:
            return await queries.queues(connection)

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
        async with self._database.reading() as connection:
            return await queries.journal(connection, run, after, before, limit, kind)

    async def journal_of(self, event: str) -> list[JournalEntry]:
        """An event, by its id, with its first instructions."""
        async with self._database.reading() as connection:
            return await queries.journal_of(connection, event)

    async def samples(
        self, run: str, *, points: int = 500, first_step: int = 0, attempt: int | None = None
    ) -> Series:
        """The thinned loss curve."""
        async with self._database.reading() as connection:
            return await sample_rows.series(
                connection, run, points=points, first_step=first_step, attempt=attempt
            )

    async def sample_tail(self, run: str, *, count: int = 1000) -> list[tuple[int, RankSamples]]:
        """The newest samples of the rank that speaks for the run, oldest first."""
        async with self._database.reading() as connection:
            return await sample_rows.tail(connection, run, count)

    async def sample_tails(
        self, runs: Sequence[str], *, count: int = 1000
    ) -> dict[str, list[tuple[int, RankSamples]]]:
        """The newest samples of the ranks that speak for some runs, oldest first."""
        async with self._database.reading() as connection:
            return await sample_rows.tails(connection, runs, count)

    async def metrics(
        self, run: str, *, points: int = 500, first_step: int = 0, attempt: int | None = None
    ) -> MetricSeries:
        """The thinned metrics."""
        async with self._database.reading() as connection:
            return await metric_rows.series(
                connection, run, points=points, first_step=first_step, attempt=attempt
            )

    async def run_numbers(self, runs: Sequence[Run]) -> dict[str, RunNumbers]:
        """The newest numbers of runs, by id."""
        async with self._database.reading() as connection:
            return await queries.run_numbers(connection, runs)

    async def sample_total(self, run: str, attempt: int | None = None) -> int:
        """Number of stored samples."""
        async with self._database.reading() as connection:
            return await sample_rows.total(connection, run, attempt)

    # tokens

    async def create_token(
        self, name: str, role: str, now: dt.datetime, **limits: Unpack[Limits]
    ) -> tuple[Token, str]:
        """Create a token; returns it with its secret.

        Raises:
            InvalidError: The role is unknown.
        """
        async with self._database.writing() as connection:
            made, secret = tokens.make_token(name, role, now, **limits)
            await tokens.insert(connection, made, secret)
            return made, secret

    async def find_token(self, secret: str, now: dt.datetime | None = None) -> Token | None:
        """The token of a secret, also if it is revoked or has expired; None: unknown."""
        async with self._database.reading() as connection:
            token = await tokens.find(connection, secret)
        if token is not None and now is not None and tokens.use_is_due(token, now):
            async with self._database.writing() as connection:
                await tokens.note_use(connection, token, now)
        return token

    async def tokens(self) -> list[Token]:
        """All tokens, oldest first, revoked ones included."""
        async with self._database.reading() as connection:
            return await tokens.all_tokens(connection)

    async def revoke_token(self, id: str, now: dt.datetime, request: str | None = None) -> None:  # noqa: A002 (the port's name)
        """Revoke a token; a second call keeps the first time and request."""
        async with self._database.writing() as connection:
            await tokens.revoke(connection, id, now, request)

    async def signing_key(self) -> str:
        """The signing key of worker tokens."""
        async with self._database.writing() as connection:
            return await tokens.signing_key(connection)
