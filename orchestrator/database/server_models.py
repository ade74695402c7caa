"""Tables of the servers that share the run database, and of what they have told people."""

from __future__ import annotations

import datetime as dt
from typing import Any

from sqlalchemy.orm import Mapped, mapped_column

from orchestrator.database.columns import BigKey
from orchestrator.database.models import Base


class ServerRow(Base):
    """A server that leads, or waits to lead; the leader names all of them to agents."""

    __tablename__ = "servers"
    address: Mapped[str] = mapped_column(primary_key=True)
    """URL at which agents reach it."""
    seen_at: Mapped[dt.datetime]


class AlertMemoryRow(Base):
    """The memory of an alert channel: messages that it may edit, say."""

    __tablename__ = "alert_memory"
    key: Mapped[str] = mapped_column(primary_key=True)
    run: Mapped[str | None] = mapped_column(index=True)
    """The run that it is about; it goes with the run's history."""
    body: Mapped[dict[str, Any]]


class LogTailRow(Base):
    """Segments of the ends of logs (:mod:`orchestrator.database.log_tails`)."""

    __tablename__ = "log_tails"
    run: Mapped[str] = mapped_column(primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    rank: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    segment: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    start: Mapped[int]
    end: Mapped[int]
    worker: Mapped[str]
    written_at: Mapped[dt.datetime]
    packed: Mapped[bytes]
    """Last, so that SQLite finds the other columns without reading it."""


class BundlePartRow(Base):
    """Parts of the code of runs (:mod:`orchestrator.database.bundle_parts`)."""

    __tablename__ = "bundle_parts"
    bundle: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    parts: Mapped[int]
    stored_at: Mapped[dt.datetime]
    data: Mapped[bytes]
    """Last, so that SQLite finds the other columns without reading it."""


class SessionRow(Base):
    """Browsers that have signed in (:mod:`orchestrator.database.sessions`)."""

    __tablename__ = "sessions"
    hash: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    opener: Mapped[str]
    name: Mapped[str] = mapped_column(index=True)
    role: Mapped[str]
    expires_at: Mapped[dt.datetime] = mapped_column(index=True)
    memo: Mapped[dict[str, Any]]


class AuditRow(Base):
    """Calls that may change something (:mod:`orchestrator.database.audit`). Never updated."""

    __tablename__ = "audit"
    __table_args__ = ({"sqlite_autoincrement": True},)  # positions are never reused
    position: Mapped[int] = mapped_column(BigKey, primary_key=True)
    id: Mapped[str] = mapped_column(unique=True)
    at: Mapped[dt.datetime] = mapped_column(index=True)
    actor: Mapped[str] = mapped_column(index=True)
    role: Mapped[str]
    via: Mapped[str]
    subject: Mapped[str]
    action: Mapped[str]
    target: Mapped[str]
    run: Mapped[str | None] = mapped_column(index=True)
    reason: Mapped[str]
    outcome: Mapped[str]
    detail: Mapped[str]
    request: Mapped[str]
    event: Mapped[str]
    before: Mapped[dict[str, Any]]
    after: Mapped[dict[str, Any]]


class AuditRetentionRow(Base):
    """The history of removals from the audit log; a guard allows none without a row here."""

    __tablename__ = "audit_retention"
    __table_args__ = ({"sqlite_autoincrement": True},)
    id: Mapped[int] = mapped_column(BigKey, primary_key=True)
    at: Mapped[dt.datetime]
    until: Mapped[dt.datetime]
    """Entries older than this may be deleted."""
