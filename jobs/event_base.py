"""The base classes of events; :mod:`jobs.events` has what agents report, and exports these."""

from __future__ import annotations

import datetime as dt

from pydantic import BaseModel, ConfigDict


class Event(BaseModel):
    """A fact that the core handles."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    id: str
    """ULID."""
    at: dt.datetime
    """Time of the fact on the reporter's clock (UTC)."""
    actor: str = "system"
    """`worker:<id>`, `operator:<name>`, `monitor:<kind>`, `controller` …"""
    cause: str | None = None
    """Id of the event or instruction that this event answers; None: none."""


class WorkerEvent(Event):
    """An event of an agent. `attempt` is the fencing token: older attempts are refused."""

    run: str
    worker: str
    attempt: int
    """The attempt that the agent works for; 0 before the first."""
