"""Input and output of a scheduling pass. Data only; times are UTC, durations are seconds.

The terms are those of Kueue and Slurm where these have one: queue, nominal quota, cohort,
borrowing, reclaim, backfill, reservation.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from jobs.spec import Priority, Resources
from orchestrator.core.scheduling.node_table import NodeTable

PRIORITY_RANK = {Priority.CRITICAL: 0, Priority.HIGH: 1, Priority.NORMAL: 2, Priority.LOW: 3}
"""Rank of each priority; the smaller rank goes first."""


def accounted_gpus(need: Resources) -> int:
    """GPUs that one worker counts for in quotas, shares and costs; 1 if it uses none."""
    return need.gpus_per_node or 1


class Pending(StrEnum):
    """The reason why a run waits."""

    NO_CAPACITY = "no_capacity"  # not enough free nodes that fit
    TOPOLOGY = "topology"  # enough free nodes, but not within one domain of the requested level
    QUOTA = "quota"  # the quota of its queue, including borrowing, is used up
    RESERVED = "reserved"  # the free nodes that fit are reserved for a run ahead of it
    SPARES = "spares"  # the free nodes that fit are the pool of spares for recoveries
    MAINTENANCE = "maintenance"  # maintenance of the free nodes begins before the run would end
    PREEMPTING = "preempting"  # preempted runs save and stop to make way for it
    BEHIND = "behind"  # an earlier run of its queue or cohort waits for quota
    TOO_LARGE = "too_large"  # larger than the empty cluster, or than the quota of its queue
    HELD = "held"  # an operator or the circuit breaker has put it on hold
    BACK_OFF = "back_off"  # waits for the back-off time before the next attempt
    WORKERS = "workers"  # has its nodes; its agents are starting


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Nodes reserved for a waiting run, carried from pass to pass."""

    nodes: tuple[str, ...]
    until: dt.datetime | None = None
    """When the last of the nodes is expected to be free; None: unknown.

    Runs that end before this time may use the nodes meanwhile; with None, runs of up to an hour
    (`backfill.UNKNOWN_SECONDS`). A preempting claim lends nothing.
    """
    preempting: bool = False
    """True if runs were preempted for these nodes: then the claim precedes every other demand."""
    since: dt.datetime | None = None
    """When the run began to wait with a claim; None: in this pass."""
    promised: dt.datetime | None = None
    """The first start that was known while it waited; None: none was known yet."""
    lost_at: dt.datetime | None = None
    """When the run lost its reservation without a start; None: it did not."""
    lost_nodes: int = 0
    """Number of nodes of the lost reservation."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """The resources that one run requests now."""

    run: str
    name: str
    need: Resources
    nodes: int
    """Nodes still missing for the run to start at all; 0: it only wants to leave `unwanted`."""
    more: int = 0
    """Optional further nodes: up to the maximum of an elastic run, plus standbys."""
    queue: str = "default"
    project: str = "default"
    priority: Priority
    submitted_at: dt.datetime
    pack: str = "any"
    """The largest topology level of which the gang may span one domain; any: prefer small ones."""
    recovers: bool = False
    """True if the run ran before and makes progress: it goes ahead of newcomers."""
    may_preempt: bool = True
    """False for a run in a crash loop, which must not preempt others again and again."""
    keeps: tuple[str, ...] = ()
    """Nodes that the run already holds; a run never gets two workers on one node."""
    unwanted: tuple[str, ...] = ()
    """Nodes of `keeps` that the run avoids and leaves if other nodes are available."""
    avoid: tuple[str, ...] = ()
    """Nodes to use only if nothing else fits."""
    ends_within: float | None = None
    """Seconds until the run is stopped at the latest (`max_runtime`); None: no limit."""
    claim: Claim | None = None
    """The reservation from an earlier pass; None: none."""
    waits_since: dt.datetime | None = None
    """Since when it has waited for nodes this time; None: since its submission."""

    @property
    def gpus(self) -> int:
        """Accounted GPUs of the missing nodes."""
        return self.nodes * (self.need.gpus_per_node or 1)  # asked for every run of every pass

    @property
    def reserved(self) -> bool:
        """True if the run has a reservation from an earlier pass."""
        return self.claim is not None and bool(self.claim.nodes)

    @property
    def gang(self) -> int:
        """Nodes of the complete gang: held and missing."""
        return self.nodes + len(self.keeps)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """The nodes that one run holds. A run that leaves some of its nodes has two holdings."""

    run: str
    need: Resources
    nodes: tuple[str, ...]
    queue: str = "default"
    project: str = "default"
    priority: Priority
    ends_at: dt.datetime | None = None
    """When the nodes are expected to be free; None: unknown."""
    ends_within: float | None = None
    """Seconds until the run is stopped at the latest (`max_runtime`); None: no limit."""
    lost_gpu_seconds: float = 0.0
    """Cost of preempting it now, in GPU seconds: work since the last save, and the restart."""
    surplus: tuple[str, ...] = ()
    """Nodes above the minimum of an elastic run, and standbys; preempted before the rest."""
    wants: int = 0
    """Further nodes that the run could use: growth of an elastic run, and standbys."""
    pack: str = "any"
    avoid: tuple[str, ...] = ()
    movable: bool = True
    """False: preemption must not touch it now (on hold, deciding, or leaving already)."""
    safe_until: dt.datetime | None = None
    """Until then no eviction by priority or quota: it has been evicted and only just goes on."""
    leaving: bool = False
    """True if these nodes become free soon: the run was preempted or is stopping."""
    overdue: bool = False
    """True if the run should have left these nodes long ago, since its agents or hosts hang.

    No pass counts on them, and an eviction, which is one more order to leave, would win nothing.
    """
    overdue_at: dt.datetime | None = None
    """When the first of these nodes will be `overdue`; None: the run does not leave them."""
    missing: int = 0
    """Nodes that a recovery will ask for again, beside these: its queue's quota counts them, so
    that nobody gets its share meanwhile. Negative: that number of these nodes is counted there."""

    @property
    def gpus(self) -> int:
        """Accounted GPUs that its queue's quota counts."""
        return (len(self.nodes) + self.missing) * accounted_gpus(self.need)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """GPUs that the runs of one queue may use."""

    name: str
    gpus: int | None = None
    """Nominal quota in GPUs; None: no limit."""
    cohort: str | None = None
    """Queues of one cohort lend each other unused quota; None: no borrowing."""
    borrowing_limit: int | None = None
    """Maximum GPUs above nominal; None: all that the cohort can lend."""
    lending_limit: int | None = None
    """Maximum GPUs of the nominal quota that others may borrow; None: all that is unused."""
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Fair-share weight by project within the queue; absent: 1."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The complete input of one pass."""

    table: NodeTable
    """The schedulable nodes with their total resources, regardless of workers."""
    holdings: Sequence[Holding] = ()
    demands: Sequence[Demand] = ()
    quotas: Sequence[Quota] = ()
    usage: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Decayed GPU seconds by project (:mod:`.fair_share`); absent: none."""
    spares: int = 0
    """Number of idle nodes reserved for recoveries."""
    grace_seconds: float = 30.0
    """Seconds that a preempted run has to save and leave its nodes."""


class Wait(NamedTuple):
    """Why a run was not placed. A tuple, because a pass makes thousands of them."""

    run: str
    why: Pending
    place: int
    """Position in the queue, from 1."""
    missing: int
    """Number of nodes that the run waits for."""
    fitting: int
    """Number of nodes that it could use now."""
    behind: str | None = None
    """The run that blocks this one, for `behind` and `reserved`; otherwise None."""
    starts_at: dt.datetime | None = None
    """When its nodes are expected to be free; None: unknown."""
    detail: str = ""
    """The underlying cause in words; may be empty."""
    recheck_at: dt.datetime | None = None
    """When time alone may change the decision, so that a pass should look again; None: never."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Eviction:
    """A run that must save and release nodes because another run needs them."""

    run: str
    nodes: tuple[str, ...]
    by: str
    """The run that gets the nodes."""
    why: str
    """The rule that allows it: priority, surplus, reclaim or order (:mod:`.preemption`)."""
    lost_gpu_seconds: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The result of a pass: placements, waits, reservations and preemptions."""

    placements: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    leaves: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    """Nodes that a placed run releases: avoided nodes, or all when the whole gang moves."""
    growth: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    """Further nodes for runs that already have theirs: elastic growth and standbys."""
    waits: dict[str, Wait] = dataclasses.field(default_factory=dict)
    claims: dict[str, Claim] = dataclasses.field(default_factory=dict)
    evictions: list[Eviction] = dataclasses.field(default_factory=list)
    unfinished: set[str] = dataclasses.field(default_factory=set)
    """Runs for which the pass stopped short: the next pass should follow at once."""

    def ahead(self, run: str) -> list[str]:
        """Runs that wait ahead of `run`, in queue order.

        Raises:
            KeyError: The run does not wait.
        """
        return [
            wait.run
            for wait in self.waits.values()
            if wait.place < self.waits[run].place and wait.why is not Pending.TOO_LARGE
        ]


def held_by(demand: Demand, nodes: tuple[str, ...], now: dt.datetime) -> Holding:
    """The holding of a demand once it is placed."""
    within = demand.ends_within
    return Holding(
        run=demand.run,
        need=demand.need,
        nodes=(*demand.keeps, *nodes),
        queue=demand.queue,
        project=demand.project,
        priority=demand.priority,
        ends_at=None if within is None else now + dt.timedelta(seconds=within),
        ends_within=within,
        wants=demand.more,
        pack=demand.pack,
        avoid=demand.avoid,
    )
