"""When workers leave their nodes, by the part of each node that they free.

Columns over all workers, sorted by node and end, so that one pass over arrays tells for any shape
when each node has room for it. Ends are estimates of the snapshot; an unknown end is infinite.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from jobs.spec import Resources
from orchestrator.core.scheduling.free_resources import FreeResources, Shape, shape_of
from orchestrator.core.scheduling.holding_table import HoldingTable
from orchestrator.core.scheduling.node_table import Indices
from orchestrator.core.scheduling.reservations import Amounts, amounts
from orchestrator.core.scheduling.types import Holding

Times = NDArray[np.float64]


class Departures:
    """The workers of all runs, by node and expected end.

    Args:
        held: The holdings at the beginning of the pass.
        holdings: The same, and those of runs that the pass has placed since; may grow.
        now: The moment of the pass.
    """

    def __init__(self, held: HoldingTable, holdings: Sequence[Holding], now: dt.datetime) -> None:
        self._held, self._table = held, held.table
        self._holdings, self._now = holdings, now.timestamp()
        self._read = -1
        self._rooms: dict[Shape, tuple[Times, Amounts]] = {}
        """Answers by shape, as long as nothing has changed."""
        self._changes = -1

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
        self._rooms.clear()
        held = self._held
        # Those of this pass are few: one table is made for them, and appended.
        new = HoldingTable(self._table, self._holdings[len(held.holdings) :])
        ends = np.concatenate([self._ends_before, self._ends_of(new)])
        needs = np.concatenate([_needs(held), _needs(new)])
        at = np.concatenate([held.place, new.place])
        of = np.concatenate([held.of, new.of + len(held.holdings)])
        order = np.lexsort((ends[of], at))
        self._places: Indices = at[order]
        self._ends: Times = ends[of][order]
        own = needs[of][order]
        self._first = np.r_[True, self._places[1:] != self._places[:-1]][: len(order)]
        starts = np.flatnonzero(self._first)
        sums = np.cumsum(own, axis=0)
        before = sums[starts] - own[starts]
        self._sums: Amounts = sums - before[np.cumsum(self._first) - 1]
        """Resources that this worker and those that leave the node before it free together."""

    @cached_property
    def _ends_before(self) -> Times:
        return self._ends_of(self._held)

    def _ends_of(self, held: HoldingTable) -> Times:
        return np.array([_end(each, self._now) for each in held.holdings], dtype=np.float64)

    def _room(self, free: FreeResources, need: Resources) -> tuple[Times, Amounts]:
        self._sort()
        if self._changes != free.changes:
            self._rooms.clear()
            self._changes = free.changes
        shape = shape_of(need)
        if shape not in self._rooms:
            self._rooms[shape] = self._find_room(free, need)
        return self._rooms[shape]

    def _find_room(self, free: FreeResources, need: Resources) -> tuple[Times, Amounts]:
        fits = free.fits(need)
        times = np.where(fits, self._now, math.inf)
        freed = np.zeros((len(self._table), 3))
        if len(self._places):
            now = np.column_stack([free.gpus, free.cpus, free.memory])[self._places]
            enough = (now + self._sums >= amounts(need)).all(axis=1) & ~fits[self._places]
            rows = np.flatnonzero(enough)
            places = self._places[rows]  # in order: of each node, its first worker counts
            first = np.r_[True, places[1:] != places[:-1]][: len(places)]
            times[places[first]] = self._ends[rows[first]]
            freed[places[first]] = self._sums[rows[first]]
        return self._with_away(times), freed

    def _with_away(self, times: Times) -> Times:
        """The times, with the return of nodes that are away."""
        away = self._table.away
        if away.any():
            times[away] = np.maximum(self._table.returns[away], self._now)
        return times


def _end(holding: Holding, now: float) -> float:
    return math.inf if holding.ends_at is None else max(holding.ends_at.timestamp(), now)


def _needs(held: HoldingTable) -> Amounts:
    return np.column_stack([held.gpus, held.cpus, held.memory]).astype(float)
