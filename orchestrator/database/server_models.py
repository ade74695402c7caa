"""The table of servers that share the run database."""

from __future__ import annotations

import datetime as dt

from sqlalchemy.orm import Mapped, mapped_column

from orchestrator.database.models import Base


class ServerRow(Base):
    """A server that leads, or waits to lead; the leader names all of them to agents."""

    __tablename__ = "servers"
    address: Mapped[str] = mapped_column(primary_key=True)
    """URL at which agents reach it."""
    seen_at: Mapped[dt.datetime]
