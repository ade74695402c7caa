"""Kinds of waiting runs: a pass asks each question once for all runs that are alike.

Thousands of runs wait with the same needs and the same rights. Even where no two of them are alike,
the facts of a kind are looked up once, and not for every rule of the pass.
"""

from __future__ import annotations

import dataclasses

from orchestrator.core.scheduling.free_resources import Pool, kinds_that_fit, shape_of
from orchestrator.core.scheduling.node_table import NodeTable
from orchestrator.core.scheduling.types import Demand, accounted_gpus
from orchestrator.core.scheduling.upper_bounds import Ceilings
from orchestrator.core.scheduling.victims import Victims


@dataclasses.dataclass(slots=True)
class Kind:
    """Demands that differ at most in their size, their times, and the nodes that they hold."""

    number: int
    """Demands of one number may use and preempt the same; a queue with a quota has its own."""
    family: int
    """A number of demands as the first, but for their CPUs and memory."""
    placement: int
    """Demands of one number may use the same nodes."""
    pool: Pool
    """Kinds of nodes that could take a worker if they were empty, also away ones."""
    most: int
    """Nodes of the largest gang that nodes and quota allow, if the run holds none yet."""
    limited: bool
    """True if its queue has a quota."""
    wanted: bool = False
    """True if a run of this kind waits for nodes."""


class Kinds:
    """The kinds of the demands of one pass.

    Args:
        table: The nodes.
        ceilings: What nodes and quotas allow at most.
        victims: Whom a demand may preempt.
    """

    def __init__(self, table: NodeTable, ceilings: Ceilings, victims: Victims) -> None:
        self._table, self._ceilings, self._victims = table, ceilings, victims
        self._found: dict[tuple[object, ...], Kind] = {}
        self._numbers: dict[tuple[object, ...], int] = {}
        self._places: dict[tuple[object, ...], tuple[int, Pool, int]] = {}
        """Needs, level and recovery → number, pool, and nodes of the largest gang."""
        self._queues: dict[str, tuple[str, int | None]] = {}
        """Queue → group of those whose runs are alike, and GPUs that it may use at most."""

    def of(self, demand: Demand) -> Kind:
        """The kind of a demand."""
        need = demand.need
        # Flat and of plain values, because it is hashed for every demand of every pass.
        key = (
            need.gpus_per_node,
            need.cpus_per_node,
            need.memory_per_node,
            demand.pack,
            demand.recovers,
            demand.queue,
            demand.priority,
            demand.may_preempt,
        )
        if (kind := self._found.get(key)) is None:
            kind = self._found[key] = self._make(demand, key[:5])
        return kind

    def _make(self, demand: Demand, place: tuple[object, ...]) -> Kind:
        if (found := self._places.get(place)) is None:
            pool = kinds_that_fit(self._table, shape_of(demand.need))
            most = self._ceilings.most_nodes(demand, pool)
            found = self._places[place] = len(self._places), pool, most
        placement, pool, most = found
        if (queue := self._queues.get(demand.queue)) is None:
            rights = self._victims.group(demand.queue), self._ceilings.most_gpus(demand.queue)
            queue = self._queues[demand.queue] = rights
        group, gpus = queue
        if gpus is not None:
            most = min(most, gpus // accounted_gpus(demand.need))
        key = placement, group, demand.priority, demand.may_preempt
        number = self._numbers.setdefault(key, len(self._numbers))
        alike = ("family", place[0], *place[3:], group, demand.priority, demand.may_preempt)
        family = self._numbers.setdefault(alike, len(self._numbers))
        return Kind(number, family, placement, pool, most, bool(group))
