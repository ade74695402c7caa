"""One scheduling pass: gangs onto free nodes, in order, all or nothing.

The order is: runs that already had nodes (a recovery must not wait behind newcomers), then
priority, then who came first. The first gang that does not fit blocks those behind it, so that a
large gang is never starved by small ones; but not one that the cluster, as it is now, could never
hold: nothing that ends would make it fit.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterable, Sequence
from enum import StrEnum

from jobs.spec import Priority, Resources

_RANK = {Priority.CRITICAL: 0, Priority.HIGH: 1, Priority.NORMAL: 2, Priority.LOW: 3}


class Pending(StrEnum):
    """Why a run waits."""

    NO_CAPACITY = "no_capacity"  # not enough free nodes that fit
    BEHIND = "behind"  # it might fit, but a run ahead of it does not yet
    TOO_LARGE = "too_large"  # more than the cluster has, even empty
    HELD = "held"  # a hold stops automation
    BACK_OFF = "back_off"  # waits before the next try
    WORKERS = "workers"  # has its nodes; its agents are coming up


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Free:
    """What is left on one node that takes work."""

    node: str
    gpus: int
    cpus: float
    memory: int | None
    """Bytes; None: not accounted."""
    empty: bool
    """Nothing runs there."""

    def fits(self, need: Resources) -> bool:
        """Whether one worker of this shape fits."""
        return (
            self.gpus >= need.gpus_per_node
            and self.cpus >= need.cpus_per_node
            and (self.memory is None or self.memory >= need.memory_per_node)
        )

    def take(self, need: Resources) -> Free:
        """What is left after placing one worker."""
        return dataclasses.replace(
            self,
            gpus=self.gpus - need.gpus_per_node,
            cpus=self.cpus - need.cpus_per_node,
            memory=None if self.memory is None else self.memory - need.memory_per_node,
            empty=False,
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What one run wants now."""

    run: str
    name: str
    need: Resources
    nodes: int
    """Nodes still missing."""
    had_nodes: bool
    """It ran before: a recovery."""
    priority: Priority
    submitted_at: dt.datetime
    keeps: tuple[str, ...] = ()
    """Nodes it has already: no second worker of a run on one node."""
    avoid: tuple[str, ...] = ()
    """Nodes to use only when nothing else fits."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything a pass looks at."""

    free: Sequence[Free]
    """What is left."""
    rooms: Sequence[Free]
    """The same nodes, as they would be with nothing on them."""
    demands: Sequence[Demand]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Why a run was not placed."""

    run: str
    why: Pending
    place: int
    """Place in the queue, from 1."""
    fitting: int
    """Nodes that would fit now."""
    behind: str | None = None
    """The run that blocks it, for `behind`."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Who goes where, and who waits for what."""

    placements: dict[str, tuple[str, ...]]
    waits: dict[str, Wait]

    def ahead(self, run: str) -> list[str]:
        """Runs that wait ahead of one, first first."""
        return [
            wait.run
            for wait in self.waits.values()
            if wait.place < self.waits[run].place and wait.why is not Pending.TOO_LARGE
        ]


def order(demand: Demand) -> tuple[bool, int, dt.datetime, str]:
    """Sort key: recoveries, then priority, then age."""
    return (not demand.had_nodes, _RANK[demand.priority], demand.submitted_at, demand.run)


def plan(snapshot: Snapshot, now: dt.datetime) -> Plan:  # noqa: ARG001 (backfill will look at the time)
    """Place what can be placed, in order; say of the rest why it waits."""
    free = {entry.node: entry for entry in snapshot.free}
    rooms, left = _Counts(snapshot.rooms), _Counts(())
    placements: dict[str, tuple[str, ...]] = {}
    waits: dict[str, Wait] = {}
    blocked: Demand | None = None
    place = 1
    for demand in sorted(snapshot.demands, key=order):
        if blocked is None:
            fitting = _fitting(free, demand)
            if len(fitting) >= demand.nodes:
                chosen = tuple(fitting[: demand.nodes])
                placements[demand.run] = chosen
                free |= {node: free[node].take(demand.need) for node in chosen}
                continue
        fits = len(fitting) if blocked is None else left.fitting(demand)
        why = _why(rooms.fitting(demand), fits, demand, blocked)
        waits[demand.run] = Wait(
            run=demand.run,
            why=why,
            place=place,
            fitting=fits,
            behind=blocked.run if blocked else None,
        )
        if why is not Pending.TOO_LARGE:
            place += 1
            if blocked is None:  # nothing more is placed: what is left stays as it is
                blocked, left = demand, _Counts(free.values())
    return Plan(placements=placements, waits=waits)


def _why(rooms: int, fits: int, demand: Demand, blocked: Demand | None) -> Pending:
    if rooms < demand.nodes:
        return Pending.TOO_LARGE
    return Pending.BEHIND if blocked and fits >= demand.nodes else Pending.NO_CAPACITY


class _Counts:
    """How many nodes a worker fits on, counted once for each shape of worker."""

    def __init__(self, nodes: Iterable[Free]) -> None:
        self._nodes = {entry.node: entry for entry in nodes}
        self._fitting: dict[tuple[float, float, float], int] = {}

    def fitting(self, demand: Demand) -> int:
        """Nodes that the run does not have yet."""
        need = demand.need
        shape = need.gpus_per_node, need.cpus_per_node, need.memory_per_node
        if shape not in self._fitting:
            self._fitting[shape] = sum(entry.fits(need) for entry in self._nodes.values())
        own = (self._nodes[node] for node in demand.keeps if node in self._nodes)
        return self._fitting[shape] - sum(entry.fits(need) for entry in own)


def _fitting(free: dict[str, Free], demand: Demand) -> list[str]:
    """Nodes that fit, best first.

    Not avoided, then the fullest (so that empty nodes stay whole), then by name.
    """
    candidates = [
        entry
        for entry in free.values()
        if entry.node not in demand.keeps and entry.fits(demand.need)
    ]
    candidates.sort(key=lambda e: (e.node in demand.avoid, e.gpus, e.cpus, e.node))
    return [entry.node for entry in candidates]
