"""The holdings of all runs as columns, read once for all rules of a pass."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from orchestrator.core.scheduling.node_table import Indices, Mask, NodeTable
from orchestrator.core.scheduling.types import PRIORITY_RANK, Holding


class HoldingTable:
    """One row for each holding, and one for each of its workers. Immutable once built.

    Attributes:
        table: The nodes.
        holdings: The holdings by row.
        gpus, cpus, memory: By holding: what one of its workers takes.
        accounted: By holding: accounted GPUs of one worker.
        size: By holding: number of its workers, also those on nodes outside the table.
        rank: By holding: rank of its priority.
        place, of: By worker: node index and row of its holding; without nodes outside the table.
    """

    def __init__(self, table: NodeTable, holdings: Sequence[Holding]) -> None:
        self.table, self.holdings = table, tuple(holdings)
        needs = [holding.need for holding in holdings]
        self.gpus = np.array([need.gpus_per_node for need in needs], dtype=np.int64)
        self.cpus = np.array([need.cpus_per_node for need in needs], dtype=np.float64)
        self.memory = np.array([need.memory_per_node for need in needs], dtype=np.float64)
        self.accounted = np.maximum(self.gpus, 1)
        self.size = np.array([len(holding.nodes) for holding in holdings], dtype=np.intp)
        ranks = [PRIORITY_RANK[holding.priority] for holding in holdings]
        self.rank = np.array(ranks, dtype=np.intp)
        at = table.index.get
        place = np.array([at(n, -1) for h in holdings for n in h.nodes], dtype=np.intp)
        of = np.repeat(np.arange(len(self.holdings)), self.size)
        known = place >= 0
        self.place: Indices = place[known]
        self.of: Indices = of[known]

    @cached_property
    def leaving(self) -> Mask:
        """By holding: True if its nodes become free soon."""
        return np.array([holding.leaving for holding in self.holdings], dtype=np.bool_)

    @cached_property
    def staying(self) -> Mask:
        """By holding: True if its nodes can be won by an eviction alone."""
        stuck = np.array([holding.overdue for holding in self.holdings], dtype=np.bool_)
        mask: Mask = (self.size > 0) & ~self.leaving & ~stuck
        return mask

    def gpus_by_queue(self) -> dict[str, int]:
        """Accounted GPUs that the quota of each queue counts."""
        found: dict[str, int] = {}
        for holding in self.holdings:
            found[holding.queue] = found.get(holding.queue, 0) + holding.gpus
        return found

    def gpus_by_project(self) -> dict[str, int]:
        """Accounted GPUs that the runs of each project hold."""
        keys = [holding.project for holding in self.holdings]
        found = dict.fromkeys(keys, 0)
        for key, gpus in zip(keys, (self.accounted * self.size).tolist(), strict=True):
            found[key] += gpus
        return found
