"""The entities that the core decides about. Frozen: a change is a new value put into the state.

Each class is one table of the run database (:mod:`orchestrator.database.models`). Times are UTC.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from babysit.wire import Tier
from jobs.events import RankStack
from jobs.spec import RunSpec
from monitors.failures import Failure
from monitors.types import Finding, Pace, Severity
from orchestrator.core.model.checking import NO_CHECKS, NOT_MEASURED, CheckPolicy, Measured
from orchestrator.core.model.decisions import Decision, Restart
from orchestrator.core.model.machine_record import Fault, Health
from orchestrator.core.model.records import Cordon, Past, Usage, Window
from orchestrator.core.model.states import (
    AttemptState,
    IncidentState,
    NodeState,
    RunState,
    Trust,
    WorkerState,
)
from orchestrator.core.model.time_ledger import Ledger
from orchestrator.core.model.vocabulary import IncidentKind, Remedy, Response, Timer, Timers
from orchestrator.core.scheduling.node_table import NodeCapacity
from orchestrator.core.scheduling.types import Claim, Pending, Quota


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Failures of one cause with one signature and no progress in between."""

    signature: str
    count: int
    best_step: int
    """The run's best step when it was last charged: beyond it, the budget is earned back."""
    nodes: tuple[str, ...] = ()
    """Nodes on which the signature struck, as far as they are known."""
    hosts: tuple[str, ...] = ()
    """The hosts of these nodes: several nodes of a local cluster are one host."""
    step: int | None = None
    """The last step before the newest of them; None: not known."""
    at_step: int = 0  # the newest of them that came in a row after this step


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Anomaly:
    """An onset that led to a rollback."""

    onset_step: int
    onset_batch: int
    count: int  # of anomalies that began here


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training job, from its submission to its end, over all of its attempts."""

    id: str
    name: str
    spec: RunSpec
    owner: str = ""
    bundle: str | None = None  # id of its code in the bundle store; None: nothing was uploaded
    submitted_at: dt.datetime
    state: RunState = RunState.QUEUED
    reason: str = ""
    """Why it is in this state, as a clause for people."""
    pending: Pending | None = None
    """Why it waits for nodes; None while it does not."""
    held_from: RunState | None = None
    attempt: int = 0
    """Number of the newest attempt."""
    workers_made: int = 0
    room: tuple[int, int] | None = None
    """An attempt, and how many checkpoints have room beside the next one; None: as `keep` says."""
    best_step: int = 0
    """Highest step that any attempt reached; the core hears of steps only now and then."""
    longest_save: float = 0.0
    """Seconds from the start of a save to the directory until a shard was written; the longest."""
    look_at_disk: bool = False
    """Reports may have been lost: an agent looks for checkpoints before the next attempt starts."""
    instrumented: bool = False
    """True once its ranks have called `babysit.init()`."""
    engine: str = ""  # that starts and restarts its processes, such as `ray`; empty: babysit does
    started_at: dt.datetime | None = None
    ended_at: dt.datetime | None = None
    decision: Decision | None = None
    budgets: Mapping[str, Budget] = dataclasses.field(default_factory=dict)
    anomalies: tuple[Anomaly, ...] = ()
    skip_batches: tuple[tuple[int, int], ...] = ()
    avoid: tuple[str, ...] = ()
    """Nodes that are used only when nothing else fits, the latest last."""
    claim: Claim | None = None
    """Nodes that the scheduler reserves for the run while it waits."""
    runtime_left: float | None = None
    """Seconds of max_runtime left when it lost its last node to the queue; None: see the timer."""
    first_step: int | None = None
    """The first step ever reported by a script that does not restore; None before that."""
    ended_pauses: tuple[EndedPause, ...] = ()
    """Pauses that were killed as hangs at their limit."""
    pace: Pace = dataclasses.field(default_factory=Pace)
    learned: str = ""
    """The monitors' knowledge: of pauses that ended by themselves, and of the loss (opaque)."""
    timers: Timers = dataclasses.field(default_factory=dict)
    """Deadlines; the controller fires TimerFired when one is due. See :meth:`due`."""
    ledger: Ledger

    def due(self, timer: Timer, subject: str = "") -> dt.datetime | None:
        """When a timer falls due; None while it is not set."""
        return self.timers.get(timer, {}).get(subject)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """The ranks of one worker in an attempt."""

    worker: str
    node: str
    ranks: tuple[int, ...]
    stopped: bool = False
    """True once it is confirmed that no process of the attempt is alive there."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RankFailure:
    """The death of one rank within an attempt."""

    rank: int
    node: str
    at: dt.datetime
    failure: Failure
    step: int = 0
    """The last step that it ended; 0: none is known."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Suspicion:
    """A silence of a live attempt that is being looked into."""

    since: dt.datetime
    """Last sign of progress."""
    finding: Finding
    """The finding of the monitor."""
    incident: str | None = None
    """The incident `slow`, once the ranks were looked at; None before."""
    sentence: str = ""
    """The result of the looks at the ranks, for people."""
    limit_seconds: float | None = None
    """Silence at which the run gets the remedy of a hang without proof; None before a look."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EndedPause:
    """A pause without proof against it that was ended by a restart."""

    place: str
    """Equal for the same pause; see `monitors.hang_verdict.Verdict.signature`."""
    times: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One start of a run's gang. At most one attempt of a run is alive."""

    run: str
    number: int
    state: AttemptState = AttemptState.STARTING
    seats: tuple[Seat, ...]
    world_size: int
    restart: Restart | None = None
    """None for the first attempt."""
    candidates: tuple[str, ...] = ()
    """Ids of the checkpoints offered to the ranks, in the order to try."""
    restored: str | None = None
    start_step: int = 0
    """Step from which it resumed; 0: the beginning."""
    milestone: int = 1
    """Next step of which the core is notified (StepReached)."""
    step: int = 0
    """Last step of which the core was notified."""
    first_step_at: dt.datetime | None = None
    started_at: dt.datetime
    grow_after: float = 600.0
    """Seconds that it trains before the run may grow; see `orchestrator.core.policy.elasticity`."""
    ended_at: dt.datetime | None = None
    started_ranks: frozenset[int] = frozenset()
    """Ranks whose processes were launched."""
    ready_ranks: frozenset[int] = frozenset()
    restored_ranks: frozenset[int] = frozenset()
    done_ranks: frozenset[int] = frozenset()
    failures: tuple[RankFailure, ...] = ()
    suspect: Suspicion | None = None
    """None while there is progress."""
    stacks: Annotated[tuple[RankStack, ...], Field(exclude=True)] = dataclasses.field(
        default=(), compare=False
    )
    """Looks at ranks that came in, in memory only: the journal has each of them once. With 8,000
    ranks, a row that was written again for each answer would be 11 GB of writes."""
    stacks_from: Annotated[frozenset[str], Field(exclude=True)] = dataclasses.field(
        default=frozenset(), compare=False
    )
    """Workers whose looks are in `stacks`."""
    answers: int = 0
    """Answers to the look under way. More than `stacks_from` has: a server ended meanwhile."""
    guessed: bool = False
    """True while its seats have ranks that nobody has confirmed: the database was older than it."""
    standbys_lost: int = 0
    """Agents without a seat that were lost in a row."""
    blocked_seconds: float = 0.0
    """Seconds in which saves blocked training, so far."""

    @property
    def id(self) -> str:
        """`<run>/<number>`."""
        return f"{self.run}/{self.number}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """The agent of one run on one node."""

    id: str
    run: str
    node: str
    state: WorkerState = WorkerState.LAUNCHING
    launched_at: dt.datetime
    joined_at: dt.datetime | None = None
    stopping_at: dt.datetime | None = None
    """When it was first stopped; None: it was not."""
    ended_at: dt.datetime | None = None
    address: str = ""
    port: int = 0
    reason: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A host with GPUs."""

    id: str
    state: NodeState = NodeState.READY
    reason: str = ""
    by: str = ""  # the actor that cordoned or drained the node
    gpus: int = 0
    cpus: float = 1
    memory: int = 0  # bytes; 0: not accounted
    host: str = ""  # the machine of which it is a part; empty: it is a machine of its own
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Topology: zone, spine, rack, nvlink."""
    used_by_others: str = ""  # what other jobs of the cluster use; the capacity is without it
    faults: tuple[Fault, ...] = ()
    """Newest last; at most 20 are kept."""
    since: dt.datetime | None = None  # when the cluster first reported it
    left_at: dt.datetime | None = None
    """When it last stopped to take work; None: it takes work, or never did."""
    maintenance: tuple[Window, ...] = ()  # windows that are not over, the earliest first
    cordon: Cordon | None = None  # while it is drained for a time: the one that applies afterwards
    absences: tuple[dt.datetime, ...] = ()
    """When the cluster or a check took it away lately, the newest last; its own trouble alone."""
    says: str = ""  # why the cluster itself keeps it away; empty: it does not
    measured: Measured = NOT_MEASURED
    health: Health = dataclasses.field(default_factory=Health)

    @property
    def machine(self) -> str:
        """The name of its host, or its own: faults of one machine are counted once."""
        return self.host or self.id

    @property
    def capacity(self) -> NodeCapacity:
        """The capacity of the node for the scheduler, as if no run had a part of it."""
        return NodeCapacity(
            node=self.id,
            gpus=self.gpus,
            cpus=self.cpus,
            memory=self.memory or None,
            labels=self.labels,
            window=self.maintenance[0].begins if self.maintenance else None,
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A saved state at a step."""

    id: str
    """`<run>/<attempt>/<tier>/<step>`."""
    run: str
    attempt: int
    """The attempt that wrote it."""
    step: int
    tier: Tier
    world_size: int
    path: str
    """Directory tier: the directory. Memory tier: empty (each worker has its own)."""
    trust: Trust = Trust.WRITING
    reason: str = ""
    batch: int = 0
    ranks: frozenset[int] = frozenset()
    """Ranks whose shards are recorded."""
    homes: Mapping[int, str] = dataclasses.field(default_factory=dict)
    """Memory tier: rank → worker that holds its shard."""
    checked_by: frozenset[str] = frozenset()
    """Workers that read their shards back and found them whole."""
    bytes: int = 0
    pinned: bool = False
    doubted: bool = False
    """Ranks died right after loading it, here and elsewhere: passed over until it is acquitted."""
    superseded: bool = False
    """Saved after the onset of an anomaly, or left behind by a rollback; its bytes may be sound."""
    deaths: int = 0  # attempts in a row that died right after loading it, before a new step
    keeper: str = ""  # the engine that alone loads and deletes it, such as `ray`; empty: babysit
    acquitted: bool = False
    """The older one died alike after this one was doubted: the deaths have another cause."""
    medium: str = ""
    """The source of the bytes that were read back: the medium (`cache dropped`), `memory`, or a
    `page cache` that could not be dropped; several, if its workers differ. Empty: not read yet."""
    created_at: dt.datetime
    deleted_at: dt.datetime | None = None
    """When its deletion was decided: it is never chosen again."""
    removed_at: dt.datetime | None = None
    """When its bytes were gone; None while it is *deleting*."""
    remover: str = ""
    """The worker with orders to delete its bytes; empty: none, or it could not."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """One thing that went wrong with a run or a node, and what was done about it."""

    id: str  # of the event that opened it
    run: str  # empty: it is about the node, or the nodes, of `subject`
    attempt: int
    kind: IncidentKind
    severity: Severity
    state: IncidentState = IncidentState.OPEN
    subject: str = ""  # `rank 1 on node-2`, a node, a checkpoint
    cascade: str = ""  # `key` of the incident that began a cascade over several runs; empty: none
    onset_step: int | None = None
    remedy: Remedy | None = None
    """None: nothing is to be done about it."""
    response: Response = Response.ACTED
    remedy_seconds: float | None = None
    """Seconds after which the remedy starts by itself: an `ask`, or the next agent."""
    remedy_at: dt.datetime | None = None
    """When the remedy of an `ask` starts by itself; None: people were not reached yet, or never."""
    remedy_step: int | None = None  # that an `ask` would load, as known when it was asked
    reason: str
    evidence: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    opened_at: dt.datetime
    resolved_at: dt.datetime | None = None
    acknowledged_by: str | None = None
    silenced_until: dt.datetime | None = None  # no ping before
    verdict: str | None = None  # of a person on the finding and its remedy: right or wrong


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Queue(Quota):
    """A queue of runs: its quota and the history of its last runs."""

    history: tuple[Past, ...] = ()
    """Newest last; at most `history.KEPT` are kept."""
    removed: bool = False
    """True: it is neither in the state nor among the store's queues."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Facts about the whole cluster. The database has one row."""

    id: str = "fleet"
    hold: str | None = None  # why all automation is held; None: it is not
    hold_by: str = ""
    summarised: str = ""  # newest day with a daily summary, such as 2026-01-31; empty: none
    spares: int | Literal["auto"] = 0
    """Idle nodes that only recoveries may use; auto: from the measured failure rate."""
    usage: Mapping[str, Usage] = dataclasses.field(default_factory=dict)
    """By project: usage of workers that have ended, decayed."""
    restored_at: dt.datetime | None = None  # when a backup last replaced the database
    checks: CheckPolicy = NO_CHECKS  # as the server that leads has it set


Entity = Run | Attempt | Worker | Node | Checkpoint | Incident | Queue | Fleet
