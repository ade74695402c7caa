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
    """Of one pool, a number of demands as the first, but for their CPUs and memory."""
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
        self._most: dict[tuple[object, ...], int] = {}
        """Pool, level and recovery → nodes of the largest gang."""
        self._rights: dict[tuple[object, ...], tuple[int, bool, int | None]] = {}
        """Queue, priority and the right to preempt → number of all that are alike, True if the
        queue has a quota, and GPUs that it may use at most."""

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
            kind = self._found[key] = self._make(demand, key)
        return kind

    # Where no two runs are alike, this is most of a pass: each part is looked up by itself.

    def _make(self, demand: Demand, key: tuple[object, ...]) -> Kind:
        if (found := self._places.get(key[:5])) is None:
            found = self._places[key[:5]] = self._place(demand)
        placement, pool, most = found
        if (right := self._rights.get(key[5:])) is None:
            right = self._rights[key[5:]] = self._right(demand)
        rights, limited, gpus = right
        if gpus is not None:
            most = min(most, gpus // accounted_gpus(demand.need))
        numbers = self._numbers
        number = numbers.setdefault((placement, rights), len(numbers))
        family = numbers.setdefault((pool, key[0], key[3], key[4], rights), len(numbers))
        return Kind(number, family, placement, pool, most, limited)

    def _place(self, demand: Demand) -> tuple[int, Pool, int]:
        pool = kinds_that_fit(self._table, shape_of(demand.need))
        key = pool, demand.pack, demand.recovers
        if (most := self._most.get(key)) is None:
            most = self._most[key] = self._ceilings.most_nodes(demand, pool)
        return len(self._places), pool, most

    def _right(self, demand: Demand) -> tuple[int, bool, int | None]:
        group = self._victims.group(demand.queue)
        alike = "right", group, demand.priority, demand.may_preempt
        number = self._numbers.setdefault(alike, len(self._numbers))
        return number, bool(group), self._ceilings.most_gpus(demand.queue)
