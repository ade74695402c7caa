"""Free resources of every node while a pass places one gang after another."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from jobs.spec import Resources
from orchestrator.core.scheduling.holding_table import HoldingTable
from orchestrator.core.scheduling.node_table import Indices, Mask, NodeTable

Shape = tuple[int, float, int]
"""GPUs, CPUs and bytes of memory of one worker."""
Pool = tuple[bool, ...]
"""For each kind of node, True if an empty one has capacity for a worker."""

_NEVER = -(1 << 40)
"""Free GPUs of a node that is away."""


def shape_of(need: Resources) -> Shape:
    """The GPUs, CPUs and bytes that one worker needs."""
    return need.gpus_per_node, need.cpus_per_node, need.memory_per_node


class FreeResources:
    """Free resources of every node; mutable, and copied for hypothetical placements.

    Who changes the columns of a copy does so before the first question.

    Values may become negative where a node was shrunk below what its workers use. A node that is
    away has no free resources, whatever leaves it.

    Attributes:
        table: The nodes.
        gpus, cpus, memory: Free GPUs, CPUs and bytes by node index.
        tenants: Number of workers by node index.
        changes: Number of changes so far; what depends on free resources holds until the next one.
    """

    gpus: NDArray[np.int64]
    cpus: NDArray[np.float64]
    memory: NDArray[np.float64]
    tenants: NDArray[np.int64]

    def __init__(self, table: NodeTable, like: FreeResources | None = None) -> None:
        self.table = table
        self.changes = 0
        self._with_gpus: dict[int, Indices] = {}
        """GPUs → nodes with as many free; few on a busy cluster. Emptied by every change."""
        if like is not None:
            self.gpus, self.cpus = like.gpus.copy(), like.cpus.copy()
            self.memory, self.tenants = like.memory.copy(), like.tenants.copy()
            return
        self.gpus, self.cpus = table.gpus.copy(), table.cpus.copy()
        self.memory = table.memory.copy()
        self.tenants = np.zeros(len(table), dtype=np.int64)
        self.gpus[table.away] = _NEVER
        self.cpus[table.away] = self.memory[table.away] = -np.inf
        self.tenants[table.away] = 1  # not idle

    def copy(self) -> FreeResources:
        """An independent copy for a hypothetical placement."""
        return FreeResources(self.table, self)

    def place_workers(self, held: HoldingTable) -> None:
        """Subtract what the workers of all runs take."""
        self._changed()
        for column, need in (
            (self.gpus, held.gpus),
            (self.cpus, held.cpus),
            (self.memory, held.memory),
        ):
            np.subtract.at(column, held.place, need[held.of])
        np.add.at(self.tenants, held.place, 1)

    def take(self, places: Indices, need: Resources) -> None:
        """Place one worker on each of these nodes. The caller has checked that it fits."""
        self._add(places, need, -1)

    def give(self, places: Indices, need: Resources) -> None:
        """Remove one worker from each of these nodes."""
        self._add(places, need, 1)

    def _changed(self) -> None:
        self._with_gpus.clear()
        self.changes += 1

    def _add(self, places: Indices, need: Resources, sign: int) -> None:
        self._changed()
        gpus, cpus, memory = shape_of(need)
        self.gpus[places] += sign * gpus
        self.cpus[places] += sign * cpus
        self.memory[places] += sign * memory
        self.tenants[places] -= sign

    def fits(self, need: Resources) -> Mask:
        """Nodes with capacity for one more worker."""
        places = self._nodes_with(need.gpus_per_node)
        mask = np.zeros(len(self.table), dtype=np.bool_)
        if len(places):
            mask[places] = (self.cpus[places] >= need.cpus_per_node) & (
                self.memory[places] >= need.memory_per_node
            )
        return mask

    def full_for(self, need: Resources) -> bool:
        """True if no node has that many GPUs free: then none fits. A look-up, mostly."""
        return not len(self._nodes_with(need.gpus_per_node))

    def _nodes_with(self, gpus: int) -> Indices:
        if (places := self._with_gpus.get(gpus)) is None:
            places = self._with_gpus[gpus] = np.flatnonzero(self.gpus >= gpus)
        return places

    def idle(self) -> Mask:
        """Nodes without any worker."""
        mask: Mask = self.tenants == 0
        return mask

    def tightest_first(self, avoid: Iterable[str] = ()) -> NDArray[np.intp]:
        """Rank of each node: by fewest free GPUs, then CPUs, then name; avoided nodes last."""
        last = np.zeros(len(self.table), dtype=np.int8)
        last[self.table.places(avoid)] = 1
        ranks = np.empty(len(self.table), dtype=np.intp)
        ranks[np.lexsort((self.cpus, self.gpus, last))] = np.arange(len(self.table))
        return ranks


def could_fit(table: NodeTable, need: Resources) -> Mask:
    """Nodes with capacity for one worker when no other worker is on them."""
    fits = np.array(kinds_that_fit(table, shape_of(need)), dtype=np.bool_)
    mask: Mask = fits[table.kind_of] if len(fits) else fits
    return mask


def kinds_that_fit(table: NodeTable, shape: Shape) -> Pool:
    """The pool of a worker: the kinds of node of a table that could take it."""
    gpus, cpus, memory = shape
    return tuple([g >= gpus and c >= cpus and m >= memory for g, c, m in table.kinds])


def count_nodes(mask: Mask) -> int:
    """Number of nodes that are set; some ten times as fast as their sum."""
    return int(np.count_nonzero(mask))
