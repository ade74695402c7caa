"""Reservation for the first run in the queue that does not fit (EASY backfill).

Lifka, "The ANL/IBM SP scheduling system", 1995: a run further back may use only resources that do
not delay the first one. Unlike there, the reservation names nodes, and the choice is carried from
pass to pass in the run's claim. A pass replaces the claim only with a better one, so nodes that
become free accumulate: the first run starts once enough nodes have been free, even when no end of
any run is known.

Only one run per pass gets such a reservation; runs behind it have no promised start.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from orchestrator.core.scheduling.eligibility import Eligible
from orchestrator.core.scheduling.free_resources import FreeResources, could_fit
from orchestrator.core.scheduling.node_table import Indices, Mask, NodeTable
from orchestrator.core.scheduling.topology import choose, same_domain
from orchestrator.core.scheduling.types import Claim, Demand, Holding

Times = NDArray[np.float64]


def busy_until(table: NodeTable, holdings: Sequence[Holding]) -> Times:
    """Unix time at which the last worker on each node is expected to leave.

    Infinite where the end is unknown; minus infinity where the node is empty.
    """
    until = np.full(len(table), -np.inf)
    for holding in holdings:
        ends = math.inf if holding.ends_at is None else holding.ends_at.timestamp()
        places = table.places(holding.nodes)
        until[places] = np.maximum(until[places], ends)
    return until


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EarliestStart:
    """The set of nodes that becomes free together the earliest, spares for the pool included."""

    places: Indices
    until: float
    """Unix time at which the run may start; infinite: unknown."""
    unknown: int
    """Number of these nodes whose end of use is unknown."""
    busy: int
    """Number of these nodes that are not free now."""

    @property
    def rank(self) -> tuple[float, int, int]:
        """Sort key; the smaller rank is the better set."""
        return self.until, self.unknown, self.busy

    def claim(self, table: NodeTable) -> Claim:
        """The set in the form that the run database stores; an infinite start becomes None."""
        finite = math.isfinite(self.until)
        until = dt.datetime.fromtimestamp(self.until, dt.UTC) if finite else None
        return Claim(nodes=table.named(self.places), until=until)


class Forecast:
    """The nodes that will be free, and when, for the first run in the queue.

    Args:
        free: Free resources now.
        holdings: Nodes that every run holds, with their expected ends.
        eligible: Nodes that the run may use.
        now: The moment of the pass.
    """

    def __init__(
        self,
        free: FreeResources,
        holdings: Sequence[Holding],
        eligible: Eligible,
        now: dt.datetime,
    ) -> None:
        self._free, self._table, self._eligible = free, free.table, eligible
        self._start = now.timestamp()
        self._empty_at = np.maximum(busy_until(free.table, holdings), self._start)

    def claim(self, demand: Demand) -> Claim:
        """The nodes with the earliest start; an existing claim stays unless another set is better.

        The claim is empty if the cluster never has enough nodes that the run may use.
        """
        near = self._usable(demand)
        count = demand.nodes
        if demand.keeps and demand.pack != "any":
            kept = self._table.places(demand.keeps)
            near &= same_domain(self._table, kept, demand.pack)
            if int(near.sum()) < count:  # never enough nodes near its own: the whole gang moves
                near, count = self._usable(demand), demand.gang
                near[kept] = could_fit(self._table, demand.need)[kept]
        soonest = self._soonest(demand, near, count)
        claimed = self._claimed(demand, near, count)
        # Nodes that became free stay claimed: with every pass choosing anew, runs without a known
        # end could keep the first run waiting for ever.
        best = soonest if claimed is None or (soonest and soonest.rank < claimed.rank) else claimed
        return Claim(nodes=()) if best is None else best.claim(self._table)

    def _usable(self, demand: Demand) -> Mask:
        usable = could_fit(self._table, demand.need) & ~self._eligible.reservations.reserved()
        usable[self._table.places(demand.keeps)] = False
        return usable

    def _claimed(self, demand: Demand, usable: Mask, count: int) -> EarliestStart | None:
        """The current claim, re-evaluated; None: the claim no longer suffices."""
        if demand.claim is None or len(demand.claim.nodes) < count:
            return None
        claimed_mask = np.zeros(len(self._table), dtype=np.bool_)
        claimed_mask[self._table.places(demand.claim.nodes)] = True
        return self._soonest(demand, usable & claimed_mask, count)

    def _soonest(self, demand: Demand, usable: Mask, count: int) -> EarliestStart | None:
        """The earliest set among `usable`; None: no domain has `count` of these nodes.

        A later start may overlap a maintenance window and so be postponed again, hence the loop.
        """
        free_at = np.where(self._free.fits(demand.need), self._start, self._empty_at)
        free_at[self._table.places(demand.keeps)] = self._start
        start = self._start
        while True:
            in_time = usable & (self._table.window >= start + self._eligible.stay_seconds(demand))
            found = _best_domain(self._table, in_time, free_at, count, demand.pack, self._start)
            if found is None:
                return None
            nth, mask = found
            places = self._choose(demand, mask, free_at, nth, count)
            spares = self._spares(demand, places)
            times = np.concatenate([free_at[places], self._idle_at()[spares]])
            until = float(times.max())
            # Stop when the start no longer moves: then no further window is in the way.
            if until <= start or math.isinf(until) or not self._eligible.windows:
                return EarliestStart(
                    places=np.concatenate([places, spares]),
                    until=until,
                    unknown=int(np.isinf(times).sum()),
                    busy=int((times > self._start).sum()),
                )
            start = until

    def _idle_at(self) -> Times:
        return np.where(self._free.idle(), self._start, self._empty_at)

    def _spares(self, demand: Demand, places: Indices) -> Indices:
        """Nodes to leave empty for the spare pool; nodes of the current claim come first."""
        if demand.recovers or self._eligible.spares == 0:
            return np.empty(0, dtype=np.intp)
        pool = self._eligible.pool & ~self._eligible.reservations.reserved()
        pool[places] = False
        new = np.ones(len(self._table), dtype=np.bool_)
        if demand.claim is not None:
            new[self._table.places(demand.claim.nodes)] = False
        order = np.lexsort((new, self._idle_at()))
        return order[pool[order]][: self._eligible.spares]

    def _choose(
        self, demand: Demand, mask: Mask, free_at: Times, nth: float, count: int
    ) -> Indices:
        """Nodes close together if all are free by a known time; otherwise those that free first."""
        by_time = np.lexsort((self._free.gpus, free_at))
        if math.isfinite(nth):
            ranks = np.empty(len(by_time), dtype=np.intp)
            ranks[by_time] = np.arange(len(by_time))
            places = choose(self._table, mask & (free_at <= nth), count, demand.pack, ranks)
            if places is not None:
                return places
        return by_time[mask[by_time]][:count]


def _best_domain(
    table: NodeTable, usable: Mask, free_at: Times, count: int, pack: str, now: float
) -> tuple[float, Mask] | None:
    """The domain where `count` nodes are free the earliest: that time, and a mask of its nodes.

    Ties go to the domain with the fewest unknown ends, then to the one with the most nodes free
    now, then to the smallest. None: no domain has `count` usable nodes.
    """
    candidates = np.flatnonzero(usable)
    of = table.domains[pack][candidates] if pack != "any" else np.zeros_like(candidates)
    order = np.lexsort((free_at[candidates], of))
    times, domains = free_at[candidates][order], of[order]
    starts = np.flatnonzero(np.r_[True, domains[1:] != domains[:-1]]) if len(domains) else domains
    sizes = np.diff(np.r_[starts, len(domains)])
    starts, sizes = starts[sizes >= count], sizes[sizes >= count]
    if not len(starts):
        return None
    nth = times[starts + count - 1]
    foreseen = np.minimum(count, _run_length(np.isfinite(times), starts))
    free_now = np.minimum(count, _run_length(times <= now, starts))
    best = np.lexsort((sizes, -free_now, -foreseen, nth))[0]
    chosen = domains[starts[best]]
    mask = usable.copy()
    if pack != "any":
        mask &= table.domains[pack] == chosen
    return float(nth[best]), mask


def _run_length(flags: Mask, starts: Indices) -> Indices:
    """Number of consecutive set flags from each start."""
    unset = np.append(np.flatnonzero(~flags), len(flags))
    first = unset[np.searchsorted(unset, starts)]
    return (first - starts).astype(np.intp)
