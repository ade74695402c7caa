"""What the rest of the control plane asks of the run database."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

from jobs.events import RankSamples, ShardReport
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


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JournalEntry:
    """One line of the journal. Never updated."""

    id: str
    """Of the event or instruction."""
    at: dt.datetime
    """When the control plane handled it: the `now` the core was given."""
    run: str | None
    attempt: int | None = None
    actor: str
    kind: Literal["event", "instruction"]
    name: str
    """`rank_exited`, `tell` …"""
    cause: str | None
    reason: str
    payload: Mapping[str, Any]
    """The whole event or instruction, as JSON."""
    position: int = 0
    """Order of writing; given by the database, ignored on input."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSamples:
    """Samples from one report of a worker."""

    run: str
    attempt: int
    ranks: Sequence[RankSamples]
    worker: str = ""
    sequence: int | None = None
    """Worker and sequence of the report: with them, each report's samples are stored once however
    batches are made up."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ShardRecord:
    """A shard of a checkpoint."""

    checkpoint: str
    shard: ShardReport


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FindingRecord:
    """A finding as raised."""

    id: str
    run: str
    attempt: int
    at: dt.datetime
    kind: str
    severity: str
    body: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Everything one turn changes; written in one transaction or not at all."""

    entities: Sequence[Entity] = ()
    shards: Sequence[ShardRecord] = ()
    journal: Sequence[JournalEntry] = ()
    outbox: Sequence[Instruction] = ()
    """Instructions to carry out (never Record)."""
    findings: Sequence[FindingRecord] = ()
    samples: Sequence[WorkerSamples] = ()
    """Samples of an attempt older than the run's newest are refused (dropped and counted)."""
    sequences: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Worker → sequence of its last report that this batch contains."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What the core needs to go on: everything that is not over."""

    runs: Sequence[Run]
    attempts: Sequence[Attempt]
    """Of the runs above: the newest of each."""
    workers: Sequence[Worker]
    """Not ended."""
    nodes: Sequence[Node]
    checkpoints: Sequence[Checkpoint]
    """Of the runs above, not deleted."""
    incidents: Sequence[Incident]
    """Of the runs above, not resolved."""
    queues: Sequence[Queue]
    fleet: Fleet
    sequences: Mapping[str, int]
    outbox: Sequence[Instruction]
    """Not carried out yet, oldest first."""

    def entities(self) -> Iterator[Entity]:
        """All entities, each after those it refers to."""
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
    """A run's samples, thinned: one point per bucket of steps.

    Newest attempt wins where steps repeat.
    """

    step: list[int]
    attempt: list[int]
    loss: list[float]
    """Last of the bucket; NaN kept."""
    loss_max: list[float]
    grad_norm: list[float]
    seconds: list[float]
    """Mean step time of the bucket."""
    time: list[float]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A credential, without its secret."""

    id: str
    name: str
    role: Literal["admin", "operator", "viewer"]
    created_at: dt.datetime
    last_used_at: dt.datetime | None = None
    revoked_at: dt.datetime | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """Leadership, as of now."""

    holder: str
    epoch: int
    expires_at: dt.datetime


class Store(Protocol):
    """The run database.

    Raises DatabaseUnavailableError when it cannot be reached (nothing is then written).
    """

    # leadership
    async def acquire(
        self, holder: str, ttl: float, now: dt.datetime, *, force: bool = False
    ) -> Lease | None:
        """Take or renew the lease: None while another holder's has not expired.

        A new holder gets a new epoch.

        `force`: the caller has other proof that the old holder is dead (a file lock of the embedded
        server).
        """

    async def release(self, holder: str, epoch: int) -> None:
        """Give the lease up, so that the next need not wait."""

    async def leader(self) -> Lease | None:
        """Who leads."""

    # the controller's path
    async def load(self) -> Snapshot:
        """Everything that is not over."""

    async def commit(self, batch: Batch, *, epoch: int) -> int:
        """Write a batch in one transaction. Idempotent in journal ids and worker sequences.

        Returns the number of samples refused for an old attempt.
        Raises LeadershipLostError if `epoch` is
        not current.
        """

    async def carried_out(self, ids: Sequence[str], *, epoch: int) -> None:
        """Mark outbox entries as done."""

    # reading
    async def run(self, reference: str) -> Run:
        """By id, unique id prefix (at least 4 characters), or name (its newest).

        Raises NotFoundError with near names.
        """

    async def runs(
        self, *, states: Sequence[RunState] = (), name: str | None = None, limit: int = 100
    ) -> list[Run]:
        """Newest first."""

    async def attempts(self, run: str) -> list[Attempt]:
        """All, oldest first."""

    async def workers(self, run: str | None = None, *, ended: bool = False) -> list[Worker]:
        """Workers of a run, or of all."""

    async def nodes(self) -> list[Node]:
        """All nodes."""

    async def checkpoints(self, run: str, *, deleted: bool = False) -> list[Checkpoint]:
        """Newest step first."""

    async def checkpoint(self, id: str) -> tuple[Checkpoint, list[ShardReport]]:  # noqa: A002 (the field's name)
        """One checkpoint with its shards, by rank. Raises NotFoundError."""

    async def incidents(
        self, run: str | None = None, *, open_only: bool = False, limit: int = 100
    ) -> list[Incident]:
        """Newest first."""

    async def incident(self, reference: str) -> Incident:
        """By id or unique suffix/prefix of at least 4 characters. Raises NotFoundError."""

    async def queues(self) -> list[Queue]:
        """All queues."""

    async def journal(
        self, run: str | None = None, *, after: int = 0, limit: int = 1000, kind: str | None = None
    ) -> list[JournalEntry]:
        """In order of writing, positions greater than `after`."""

    async def samples(
        self, run: str, *, points: int = 500, first_step: int = 0, attempt: int | None = None
    ) -> Series:
        """The loss curve, thinned to about `points`."""

    async def sample_tail(self, run: str, *, count: int = 1000) -> list[tuple[int, RankSamples]]:
        """The newest `count` samples of rank 0, oldest first, as (attempt, columns)."""

    async def sample_total(self, run: str, attempt: int | None = None) -> int:
        """How many samples are stored."""

    # tokens
    async def create_token(self, name: str, role: str, now: dt.datetime) -> tuple[Token, str]:
        """The token and its secret, which is stored only as a hash."""

    async def find_token(self, secret: str, now: dt.datetime | None = None) -> Token | None:
        """The token this secret belongs to, unless revoked.

        With `now`, its use is noted (once a minute).
        """

    async def tokens(self) -> list[Token]:
        """All tokens."""

    async def revoke_token(self, id: str, now: dt.datetime) -> None:  # noqa: A002 (the field's name)
        """Revoke; raises NotFoundError."""

    async def signing_key(self) -> str:
        """The secret that worker tokens are signed with; made at first use and kept."""

    async def close(self) -> None:
        """Close all connections."""
