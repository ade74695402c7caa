"""Events about agents whose version differs from the server's."""

from __future__ import annotations

from typing import Literal

from jobs.events import Event, WorkerEvent


class ReportUnreadable(WorkerEvent):
    """Part of an agent's report cannot be read: its version differs, or the report is damaged."""

    kind: Literal["report_unreadable"] = "report_unreadable"
    event: str
    """Kind of the event as the agent wrote it; empty: samples, or not even that can be read."""
    body: str
    """The beginning of what was sent."""
    reason: str
    """The fault, for people."""
    partly: bool = False
    """True: the event follows without the fields that cannot be read."""
    first: bool = False
    """True for the first of a connection: people hear of that one."""


class AgentRefused(Event):
    """An agent was refused that speaks a protocol which this server does not."""

    kind: Literal["agent_refused"] = "agent_refused"
    run: str
    worker: str
    reason: str
