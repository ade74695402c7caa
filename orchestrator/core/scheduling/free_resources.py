"""What is free, node by node, while a pass places one gang after another."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from jobs.spec import Resources
from orchestrator.core.scheduling.node_table import Indices, Mask, NodeTable

Shape = tuple[int, float, int]
"""GPUs, CPUs and bytes of one worker."""


def shape_of(need: Resources) -> Shape:
    """The shape of one worker."""
    return need.gpus_per_node, need.cpus_per_node, need.memory_per_node


class FreeResources:
    """Free resources of every node.

    Attributes:
        rooms: The nodes.
        tenants: How many workers are on each.
    """

    def __init__(self, rooms: NodeTable) -> None:
        self.rooms = rooms
        self.gpus, self.cpus = rooms.gpus.copy(), rooms.cpus.copy()
        self.memory = rooms.memory.copy()
        self.tenants = np.zeros(len(rooms), dtype=np.int64)

    def copy(self) -> FreeResources:
        """Another board, to try things on."""
        other = FreeResources(self.rooms)
        for name in ("gpus", "cpus", "memory", "tenants"):
            setattr(other, name, getattr(self, name).copy())
        return other

    def seat(self, workers: Iterable[tuple[str, Resources]]) -> None:
        """Put workers on nodes, each with what it needs; nodes that take no work are left out."""
        index = self.rooms.index
        here = [(index[node], *shape_of(need)) for node, need in workers if node in index]
        if here:
            columns = zip(*here, strict=True)
            places = np.fromiter(next(columns), dtype=np.intp, count=len(here))
            for free in (self.gpus, self.cpus, self.memory):
                np.subtract.at(free, places, np.array(next(columns), dtype=free.dtype))
            np.add.at(self.tenants, places, 1)

    def take(self, places: Indices, need: Resources) -> None:
        """Put one worker on each of these nodes."""
        self._add(places, need, -1)

    def give(self, places: Indices, need: Resources) -> None:
        """Take one worker off each of these nodes."""
        self._add(places, need, 1)

    def _add(self, places: Indices, need: Resources, sign: int) -> None:
        gpus, cpus, memory = shape_of(need)
        self.gpus[places] += sign * gpus
        self.cpus[places] += sign * cpus
        self.memory[places] += sign * memory
        self.tenants[places] -= sign

    def fits(self, need: Resources) -> Mask:
        """Nodes that have room for one worker."""
        return _at_least(self.gpus, self.cpus, self.memory, need)

    def idle(self) -> Mask:
        """Nodes with nothing on them."""
        mask: Mask = self.tenants == 0
        return mask

    def tightest_first(self, avoid: Iterable[str] = ()) -> NDArray[np.intp]:
        """Rank of each node: the fullest first, then by name; those to be avoided last."""
        last = np.zeros(len(self.rooms), dtype=np.int8)
        last[self.rooms.places(avoid)] = 1
        ranks = np.empty(len(self.rooms), dtype=np.intp)
        ranks[np.lexsort((self.cpus, self.gpus, last))] = np.arange(len(self.rooms))
        return ranks


def could_fit(rooms: NodeTable, need: Resources) -> Mask:
    """Nodes that have room for one worker when nothing is on them."""
    return _at_least(rooms.gpus, rooms.cpus, rooms.memory, need)


def _at_least(
    gpus: NDArray[np.int64], cpus: NDArray[np.float64], memory: NDArray[np.float64], need: Resources
) -> Mask:
    mask: Mask = (
        (gpus >= need.gpus_per_node)
        & (cpus >= need.cpus_per_node)
        & (memory >= need.memory_per_node)
    )
    return mask
