"""Instructions: the actions that the core wants done.

Data only; :mod:`orchestrator.controller.controller` carries it out, through the outbox.

An instruction's id is `<event id>.<n>`: the same event gives the same ids, so carrying one out
twice is harmless.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from jobs.commands import AgentCommand
from monitors.types import Severity
from orchestrator.core.model.entities import Incident
from orchestrator.core.model.states import IncidentState
from orchestrator.core.model.vocabulary import Response


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
    checks: tuple[str, ...] = ()
    """Names of check programs that it runs before it joins; empty: none."""


class CheckNode(Instruction):
    """Ask the cluster for an agent that checks this node, and does nothing else.

    Comes back as NodeChecked, or as CheckEnded.
    """

    kind: Literal["check_node"] = "check_node"
    worker: str
    node: str
    gpus: int
    """GPUs of the node: the agent gets all of them."""
    checks: tuple[str, ...] = ()
    """Names of check programs; empty: all."""
    peer: str = ""
    """`host:port` of the node to which a link is measured; empty: the node listens, or is alone."""


class StopCheck(Instruction):
    """Ask the cluster to end the agent of a check, finished or not."""

    kind: Literal["stop_check"] = "stop_check"
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


class SendCommand(Instruction):
    """Send a command to an agent."""

    kind: Literal["send_command"] = "send_command"
    worker: str
    command: AgentCommand


class BroadcastCommand(Instruction):
    """Send one command to many agents at once; each gets its own part of it.

    One line of the outbox for a gang of any size: it is done when every agent has taken its part,
    or is gone. To each agent the part bears the instruction's id.
    """

    kind: Literal["broadcast_command"] = "broadcast_command"
    workers: tuple[str, ...]
    ranks: tuple[tuple[int, ...], ...] = ()
    """Ranks of each worker, where the command differs by worker; empty: it is the same for all."""
    command: AgentCommand

    def each(self) -> Iterator[SendCommand]:
        """One command for each worker, in order."""
        shared = {"id": self.id, "cause": self.cause, "run": self.run, "reason": self.reason}
        for place, worker in enumerate(self.workers):
            ranks = self.ranks[place] if self.ranks else ()
            yield SendCommand(**shared, worker=worker, command=self.command.part(place, ranks))


class Notify(Instruction):
    """Deliver a notice to people, through the alert channel of the server."""

    kind: Literal["notify"] = "notify"
    severity: Severity
    text: str
    incident: str | None = None
    incident_kind: str
    """Kind of the incident; without one, what the notice is about: `run_failed`, `run_held` …"""
    subject: str = ""
    """The node, or the nodes, of an incident that belongs to no run."""
    attempt: int | None = None
    """The run's attempt when the notice was made; None: it concerns no run."""
    channel: str | None = None
    """Where the run's owner wants it: `notify.slack` of the spec. None: the channel's default."""
    run_name: str = ""
    project: str = ""
    queue: str = ""
    actor: str = ""
    """The actor of the event behind it: a person (`operator:NAME`) knows of it already."""
    cascade: str = ""
    """Key of the problem that a cascade over several runs began with, or of a report."""
    mention: str = ""
    """Whom an escalation pings, in Slack's words; empty: whom the settings name."""
    mail_to: str = ""
    """Whom an escalation mails, with commas between them; empty: whom the settings name."""
    report: bool = False
    """True: people have asked for it, so it is sent whatever its severity."""
    asks: bool = False
    """True: a remedy starts some time after this is delivered, so :class:`AskDelivered` follows."""

    @property
    def dedup_key(self) -> str:
        """`RUN/KIND/ATTEMPT`; `fleet/KIND` or `node/NODE/KIND` where no run is concerned.

        Notices with one key are about one problem: a channel may show them as one.
        """
        if self.run is None:
            about = f"node/{self.subject}" if self.subject else "fleet"
            return f"{about}/{self.incident_kind}"
        return f"{self.run}/{self.incident_kind}/{self.attempt}"

    @property
    def problem(self) -> str:
        """The dedup key, or that of the incident in another run that has the same cause."""
        return self.cascade or self.dedup_key


class IncidentUpdate(Instruction):
    """Show people an incident as it is now, where earlier messages about it are.

    An update bears all that is shown, so that updates may arrive late or in any order: the one
    with the latest `at` is the truth. It pages nobody; :class:`Notify` does.
    """

    kind: Literal["incident_update"] = "incident_update"
    at: dt.datetime
    run: str
    """Empty: the incident is about nodes."""
    run_name: str
    """The node of such an incident. Empty, like the other facts of the run: the run is over, and
    an earlier update has them."""
    project: str
    queue: str
    channel: str | None
    """Where the run's owner wants it: `notify.slack` of the spec. None: the channel's default."""
    step: int
    """Best step of the run at that time."""
    node: str | None = None
    rank: int | None = None
    lost_seconds: float | None = None
    """From the last sign of progress to the end of the incident; None: it is not over."""
    lost_steps: int | None = None
    """Steps that were computed again; None: not known, or none were."""
    held: str = ""
    """Why no remedy starts for now: the hold of the run or of everything; empty: there is none."""
    steps: tuple[int, ...] = ()
    """Steps to which the run may be rolled back, the newest first, at most 10."""
    incident: Incident
    """The incident; of its evidence, how it was resolved."""

    @property
    def dedup_key(self) -> str:
        """`RUN/KIND/ATTEMPT` or `node/NODE/KIND`, as of the notices about it."""
        if not self.run:
            return f"node/{self.incident.subject}/{self.incident.kind}"
        return f"{self.run}/{self.incident.kind}/{self.incident.attempt}"

    @property
    def problem(self) -> str:
        """The dedup key, or that of the incident in another run that has the same cause."""
        return self.incident.cascade or self.dedup_key

    @property
    def asked(self) -> bool:
        """True while a remedy waits for an answer of people."""
        incident = self.incident
        waits = incident.response is Response.ASKED and incident.acknowledged_by is None
        return waits and incident.state is IncidentState.OPEN

    @property
    def starts_at(self) -> dt.datetime | None:
        """When a remedy starts unless people answer; None: none does by itself."""
        return self.incident.remedy_at if self.asked and not self.held else None


class Record(Instruction):
    """A decision with nothing to carry out: it goes into the journal only."""

    kind: Literal["record"] = "record"


AnyInstruction = Annotated[
    LaunchWorker
    | CheckNode
    | StopCheck
    | StopWorker
    | ProbeWorker
    | SendCommand
    | BroadcastCommand
    | Notify
    | IncidentUpdate
    | Record,
    Field(discriminator="kind"),
]
INSTRUCTION: TypeAdapter[AnyInstruction] = TypeAdapter(AnyInstruction)
"""Reads instructions back from the outbox and the journal."""
