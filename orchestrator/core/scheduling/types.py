"""What a scheduling pass looks at, and what it says. Data only; times are UTC.

The words are those of Kueue and Slurm where they have one: queue, nominal quota, cohort, borrowing,
reclaim, backfill, reservation.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Mapping, Sequence
from enum import StrEnum

from jobs.spec import Priority, Resources
from orchestrator.core.scheduling.node_table import NodeTable

PRIORITY_RANK = {Priority.CRITICAL: 0, Priority.HIGH: 1, Priority.NORMAL: 2, Priority.LOW: 3}
"""Smaller goes first."""


def accounted_gpus(need: Resources) -> int:
    """What one worker counts for in quotas, shares and costs: its GPUs, or else one."""
    return max(1, need.gpus_per_node)


class Pending(StrEnum):
    """Why a run waits."""

    NO_CAPACITY = "no_capacity"  # not enough free nodes that fit
    TOPOLOGY = "topology"  # enough free nodes, but not within one domain of the size asked for
    QUOTA = "quota"  # its queue's quota, and what it may borrow, are used up
    RESERVED = "reserved"  # the free nodes that fit are kept for a run ahead of it
    SPARES = "spares"  # the free nodes that fit are the pool of spares for recoveries
    MAINTENANCE = "maintenance"  # the free nodes that fit are maintained before it would end
    PREEMPTING = "preempting"  # others save and leave for it
    BEHIND = "behind"  # it might fit, but a run of its queue ahead of it does not yet
    TOO_LARGE = "too_large"  # more than the cluster (or its queue) has, even empty
    HELD = "held"  # a hold stops automation
    BACK_OFF = "back_off"  # waits before the next try
    WORKERS = "workers"  # has its nodes; its agents are coming up


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Nodes kept for a run that waits."""

    nodes: tuple[str, ...]
    until: dt.datetime | None = None
    """When the last of them is expected to be free; None: unknown. Who ends before may use them."""
    preempting: bool = False
    """Others were asked to leave for it: it is honoured against everybody."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What one run wants now."""

    run: str
    name: str
    need: Resources
    nodes: int
    """Nodes still missing, to start at all."""
    more: int = 0
    """Nodes it would like beyond that: up to an elastic run's maximum, and standbys."""
    queue: str = "default"
    project: str = "default"
    priority: Priority
    submitted_at: dt.datetime
    pack: str = "any"
    """The largest topology domain the gang may span; any: prefer small ones."""
    recovers: bool = False
    """It ran before, and does not fail again and again: it goes ahead of newcomers."""
    may_preempt: bool = True
    """False for a run in a crash loop: it may not keep evicting others."""
    keeps: tuple[str, ...] = ()
    """Nodes it has already: no second worker of a run on one node."""
    unwanted: tuple[str, ...] = ()
    """Of those, the ones it would rather leave: it avoids them. Only if there is elsewhere."""
    avoid: tuple[str, ...] = ()
    """Nodes to use only when nothing else fits."""
    ends_within: float | None = None
    """Seconds after which it is ended for certain (max_runtime); None: no limit."""
    claim: Claim | None = None
    """What an earlier pass kept for it."""

    @property
    def gpus(self) -> int:
        """GPUs of the missing nodes, as they are accounted."""
        return self.nodes * accounted_gpus(self.need)

    @property
    def gang(self) -> int:
        """Nodes it needs in all."""
        return self.nodes + len(self.keeps)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """What one run has."""

    run: str
    need: Resources
    nodes: tuple[str, ...]
    queue: str = "default"
    project: str = "default"
    priority: Priority
    ends_at: dt.datetime | None = None
    """When its nodes are expected to be free; None: unknown."""
    ends_within: float | None = None
    """Seconds after which it is ended for certain (max_runtime); None: no limit."""
    lost_gpu_seconds: float = 0.0
    """What stopping it now would cost: work since its last save, and the restart."""
    surplus: tuple[str, ...] = ()
    """Nodes it could go without: it is elastic and above its minimum."""
    wants: int = 0
    """More nodes it could use: growth of an elastic run, and standbys."""
    pack: str = "any"
    avoid: tuple[str, ...] = ()
    movable: bool = True
    """False: it may not be asked to leave now (held, just starting, or leaving already)."""
    leaving: bool = False
    """It was asked to leave, and its nodes will be free soon."""

    @property
    def gpus(self) -> int:
        """GPUs of all its nodes, as they are accounted."""
        return len(self.nodes) * accounted_gpus(self.need)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """How many GPUs a queue may use."""

    name: str
    gpus: int | None = None
    """Nominal quota; None: no limit."""
    cohort: str | None = None
    """Queues of one cohort lend each other what they do not use."""
    borrowing_limit: int | None = None
    """GPUs above nominal at most; None: whatever the cohort has."""
    lending_limit: int | None = None
    """GPUs of its own nominal that others may borrow at most; None: all that it does not use."""
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Share of a project within the queue; 1 where not named."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything a pass looks at."""

    rooms: NodeTable
    """The nodes that take work, as they would be with nothing on them."""
    holdings: Sequence[Holding] = ()
    demands: Sequence[Demand] = ()
    quotas: Sequence[Quota] = ()
    usage: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """GPU seconds that projects have used, decayed (:mod:`.share`)."""
    spares: int = 0
    """Idle nodes kept for recoveries."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Why a run was not placed."""

    run: str
    why: Pending
    place: int
    """Place in the queue, from 1."""
    missing: int
    """Nodes it waits for."""
    fitting: int
    """Nodes that would fit now."""
    behind: str | None = None
    """The run that blocks it, for `behind` and `reserved`."""
    starts_at: dt.datetime | None = None
    """When its nodes are expected to be free, if that is known."""
    detail: str = ""
    """The underlying cause, in words."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Eviction:
    """A run that is asked to save and leave nodes, for the sake of another."""

    run: str
    nodes: tuple[str, ...]
    by: str
    """The run that gets them."""
    why: str
    """priority, reclaim or order."""
    lost_gpu_seconds: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Who goes where, who waits for what, and who leaves."""

    placements: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    leaves: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    """Nodes that a placed run gives up: those it avoids, or all where its gang moves as a whole."""
    growth: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    """More nodes for runs that have theirs: elastic growth and standbys."""
    waits: dict[str, Wait] = dataclasses.field(default_factory=dict)
    claims: dict[str, Claim] = dataclasses.field(default_factory=dict)
    evictions: list[Eviction] = dataclasses.field(default_factory=list)

    def ahead(self, run: str) -> list[str]:
        """Runs that wait ahead of one, first first."""
        return [
            wait.run
            for wait in self.waits.values()
            if wait.place < self.waits[run].place and wait.why is not Pending.TOO_LARGE
        ]
