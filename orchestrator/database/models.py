"""The tables of the run database.

Each entity of the core has one table: its key, the few columns that queries and constraints need,
and a JSON column `body` with the whole entity. Every explicit column has the name of the entity's
attribute. So one generic mapping suffices (:mod:`orchestrator.database.mapping`), and a new entity
field with a default needs no migration. Invariants that SQL must hold (one live attempt, final
states, complete checkpoints) use columns, constraints, and :mod:`orchestrator.database.guards`.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    LargeBinary,
    MetaData,
    Text,
    false,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from babysit.wire import Tier
from monitors.types import Severity
from orchestrator.core.model.states import (
    LIVE_ATTEMPT_STATES,
    AttemptState,
    IncidentState,
    NodeState,
    RunState,
    Trust,
    WorkerState,
)
from orchestrator.database.columns import BigKey, UtcDateTime, one_of

LIVE = "state IN ({})".format(", ".join(f"'{s.value}'" for s in sorted(LIVE_ATTEMPT_STATES)))


class Base(DeclarativeBase):
    """The base class of all tables."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 (SQLAlchemy requires this form)
        str: Text(),
        int: BigInteger(),
        float: Double(),
        bytes: LargeBinary(),
        dt.datetime: UtcDateTime(),
        dict[str, Any]: JSON(),
    }


class RunRow(Base):
    """Runs."""

    __tablename__ = "runs"
    __table_args__ = (
        one_of("state", RunState),
        Index(None, "state"),
        Index(None, "ended_at", "id"),
        Index(None, "name", "submitted_at"),
    )
    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    state: Mapped[str]
    attempt: Mapped[int]
    submitted_at: Mapped[dt.datetime] = mapped_column(index=True)
    ended_at: Mapped[dt.datetime | None]
    body: Mapped[dict[str, Any]]


class AttemptRow(Base):
    """Attempts. A run has at most one live attempt, and attempt numbers only grow."""

    __tablename__ = "attempts"
    __table_args__ = (
        one_of("state", AttemptState),
        CheckConstraint("number >= 1", name="number"),
        Index(
            "uq_attempts_one_alive",
            "run",
            unique=True,
            sqlite_where=text(LIVE),
            postgresql_where=text(LIVE),
        ),
    )
    run: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    state: Mapped[str]
    started_at: Mapped[dt.datetime]
    ended_at: Mapped[dt.datetime | None]
    body: Mapped[dict[str, Any]]


class WorkerRow(Base):
    """Workers.

    There is no foreign key to nodes: nodes disappear, but the history of workers stays.
    """

    __tablename__ = "workers"
    __table_args__ = (one_of("state", WorkerState), Index(None, "state"))
    id: Mapped[str] = mapped_column(primary_key=True)
    run: Mapped[str] = mapped_column(ForeignKey("runs.id"), index=True)
    node: Mapped[str]
    state: Mapped[str]
    launched_at: Mapped[dt.datetime]
    last_sequence: Mapped[int] = mapped_column(server_default=text("-1"))
    """Sequence of the newest stored report; written by commits only, not part of the entity."""
    body: Mapped[dict[str, Any]]


class NodeRow(Base):
    """Nodes."""

    __tablename__ = "nodes"
    __table_args__ = (one_of("state", NodeState),)
    id: Mapped[str] = mapped_column(primary_key=True)
    state: Mapped[str]
    body: Mapped[dict[str, Any]]


class CheckpointRow(Base):
    """Checkpoints."""

    __tablename__ = "checkpoints"
    __table_args__ = (
        one_of("trust", Trust),
        one_of("tier", Tier),
        CheckConstraint("world_size >= 1", name="world_size"),
        ForeignKeyConstraint(["run", "attempt"], ["attempts.run", "attempts.number"]),
        Index(None, "run", "step"),
    )
    id: Mapped[str] = mapped_column(primary_key=True)
    run: Mapped[str]
    attempt: Mapped[int]
    step: Mapped[int]
    tier: Mapped[str]
    world_size: Mapped[int]
    trust: Mapped[str]
    created_at: Mapped[dt.datetime]
    deleted_at: Mapped[dt.datetime | None]
    removed_at: Mapped[dt.datetime | None]
    body: Mapped[dict[str, Any]]


class ShardRow(Base):
    """Shards of checkpoints, with sizes and hashes.

    The foreign key is checked at the end of the transaction: shards are written before their
    checkpoint, so that a guard can count them when the checkpoint becomes complete.
    """

    __tablename__ = "shards"
    __table_args__ = (CheckConstraint("rank >= 0", name="rank"),)
    checkpoint: Mapped[str] = mapped_column(
        ForeignKey("checkpoints.id", deferrable=True, initially="DEFERRED"), primary_key=True
    )
    rank: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    bytes: Mapped[int]
    body: Mapped[dict[str, Any]]


class SampleRow(Base):
    """Summaries of up to 512 consecutive samples of one rank, for long curves.

    Times are Unix seconds; a NULL number is NaN (SQLite has no NaN).
    """

    __tablename__ = "samples"
    __table_args__ = (
        ForeignKeyConstraint(["run", "attempt"], ["attempts.run", "attempts.number"]),
        CheckConstraint("count BETWEEN 1 AND 512", name="count"),
        Index(
            "uq_samples_one_tail",
            "run",
            "attempt",
            "rank",
            unique=True,
            sqlite_where=text("tail"),
            postgresql_where=text("tail"),
        ),
    )
    run: Mapped[str] = mapped_column(primary_key=True)
    rank: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    chunk: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    """0, 1, 2 … within (run, attempt, rank)."""
    tail: Mapped[bool]
    """True for the newest chunk, which takes further samples."""
    first_step: Mapped[int]
    last_step: Mapped[int]
    count: Mapped[int]
    lost: Mapped[int]
    loss_last: Mapped[float | None]
    loss_min: Mapped[float | None]
    loss_max: Mapped[float | None]
    grad_norm_last: Mapped[float | None]
    seconds_sum: Mapped[float | None]
    first_time: Mapped[float | None]
    last_time: Mapped[float | None]
    loss_count: Mapped[int | None]  # samples with a finite loss; NULL: of a version without it


class SampleDataRow(Base):
    """The packed samples (:mod:`orchestrator.database.samples`).

    A separate table: reading the summaries of 10 million steps must not touch 300 MB of samples.
    """

    __tablename__ = "sample_data"
    __table_args__ = (
        ForeignKeyConstraint(
            ["run", "rank", "attempt", "chunk"],
            ["samples.run", "samples.rank", "samples.attempt", "samples.chunk"],
            ondelete="CASCADE",
        ),
    )
    run: Mapped[str] = mapped_column(primary_key=True)
    rank: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    chunk: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    data: Mapped[bytes]
    metrics: Mapped[bytes | None]
    """Named metrics (:mod:`orchestrator.database.metric_columns`); NULL: none were reported."""


class FindingRow(Base):
    """Findings as raised by monitors."""

    __tablename__ = "findings"
    __table_args__ = (one_of("severity", Severity), Index(None, "run", "at"))
    id: Mapped[str] = mapped_column(primary_key=True)
    run: Mapped[str] = mapped_column(ForeignKey("runs.id"))
    attempt: Mapped[int]
    at: Mapped[dt.datetime]
    kind: Mapped[str]
    severity: Mapped[str]
    body: Mapped[dict[str, Any]]


class IncidentRow(Base):
    """Incidents."""

    __tablename__ = "incidents"
    __table_args__ = (
        one_of("state", IncidentState),
        one_of("severity", Severity),
        Index(None, "run", "opened_at"),
    )
    id: Mapped[str] = mapped_column(primary_key=True)
    run: Mapped[str | None] = mapped_column(ForeignKey("runs.id"))  # NULL: it is about nodes
    attempt: Mapped[int]
    kind: Mapped[str]
    severity: Mapped[str]
    state: Mapped[str]
    opened_at: Mapped[dt.datetime]
    resolved_at: Mapped[dt.datetime | None]
    body: Mapped[dict[str, Any]]


class JournalRow(Base):
    """The journal.

    Rows are never updated; only the retention command deletes them. There are no foreign keys,
    since the journal also records failed requests.
    """

    __tablename__ = "journal"
    __table_args__ = (
        CheckConstraint("kind IN ('event', 'instruction')", name="kind"),
        Index(None, "run", "position"),
        {"sqlite_autoincrement": True},  # positions are never reused
    )
    position: Mapped[int] = mapped_column(BigKey, primary_key=True)
    id: Mapped[str] = mapped_column(unique=True)
    at: Mapped[dt.datetime]
    run: Mapped[str | None]
    attempt: Mapped[int | None]
    actor: Mapped[str]
    kind: Mapped[str]
    name: Mapped[str]
    cause: Mapped[str | None]
    reason: Mapped[str]
    payload: Mapped[dict[str, Any]]
    """The event or instruction; empty where it is in `packed`."""
    packed: Mapped[bytes | None]
    """A large payload, compressed (:mod:`orchestrator.database.packing`)."""


class OutboxRow(Base):
    """Instructions to execute.

    Done rows stay, so that a batch that is written again does not execute them again.
    """

    __tablename__ = "outbox"
    __table_args__ = (
        CheckConstraint("kind <> 'record'", name="kind"),
        Index(
            "ix_outbox_open",
            "position",
            sqlite_where=text("NOT done"),
            postgresql_where=text("NOT done"),
        ),
        {"sqlite_autoincrement": True},
    )
    position: Mapped[int] = mapped_column(BigKey, primary_key=True)
    id: Mapped[str] = mapped_column(unique=True)
    run: Mapped[str | None] = mapped_column(index=True)
    kind: Mapped[str]
    done: Mapped[bool] = mapped_column(server_default=false())
    body: Mapped[dict[str, Any]]


class QueueRow(Base):
    """Queues."""

    __tablename__ = "queues"
    name: Mapped[str] = mapped_column(primary_key=True)
    body: Mapped[dict[str, Any]]


class FleetRow(Base):
    """Cluster-wide settings and the global hold. One row."""

    __tablename__ = "fleet"
    __table_args__ = (CheckConstraint("id = 'fleet'", name="one_row"),)
    id: Mapped[str] = mapped_column(primary_key=True)
    body: Mapped[dict[str, Any]]


class TokenRow(Base):
    """Credentials. Only a hash of the secret is stored."""

    __tablename__ = "tokens"
    __table_args__ = (CheckConstraint("role IN ('admin', 'operator', 'viewer')", name="role"),)
    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    role: Mapped[str]
    hash: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[dt.datetime]
    last_used_at: Mapped[dt.datetime | None]
    revoked_at: Mapped[dt.datetime | None]
    expires_at: Mapped[dt.datetime | None]
    scope: Mapped[dict[str, Any]]
    revoked_by: Mapped[str | None]
    """Key of the request that revoked it; NULL: it had none, or nobody revoked it."""


class SecretRow(Base):
    """Secrets that the control plane generates for itself."""

    __tablename__ = "secrets"
    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]


class LeaderRow(Base):
    """The leader's lease. One row; the epoch only grows."""

    __tablename__ = "leader"
    __table_args__ = (CheckConstraint("id = 1", name="one_row"),)
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    holder: Mapped[str]
    """The server that leads; empty: none."""
    epoch: Mapped[int]
    expires_at: Mapped[dt.datetime]
    address: Mapped[str] = mapped_column(default="")
    """URL at which agents reach the holder."""


class RetentionRow(Base):
    """The history of the retention command.

    A guard allows deletion of a journal row only if it is older than one of these.
    """

    __tablename__ = "retention"
    __table_args__ = ({"sqlite_autoincrement": True},)
    id: Mapped[int] = mapped_column(BigKey, primary_key=True)
    at: Mapped[dt.datetime]
    until: Mapped[dt.datetime]
    """Rows older than this may be deleted."""
