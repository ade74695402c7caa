"""The run database as the control plane uses it: the port that every store implements.

All times are UTC. All methods raise DatabaseUnavailableError if the database cannot be reached.
Stores do not retry: a caller that repeats a write relies on its idempotence.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, Unpack

from jobs.events import RankSamples
from jobs.shards import ShardReport
from orchestrator.core.messages.instructions import Instruction
from orchestrator.core.model.entities import (
    Attempt,
    Checkpoint,
    Entity,
    Fleet,
    Incident,
    Node,
    Queue,
    Run,
    Worker,
)
from orchestrator.core.model.states import RunState
from orchestrator.database.credentials import Limits, Token
from orchestrator.database.ended_runs import EndedRuns
from orchestrator.database.people import People
from orchestrator.database.sample_records import SampleRecords


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JournalEntry:
    """One row of the journal. Never updated."""

    id: str
    """Id of the event or instruction."""
    at: dt.datetime
    """Time at which the control plane handled it: the `now` passed to the core."""
    run: str | None
    attempt: int | None = None
    actor: str
    kind: Literal["event", "instruction"]
    name: str
    """Kind of the event or instruction: `rank_exited`, `send_command` …"""
    cause: str | None
    reason: str
    payload: Mapping[str, Any]
    """The complete event or instruction as JSON."""
    position: int = 0
    """Order of writing, from 1; set by the database, ignored on input."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSamples:
    """Samples from one report of a worker."""

    run: str
    attempt: int
    ranks: Sequence[RankSamples]
    worker: str = ""
    sequence: int | None = None
    """Sequence of the report; None: unknown.

    With worker and sequence, each report's samples are stored once, however they are batched.
    """


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ShardRecord:
    """One shard of a checkpoint."""

    checkpoint: str
    shard: ShardReport


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FindingRecord:
    """A finding as raised by a monitor."""

    id: str
    run: str
    attempt: int
    at: dt.datetime
    kind: str
    severity: str
    body: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """All changes of one transaction of the controller; written completely or not at all."""

    entities: Sequence[Entity] = ()
    shards: Sequence[ShardRecord] = ()
    journal: Sequence[JournalEntry] = ()
    outbox: Sequence[Instruction] = ()
    """Instructions to execute (never Record)."""
    findings: Sequence[FindingRecord] = ()
    samples: Sequence[WorkerSamples] = ()
    """Samples; those of an attempt older than the run's newest are dropped and counted."""
    sequences: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Worker → sequence of its last report in this batch."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunNumbers:
    """Numbers in a line about a run, besides the run itself."""

    step: int | None = None
    """Step of the newest sample; None: there is none."""
    loss: float | None = None
    """Loss of that step, NaN included; None: there is no sample."""
    restarts: int = 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The state that the core starts from: all live runs with everything that belongs to them.

    A run with a final state is included while one of its attempts or workers is alive.
    """

    runs: Sequence[Run]
    attempts: Sequence[Attempt]
    """The newest attempt of each of these runs."""
    workers: Sequence[Worker]
    """Workers that have not ended."""
    nodes: Sequence[Node]
    checkpoints: Sequence[Checkpoint]
    """Checkpoints of these runs that are not deleted."""
    incidents: Sequence[Incident]
    """Incidents of these runs that are not resolved."""
    queues: Sequence[Queue]
    fleet: Fleet
    sequences: Mapping[str, int]
    outbox: Sequence[Instruction]
    """Instructions that are not done, oldest first."""

    def entities(self) -> Iterator[Entity]:
        """Yield all entities, each after those it refers to."""
        yield from self.runs
        yield from self.attempts
        yield from self.workers
        yield from self.nodes
        yield from self.checkpoints
        yield from self.incidents
        yield from self.queues
        yield self.fleet


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """The samples of a run, thinned to one point per bucket of steps.

    Where several attempts have a step, the newest attempt counts. Times are Unix seconds.
    """

    step: list[int]
    attempt: list[int]
    loss: list[float]
    """Last loss of the bucket; may be NaN."""
    loss_min: list[float]
    """Lowest loss of the bucket; NaN: there is none."""
    loss_max: list[float]
    missing: list[int]
    """Samples of the bucket without a finite loss: NaN, infinite, or not reported."""
    grad_norm: list[float]
    seconds: list[float]
    """Mean step time of the bucket."""
    time: list[float]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MetricSeries:
    """The named metrics of a run, thinned, in columns of equal length."""

    step: list[int]
    attempt: list[int]
    metrics: dict[str, list[float]]
    """NaN: no value of that name near the step."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The leadership at one moment."""

    holder: str
    epoch: int
    expires_at: dt.datetime
    address: str = ""
    """URL at which agents reach the holder; empty: not known."""
    servers: Sequence[str] = ()
    """URLs of all servers that lead or wait to lead, where the store knows them."""
    started: int = 0
    """Start of the PostgreSQL server that stores the lease, in microseconds; 0: another store."""


class Store(EndedRuns, People, SampleRecords, Protocol):
    """The run database.

    Raises:
        DatabaseUnavailableError: It cannot be reached. Nothing was written, unless the connection
            broke during the commit itself; then the outcome is unknown.
    """

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
        """Take or renew the lease. Never waits for a transaction of the holder's.

        Args:
            holder: Id of the server.
            ttl: Seconds until the lease expires.
            now: The current time; of no account where the store has a clock of its own, which all
                servers share.
            address: URL at which agents reach the server.
            force: Take an unexpired lease of another holder. The caller has proof that it is dead
                (the file lock of the embedded server).

        Returns:
            The lease, with a new epoch for a new holder; None: another holder's has not expired.
        """

    async def release(self, holder: str, epoch: int) -> None:
        """Release the lease, so that the next holder need not wait; ignored if it is not held."""

    async def leader(self) -> Lease | None:
        """The lease of the current or last holder; None: released, or never held."""

    # controller
    async def load(self) -> Snapshot:
        """All live runs with everything that belongs to them, as of one moment."""

    async def commit(self, batch: Batch, *, epoch: int) -> int:
        """Write a batch in one transaction.

        A batch may be written again: journal ids, outbox ids and worker sequences make it
        idempotent.

        Returns:
            Number of samples refused because they belong to an old attempt.

        Raises:
            LeadershipLostError: `epoch` is not current; nothing was written.
            InvariantError: A constraint or guard rejected the batch; nothing was written.
        """

    async def carried_out(self, ids: Sequence[str], *, epoch: int) -> None:
        """Mark outbox entries as done.

        Raises:
            LeadershipLostError: `epoch` is not current.
        """

    # reading
    async def run(self, reference: str) -> Run:
        """One run by id, unique start or end of an id (at least 4 characters), or name (newest).

        Raises:
            NotFoundError: No or several runs match; the message lists similar ones.
        """

    async def runs(
        self, *, states: Sequence[RunState] = (), name: str | None = None, limit: int = 100
    ) -> list[Run]:
        """Runs, newest first. Empty `states`: any state; `name` None: any name."""

    async def attempts(self, run: str) -> list[Attempt]:
        """All attempts of a run, oldest first."""

    async def workers(self, run: str | None = None, *, ended: bool = False) -> list[Worker]:
        """Workers of a run (None: of all runs), oldest first; ended ones on request."""

    async def nodes(self) -> list[Node]:
        """All nodes, by id."""

    async def checkpoints(self, run: str, *, deleted: bool = False) -> list[Checkpoint]:
        """Checkpoints of a run, newest step first; deleted ones on request."""

    async def checkpoint(self, id: str) -> tuple[Checkpoint, list[ShardReport]]:  # noqa: A002 (the field's name)
        """One checkpoint with its shards, by rank.

        Raises:
            NotFoundError: There is no such checkpoint.
        """

    async def incidents(
        self, run: str | None = None, *, open_only: bool = False, limit: int = 100
    ) -> list[Incident]:
        """Incidents of a run (None: of all runs), newest first."""

    async def incident(self, reference: str) -> Incident:
        """One incident by id, or unique prefix or suffix of at least 4 characters.

        Raises:
            NotFoundError: No or several incidents match.
        """

    async def queues(self) -> list[Queue]:
        """All queues that are not removed, by name."""

    async def journal(
        self,
        run: str | None = None,
        *,
        after: int = 0,
        before: int | None = None,
        limit: int = 1000,
        kind: str | None = None,
    ) -> list[JournalEntry]:
        """Journal entries in order of writing: the first `limit` after the position `after`.

        With `before`, the last `limit` of the positions below that.
        """

    async def journal_of(self, event: str) -> list[JournalEntry]:
        """An event, by its id, with its first instructions, in order; empty: it never happened."""

    async def samples(
        self, run: str, *, points: int = 500, first_step: int = 0, attempt: int | None = None
    ) -> Series:
        """The loss curve from `first_step`, thinned to at most `points` points.

        It is that of the lowest rank with a loss: in a pipeline, only the last stage has one.

        `attempt` None: all attempts, where the newest counts for steps that repeat.
        """

    async def sample_tail(self, run: str, *, count: int = 1000) -> list[tuple[int, RankSamples]]:
        """The newest `count` samples of the lowest rank with a loss, oldest first.

        As attempt and columns, without metrics. While no rank has a loss, of the lowest rank.
        """

    async def sample_tails(
        self, runs: Sequence[str], *, count: int = 1000
    ) -> dict[str, list[tuple[int, RankSamples]]]:
        """As :meth:`sample_tail`, of some runs; a run without samples is absent.

        The number of queries grows with pages of runs only. A rank speaks for its run if it is the
        lowest with a loss in the newest chunk of some attempt.
        """

    async def metrics(
        self, run: str, *, points: int = 500, first_step: int = 0, attempt: int | None = None
    ) -> MetricSeries:
        """Named metrics, thinned to at most `points` points.

        They are those of the lowest rank with a loss if it reports any, else of the lowest rank
        that does.

        Of a run of more than 128 chunks with metrics, evenly spaced chunks are read.
        """

    async def run_numbers(self, runs: Sequence[Run]) -> dict[str, RunNumbers]:
        """The newest sample of the rank that speaks, and the restarts, of each of some runs.

        Takes two queries, however many runs there are.
        """

    # tokens
    async def create_token(
        self, name: str, role: str, now: dt.datetime, **limits: Unpack[Limits]
    ) -> tuple[Token, str]:
        """Create a token; returns it with its secret, of which only a hash is stored.

        Raises:
            InvalidError: The role is unknown.
        """

    async def find_token(self, secret: str, now: dt.datetime | None = None) -> Token | None:
        """The token of a secret, also if it is revoked or has expired; None: unknown.

        With `now`, the use of a valid token is stored, at most once a minute.
        """

    async def tokens(self) -> list[Token]:
        """All tokens, oldest first, revoked ones included."""

    async def revoke_token(self, id: str, now: dt.datetime, request: str | None = None) -> None:  # noqa: A002 (the field's name)
        """Revoke a token; the first call counts. Raises NotFoundError."""

    async def signing_key(self) -> str:
        """The secret key that signs worker tokens; generated at first use, then constant."""

    async def close(self) -> None:
        """Close all connections."""
