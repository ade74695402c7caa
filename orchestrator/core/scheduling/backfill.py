"""Reservations for runs that wait for nodes (EASY backfill, for each pool of nodes).

Lifka, "The ANL/IBM SP scheduling system", 1995: a run further back may use only resources that do
not delay the first one. Unlike there, the reservation names nodes, and the choice is carried from
pass to pass in the run's claim. A pass replaces the claim only with a better one, so nodes that
become free accumulate: the run starts once enough nodes have been free, even when no end of any run
is known.

A run gets a reservation if it could use a node that no run ahead of it could use, and keeps it
until it starts; runs behind it have no promised start. Where the start is unknown, runs of up to
`UNKNOWN_SECONDS` may use what is reserved.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import math

import numpy as np
from numpy.typing import NDArray

from jobs.spec import Resources
from orchestrator.core.scheduling.departures import Departures
from orchestrator.core.scheduling.eligibility import Eligible
from orchestrator.core.scheduling.free_resources import FreeResources, could_fit
from orchestrator.core.scheduling.node_table import Indices, Mask, NodeTable
from orchestrator.core.scheduling.reservations import Amounts, Reservation, amounts, totals
from orchestrator.core.scheduling.topology import choose, same_domain
from orchestrator.core.scheduling.types import Claim, Demand

Times = NDArray[np.float64]
UNKNOWN_SECONDS = 3630.0
"""Seconds for which reserved nodes are lent when nobody knows when the reservation begins.

An hour, and the 30 s to save of a run whose `max_runtime` is an hour.

The most by which a run that waits for unknown ends starts later than it could. An estimate of ours:
long enough for a session of debugging, short beside the wait for a run without a limit.
"""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EarliestStart:
    """The set of nodes that becomes free together the earliest."""

    places: Indices
    spares: Indices
    """Nodes to be left empty for the spare pool when the run starts."""
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
        return Claim(nodes=table.named(np.concatenate([self.places, self.spares])), until=until)


class Forecast:
    """The nodes that will be free, and when, for runs that wait.

    Args:
        free: Free resources now.
        departures: Which workers leave which nodes when.
        eligible: Nodes that the runs may use, and the reservations of runs ahead of them.
        now: The moment of the pass.
    """

    def __init__(
        self, free: FreeResources, departures: Departures, eligible: Eligible, now: dt.datetime
    ) -> None:
        self._free, self._table, self._eligible = free, free.table, eligible
        self._departures = departures
        self._start = now.timestamp()

    def reserve(self, demand: Demand) -> Claim:
        """Reserve the nodes with the earliest start for a run, and return them as its claim.

        An existing claim stays unless another set is better. The claim is empty, and nothing is
        reserved, if the cluster never has enough nodes that the run may use.
        """
        best = self._best(demand)
        if best is None:
            return Claim(nodes=())
        known = math.isfinite(best.until)
        lasts = math.inf if demand.ends_within is None else demand.ends_within
        self._eligible.reservations.reserve(
            demand.run,
            Reservation(
                places=np.concatenate([best.places, best.spares]),
                until=best.until if known else self._start + UNKNOWN_SECONDS,
                ends=best.until + lasts,
                needs=self._needs(demand.need, best),
                freed=self._departures.freed(self._free, demand.need)[
                    np.concatenate([best.places, best.spares])
                ],
            ),
        )
        return best.claim(self._table)

    def starts_at(self, demand: Demand) -> float:
        """Unix time at which the run could start without preemption; infinite: unknown."""
        best = self._best(demand)
        return math.inf if best is None else best.until

    def reserve_for_preemption(self, demand: Demand, claim: Claim) -> None:
        """Reserve nodes that others leave for a run; nobody may use them meanwhile."""
        places = self._table.places(claim.nodes)
        lasts = math.inf if demand.ends_within is None else demand.ends_within
        self._eligible.reservations.reserve(
            demand.run,
            Reservation(
                places=places,
                until=-math.inf,
                ends=self._start + lasts,
                needs=np.tile(amounts(demand.need), (len(places), 1)),
                freed=self._departures.freed(self._free, demand.need)[places],
            ),
        )

    def _needs(self, need: Resources, start: EarliestStart) -> Amounts:
        own = np.tile(amounts(need), (len(start.places), 1))
        return np.concatenate([own, totals(self._table)[start.spares]])

    def _best(self, demand: Demand) -> EarliestStart | None:
        near = self._usable(demand)
        count = demand.nodes
        if demand.keeps and demand.pack != "any":
            kept = self._table.places(demand.keeps)
            near &= same_domain(self._table, kept, demand.pack)
            if int(near.sum()) < count:  # never enough nodes near its own: the whole gang moves
                near, count = self._usable(demand), demand.gang
                near[kept] = could_fit(self._table, demand.need)[kept]
        free_at = self._free_at(demand)
        soonest = self._soonest(demand, near, free_at, count)
        if demand.claim is None or len(demand.claim.nodes) == 0:
            return soonest
        # Nodes that became free stay claimed: with every pass choosing anew, runs without a known
        # end could keep the first run waiting for ever.
        ours = np.zeros(len(self._table), dtype=np.bool_)
        ours[self._table.places(demand.claim.nodes)] = True
        found = [self._soonest(demand, near & ours, free_at, count)]
        if soonest is None or math.isfinite(soonest.until):
            found.append(soonest)
        else:
            # No start is known. Nodes that are free are welcome, but none that other runs use: they
            # may have come later than the claim, and nobody knows when they end.
            free = near & (ours | (free_at <= self._start))
            found.append(self._soonest(demand, free, free_at, count))
        return min((each for each in found if each), key=lambda e: e.rank, default=soonest)

    def _usable(self, demand: Demand) -> Mask:
        usable = could_fit(self._table, demand.need)
        usable[self._table.places(demand.keeps)] = False
        return usable

    def _free_at(self, demand: Demand) -> Times:
        """Unix time at which each node has room for the run, beside the runs ahead of it."""
        times = self._departures.times(self._free, demand.need)
        # Nodes of runs ahead of it count as busy until these have ended, not as lost: otherwise a
        # gang of the whole cluster would lose its claim to each run that preempts somebody.
        occupied = self._eligible.reservations.occupied_until(demand.need, self._free)
        free_at: Times = np.maximum(times, occupied)
        free_at[self._table.places(demand.keeps)] = self._start
        return free_at

    def _soonest(
        self, demand: Demand, usable: Mask, free_at: Times, count: int
    ) -> EarliestStart | None:
        """The earliest set among `usable`; None: no domain has `count` of these nodes.

        A later start may overlap a maintenance window and so be postponed again, hence the loop.
        """
        start = self._start
        while True:
            in_time = usable & (self._table.window >= start + self._eligible.stay_seconds(demand))
            found = _best_domain(self._table, in_time, free_at, count, demand.pack, self._start)
            if found is None:
                return None
            nth, mask = found
            places = self._choose(demand, mask, free_at, nth, count)
            idle_at = self._departures.empty_times(self._free)
            spares = self._spares(demand, places, idle_at)
            times = np.concatenate([free_at[places], idle_at[spares]])
            until = float(times.max())
            # Stop when the start no longer moves: then no further window is in the way.
            if until <= start or math.isinf(until) or not self._eligible.windows:
                return EarliestStart(
                    places=places,
                    spares=spares,
                    until=until,
                    unknown=int(np.isinf(times).sum()),
                    busy=int((times > self._start).sum()),
                )
            start = until

    def _spares(self, demand: Demand, places: Indices, idle_at: Times) -> Indices:
        """Nodes to leave empty for the spare pool; nodes of the current claim come first."""
        if demand.recovers or self._eligible.spares == 0:
            return np.empty(0, dtype=np.intp)
        pool = self._eligible.pool & ~self._eligible.reservations.reserved()
        pool[places] = False
        new = np.ones(len(self._table), dtype=np.bool_)
        if demand.claim is not None:
            new[self._table.places(demand.claim.nodes)] = False
        order = np.lexsort((new, idle_at))
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
