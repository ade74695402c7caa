"""What the core wants done.

Data only; :mod:`orchestrator.controller` carries it out, through the outbox.

An instruction's id is `<event id>.<n>`: the same event gives the same ids, so carrying one out
twice is harmless.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from jobs.commands import AgentCommand
from monitors.types import Severity


class Instruction(BaseModel):
    """Something to do."""

    model_config = ConfigDict(frozen=True)

    kind: str
    id: str
    cause: str
    """Id of the event that led here."""
    run: str | None
    reason: str
    """A sentence a person can read."""


class LaunchWorker(Instruction):
    """Ask the cluster for an agent on this node."""

    kind: Literal["launch_worker"] = "launch_worker"
    worker: str
    node: str


class StopWorker(Instruction):
    """Ask the cluster to end the agent and all that belongs to it.

    Comes back as WorkerLost(confirmed).
    """

    kind: Literal["stop_worker"] = "stop_worker"
    worker: str
    node: str


class ProbeWorker(Instruction):
    """Ask the cluster whether the agent is alive.

    Comes back as WorkerLost(confirmed) if it is not.
    """

    kind: Literal["probe_worker"] = "probe_worker"
    worker: str
    node: str


class Tell(Instruction):
    """Send a command to an agent."""

    kind: Literal["tell"] = "tell"
    worker: str
    command: AgentCommand


class Notify(Instruction):
    """Tell people."""

    kind: Literal["notify"] = "notify"
    severity: Severity
    text: str
    incident: str | None = None


class Record(Instruction):
    """A decision with nothing to carry out: it goes into the journal only."""

    kind: Literal["record"] = "record"


AnyInstruction = Annotated[
    LaunchWorker | StopWorker | ProbeWorker | Tell | Notify | Record, Field(discriminator="kind")
]
INSTRUCTION: TypeAdapter[AnyInstruction] = TypeAdapter(AnyInstruction)
"""Reads instructions back from the outbox and the journal."""
