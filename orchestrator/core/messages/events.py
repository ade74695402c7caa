"""Everything that can happen to the control plane. Agents' events come from :mod:`jobs.events`."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from jobs.engine_events import EngineEvent
from jobs.events import (
    AttemptStopped,
    ChangeAnnounced,
    CheckpointChecked,
    CheckpointDeleted,
    CheckpointsFound,
    Event,
    RankExited,
    RankReady,
    RankRestored,
    RanksStarted,
    SaveFailed,
    SaveResumed,
    ShardWritten,
    StacksCaptured,
    StorageTrouble,
    WorkerEvent,
    WorkerJoined,
)
from jobs.spec import RunSpec
from jobs.spec_types import Model
from monitors.types import Finding, Pace
from orchestrator.core.messages.check_events import CheckEvent
from orchestrator.core.messages.cluster_events import LaunchRefused, WorkerLeaving, WorkerStuck
from orchestrator.core.messages.gang_events import AnyGangEvent
from orchestrator.core.messages.node_events import NodeFindingRaised
from orchestrator.core.messages.notice_events import AskDelivered, IncidentSilenced, SummaryDue
from orchestrator.core.messages.reconciliation_events import AgentAhead, AttemptCompared
from orchestrator.core.messages.version_events import AgentRefused, ReportUnreadable
from orchestrator.core.model.checking import CheckPolicy
from orchestrator.core.model.states import IncidentState
from orchestrator.core.model.vocabulary import Timer
from orchestrator.core.scheduling import Quota


class LeadershipBegan(Event):
    """A server begins to lead: reports to the one before may be lost, or a backup was restored."""

    kind: Literal["leadership_began"] = "leadership_began"
    checks: CheckPolicy | None = None  # as this server has it set; None: as it is


class RunSubmitted(Event):
    """Someone submitted a run."""

    kind: Literal["run_submitted"] = "run_submitted"
    run: str
    spec: RunSpec
    owner: str = ""
    bundle: str | None = None  # id of its code in the bundle store; None: nothing was uploaded


class RunCancelled(Event):
    """Someone wants the run ended."""

    kind: Literal["run_cancelled"] = "run_cancelled"
    run: str
    reason: str = ""


class RunHeld(Event):
    """Stop all automatic action for a run, or (run None) for everything."""

    kind: Literal["run_held"] = "run_held"
    run: str | None
    reason: str = ""


class RunReleased(Event):
    """End a hold."""

    kind: Literal["run_released"] = "run_released"
    run: str | None
    reason: str = ""


class RestartAsked(Event):
    """Someone wants the gang restarted from the newest checkpoint."""

    kind: Literal["restart_asked"] = "restart_asked"
    run: str
    reason: str = ""


class RollbackAsked(Event):
    """Someone wants an older checkpoint loaded, and perhaps batches skipped."""

    kind: Literal["rollback_asked"] = "rollback_asked"
    run: str
    to_step: int | None = None
    skip: tuple[int, int] | None = None
    force: bool = False  # take the checkpoint of `to_step` even if doubted, superseded or bad
    reason: str = ""


class WorkerLost(Event):
    """A worker is gone, or out of contact."""

    kind: Literal["worker_lost"] = "worker_lost"
    run: str
    worker: str
    confirmed: bool
    """The cluster or its agent says that no process of it is left; else ranks may be training."""
    reason: str = ""


class WorkerRegained(Event):
    """A worker that was out of contact is back."""

    kind: Literal["worker_regained"] = "worker_regained"
    run: str
    worker: str


class StepReached(Event):
    """A rank ended a step at or past the attempt's milestone.

    Also sent ahead of any event that may end the attempt, with the newest step so far.
    """

    kind: Literal["step_reached"] = "step_reached"
    run: str
    attempt: int
    step: int
    blocked_seconds: float = 0.0  # of the attempt, in which saves blocked training, so far
    first_step: int = 0  # the first that a rank ended in the attempt; 0: not known
    pace: Pace | None = None
    learned: str | None = None
    """Pauses that ended by themselves, and the loss monitor's memory (opaque); None: no news."""


class ProgressSeen(Event):
    """Ranks that were silent beyond their pace move again; perhaps no step has ended yet."""

    kind: Literal["progress_seen"] = "progress_seen"
    run: str
    attempt: int


class FindingRaised(Event):
    """A monitor found something in the samples or the heartbeats of an attempt."""

    kind: Literal["finding_raised"] = "finding_raised"
    run: str
    attempt: int
    finding: Finding


class NodeInfo(Model):
    """A node as its cluster describes it."""

    id: str
    gpus: int = 0
    cpus: float = 1
    memory: int = 0
    host: str = ""
    """The machine that several nodes share; empty: the node is a machine of its own."""
    labels: dict[str, str] = Field(default_factory=dict)
    state: Literal["ready", "cordoned", "draining"] = "ready"
    """As the cluster itself has it; draining: the node is about to go."""
    reason: str = ""  # why it does not take work, in the cluster's words
    used_by_others: str = ""
    """Amounts that the capacity above lacks, since other jobs of the cluster use them."""


class CapacityChanged(Event):
    """The cluster's inventory. Nodes not named are gone."""

    kind: Literal["capacity_changed"] = "capacity_changed"
    nodes: tuple[NodeInfo, ...]


class NodeChanged(Event):
    """Someone cordons, drains or uncordons a node."""

    kind: Literal["node_changed"] = "node_changed"
    node: str
    state: Literal["ready", "cordoned", "draining"]
    reason: str


class QueueChanged(Event):
    """Someone sets a queue's quota; a queue that nobody has named before is made."""

    kind: Literal["queue_changed"] = "queue_changed"
    quota: Quota


class QueueRemoved(Event):
    """Someone removes a queue that no run uses."""

    kind: Literal["queue_removed"] = "queue_removed"
    queue: str


class RunSetAside(Event):
    """A scheduling pass failed over a run: the others are scheduled without it."""

    kind: Literal["run_set_aside"] = "run_set_aside"
    run: str
    reason: str
    """The error, for people."""


class EventSetAside(Event):
    """The core failed twice over an event, which is left out of the state."""

    kind: Literal["event_set_aside"] = "event_set_aside"
    run: str | None
    """The run that the event was about; None: none."""
    event: str
    """Kind of the event."""
    body: dict[str, Any]
    """The event as JSON: the journal is where it can still be found."""
    reason: str
    """The error, for people."""


class SchedulingPassDue(Event):
    """The scheduler looks at all runs and nodes: something has changed since it last did.

    Told once for whatever has come together: at 10,000 nodes a pass costs more than 100 events.
    """

    kind: Literal["scheduling_pass_due"] = "scheduling_pass_due"


class SparesChanged(Event):
    """Someone says how many idle nodes newcomers leave to recoveries."""

    kind: Literal["spares_changed"] = "spares_changed"
    spares: Annotated[int, Field(ge=0)] | Literal["auto"]


class MaintenancePlanned(Event):
    """Someone plans a time in which nodes are not to be used."""

    kind: Literal["maintenance_planned"] = "maintenance_planned"
    nodes: tuple[str, ...]
    begins: dt.datetime
    ends: dt.datetime
    reason: str


class MaintenanceCancelled(Event):
    """Someone calls the planned maintenance of nodes off."""

    kind: Literal["maintenance_cancelled"] = "maintenance_cancelled"
    nodes: tuple[str, ...]
    reason: str = ""


class MaintenanceDue(Event):
    """A planned maintenance of a node begins, or is over."""

    kind: Literal["maintenance_due"] = "maintenance_due"
    node: str


class CheckpointPinned(Event):
    """Keep (or stop keeping) a checkpoint for ever."""

    kind: Literal["checkpoint_pinned"] = "checkpoint_pinned"
    run: str
    checkpoint: str
    pinned: bool = True


class CheckpointRemovalAsked(Event):
    """Someone wants a checkpoint deleted."""

    kind: Literal["checkpoint_removal_asked"] = "checkpoint_removal_asked"
    run: str
    checkpoint: str


class CheckpointVerificationAsked(Event):
    """Someone wants a checkpoint read back."""

    kind: Literal["checkpoint_verification_asked"] = "checkpoint_verification_asked"
    run: str
    checkpoint: str
    fault: str | None = None
    """For a run that has ended: the first fault that the server found; empty: there is none."""


CHECKPOINT_REQUESTS = (CheckpointPinned, CheckpointRemovalAsked, CheckpointVerificationAsked)
"""Requests that are possible after the run has ended."""


class IncidentChanged(Event):
    """Someone acknowledges, resolves or judges an incident."""

    kind: Literal["incident_changed"] = "incident_changed"
    incident: str
    acknowledge: bool = False
    state: IncidentState | None = None
    verdict: Literal["right", "wrong"] | None = None
    reason: str = ""


class TimerFired(Event):
    """A deadline of a run has passed."""

    kind: Literal["timer_fired"] = "timer_fired"
    run: str
    timer: Timer
    subject: str = ""
    """The worker or incident the deadline is about; empty for a timer of the run itself."""
    due: dt.datetime
    unheard: bool = False
    """The worker that the deadline is about was never heard of since this server leads."""


AnyEvent = Annotated[
    LeadershipBegan
    | RunSubmitted
    | RunCancelled
    | RunHeld
    | RunReleased
    | RestartAsked
    | RollbackAsked
    | WorkerJoined
    | WorkerLost
    | WorkerRegained
    | WorkerLeaving
    | WorkerStuck
    | RanksStarted
    | RankReady
    | RankRestored
    | RankExited
    | ShardWritten
    | SaveFailed
    | SaveResumed
    | StorageTrouble
    | ChangeAnnounced
    | EngineEvent
    | AttemptStopped
    | StacksCaptured
    | CheckpointChecked
    | CheckpointDeleted
    | CheckpointsFound
    | AnyGangEvent
    | StepReached
    | ProgressSeen
    | FindingRaised
    | CapacityChanged
    | NodeChanged
    | NodeFindingRaised
    | SchedulingPassDue
    | RunSetAside
    | EventSetAside
    | ReportUnreadable
    | AgentRefused
    | AgentAhead
    | AttemptCompared
    | LaunchRefused
    | AskDelivered
    | IncidentSilenced
    | SummaryDue
    | QueueChanged
    | QueueRemoved
    | SparesChanged
    | MaintenancePlanned
    | MaintenanceCancelled
    | MaintenanceDue
    | CheckEvent
    | CheckpointPinned
    | CheckpointRemovalAsked
    | CheckpointVerificationAsked
    | IncidentChanged
    | TimerFired,
    Field(discriminator="kind"),
]
EVENT: TypeAdapter[AnyEvent] = TypeAdapter(AnyEvent)  # reads events back from the journal
__all__ = [name for name in dir() if name[0].isupper()]
_ = WorkerEvent
