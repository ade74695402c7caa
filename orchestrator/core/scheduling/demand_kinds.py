"""Kinds of waiting runs: a pass asks each question once for all runs that are alike.

Thousands of runs wait with the same needs and the same rights. Even where no two of them are alike,
the facts of a kind are looked up once, and not for every rule of the pass.
"""

from __future__ import annotations

import dataclasses

from orchestrator.core.scheduling.free_resources import Pool, Shape, kinds_that_fit, shape_of
from orchestrator.core.scheduling.node_table import NodeTable
from orchestrator.core.scheduling.types import Demand
from orchestrator.core.scheduling.upper_bounds import Ceilings
from orchestrator.core.scheduling.victims import Victims


@dataclasses.dataclass(slots=True, kw_only=True)
class Kind:
    """Demands that differ at most in their size, their times, and the nodes that they hold."""

    number: int
    """Demands of one number may use and preempt the same; a queue with a quota has its own."""
    placement: int
    """Demands of one number may use the same nodes."""
    pool: Pool
    """Kinds of nodes that could take a worker if they were empty, also away ones."""
    most: int
    """Nodes of the largest gang that nodes and quota allow, if the run holds none yet."""
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
        self._pools: dict[Shape, Pool] = {}

    def of(self, demand: Demand) -> Kind:
        """The kind of a demand."""
        need = demand.need
        # Flat and of plain values, because it is hashed for every demand of every pass.
        key = (
            need.gpus_per_node,
            need.cpus_per_node,
            need.memory_per_node,
            demand.pack,
            demand.queue,
            demand.priority,
            demand.recovers,
            demand.may_preempt,
        )
        if (kind := self._found.get(key)) is None:
            kind = self._found[key] = self._make(demand)
        return kind

    def _make(self, demand: Demand) -> Kind:
        shape = shape_of(demand.need)
        if (pool := self._pools.get(shape)) is None:
            pool = self._pools[shape] = kinds_that_fit(self._table, shape)
        place = self._number((shape, demand.pack, demand.recovers))
        group = self._victims.group(demand.queue)
        return Kind(
            number=self._number((place, group, demand.priority, demand.may_preempt)),
            placement=place,
            pool=pool,
            most=self._ceilings.largest_gang(demand, pool),
        )

    def _number(self, key: tuple[object, ...]) -> int:
        return self._numbers.setdefault(key, len(self._numbers))
