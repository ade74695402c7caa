"""When workers leave their nodes, by the part of each node that they free.

Columns over all workers, sorted by node and end, so that one pass over arrays tells for any shape
when each node has room for it. Ends are estimates of the snapshot; an unknown end is infinite.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from jobs.spec import Resources
from orchestrator.core.scheduling.free_resources import FreeResources, shape_of
from orchestrator.core.scheduling.node_table import Indices, NodeTable
from orchestrator.core.scheduling.reservations import Amounts, amounts
from orchestrator.core.scheduling.types import Holding

Times = NDArray[np.float64]


class Departures:
    """The workers of all runs, by node and expected end.

    Args:
        table: The nodes.
        holdings: What each run holds. The list may grow; it is read anew when it has.
        now: The moment of the pass.
    """

    def __init__(self, table: NodeTable, holdings: Sequence[Holding], now: dt.datetime) -> None:
        self._table, self._holdings, self._now = table, holdings, now.timestamp()
        self._read = -1
        self._sort()

    def times(self, free: FreeResources, need: Resources) -> Times:
        """Unix time at which each node first has room for one more worker."""
        return self._room(free, need)[0]

    def freed(self, free: FreeResources, need: Resources) -> Amounts:
        """Resources that leave each node until it first has room for one more worker."""
        return self._room(free, need)[1]

    def empty_times(self, free: FreeResources) -> Times:
        """Unix time at which the last worker has left each node."""
        self._sort()
        until = np.full(len(self._table), self._now)
        np.maximum.at(until, self._places, self._ends)
        until[free.idle()] = self._now
        return self._with_away(until)

    def _sort(self) -> None:
        if self._read == len(self._holdings):
            return
        self._read = len(self._holdings)
        index = self._table.index
        # A shape and an end for each holding, and its number for each of its workers: most of the
        # work is then one operation for all.
        numbers, places = [], []
        for number, holding in enumerate(self._holdings):
            here = [index[node] for node in holding.nodes if node in index]
            places += here
            numbers += [number] * len(here)
        ends = np.array([_end(h, self._now) for h in self._holdings] or [0.0])
        needs = np.array([shape_of(h.need) for h in self._holdings] or [(0, 0, 0)], dtype=float)
        at, of = np.array(places, dtype=np.intp), np.array(numbers, dtype=np.intp)
        order = np.lexsort((ends[of], at))
        self._places: Indices = at[order]
        self._ends: Times = ends[of][order]
        self._needs: Amounts = needs[of][order]

    def _room(self, free: FreeResources, need: Resources) -> tuple[Times, Amounts]:
        self._sort()
        fits = free.fits(need)
        times = np.where(fits, self._now, math.inf)
        freed = np.zeros((len(self._table), 3))
        if len(self._places):
            sums = np.cumsum(self._needs, axis=0)
            first = np.r_[True, self._places[1:] != self._places[:-1]]
            starts = np.flatnonzero(first)
            before = sums[starts] - self._needs[starts]
            sums -= before[np.cumsum(first) - 1]
            now = np.column_stack([free.gpus, free.cpus, free.memory])[self._places]
            enough = (now + sums >= amounts(need)).all(axis=1) & ~fits[self._places]
            rows = np.flatnonzero(enough)
            places, at = np.unique(self._places[rows], return_index=True)
            times[places] = self._ends[rows[at]]
            freed[places] = sums[rows[at]]
        return self._with_away(times), freed

    def _with_away(self, times: Times) -> Times:
        """The times, with the return of nodes that are away."""
        away = self._table.away
        if away.any():
            times[away] = np.maximum(self._table.returns[away], self._now)
        return times


def _end(holding: Holding, now: float) -> float:
    return math.inf if holding.ends_at is None else max(holding.ends_at.timestamp(), now)
