"""Tables of the servers that share the run database, and of what they have told people."""

from __future__ import annotations

import datetime as dt
from typing import Any

from sqlalchemy.orm import Mapped, mapped_column

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
