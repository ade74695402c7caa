"""Reservation for the run that is first in the queue and does not fit (EASY backfill).

Lifka, "The ANL/IBM SP scheduling system", 1995: whoever is not first may only use what does not
delay who is. Here the nodes themselves are kept, and the choice is remembered from pass to pass.
It is changed only for a better one, so whatever becomes free is added to it: also where nobody
knows when others end, the first in the queue starts once enough nodes have been free.
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
from orchestrator.core.scheduling.topology import choose, within
from orchestrator.core.scheduling.types import Claim, Demand, Holding

Times = NDArray[np.float64]


def busy_until(rooms: NodeTable, holdings: Sequence[Holding]) -> Times:
    """Unix time at which the last worker on each node is expected to leave; infinite: unknown."""
    until = np.full(len(rooms), -np.inf)
    for holding in holdings:
        ends = math.inf if holding.ends_at is None else holding.ends_at.timestamp()
        places = rooms.places(holding.nodes)
        until[places] = np.maximum(until[places], ends)
    return until


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EarliestStart:
    """The nodes that are free together the soonest, with those that must be left as spares."""

    places: Indices
    until: float
    """Unix time at which the run may start; infinite: unknown."""
    unknown: int
    """Of the nodes, those of which nobody knows when they are free."""
    busy: int
    """Of the nodes, those that are not free now."""

    @property
    def rank(self) -> tuple[float, int, int]:
        """The smaller, the better."""
        return self.until, self.unknown, self.busy

    def claim(self, rooms: NodeTable) -> Claim:
        """As it is remembered."""
        finite = math.isfinite(self.until)
        until = dt.datetime.fromtimestamp(self.until, dt.UTC) if finite else None
        return Claim(nodes=rooms.named(self.places), until=until)


class Forecast:
    """What will be free when, for the run that is first in the queue.

    Args:
        board: What is free now.
        holdings: What all have.
        eligible: What the run may use.
        now: The moment of the pass.
    """

    def __init__(
        self,
        board: FreeResources,
        holdings: Sequence[Holding],
        eligible: Eligible,
        now: dt.datetime,
    ) -> None:
        self._board, self._rooms, self._eligible = board, board.rooms, eligible
        self._start = now.timestamp()
        self._empty_at = np.maximum(busy_until(board.rooms, holdings), self._start)

    def claim(self, demand: Demand) -> Claim:
        """The soonest nodes; what it has kept already stays, unless others are better."""
        near = self._usable(demand)
        count = demand.nodes
        if demand.keeps and demand.pack != "any":
            kept = self._rooms.places(demand.keeps)
            near &= within(self._rooms, kept, demand.pack)
            if int(near.sum()) < count:  # no room beside what it has, ever: the gang moves
                near, count = self._usable(demand), demand.gang
                near[kept] = could_fit(self._rooms, demand.need)[kept]
        soonest = self._soonest(demand, near, count)
        old = self._old(demand, near, count)
        best = soonest if old is None or (soonest and soonest.rank < old.rank) else old
        return Claim(nodes=()) if best is None else best.claim(self._rooms)

    def _usable(self, demand: Demand) -> Mask:
        usable = could_fit(self._rooms, demand.need) & ~self._eligible.kept.kept()
        usable[self._rooms.places(demand.keeps)] = False
        return usable

    def _old(self, demand: Demand, usable: Mask, count: int) -> EarliestStart | None:
        """What it has kept so far, as it stands now; None: it is of no use any more."""
        if demand.claim is None or len(demand.claim.nodes) < count:
            return None
        only = np.zeros(len(self._rooms), dtype=np.bool_)
        only[self._rooms.places(demand.claim.nodes)] = True
        return self._soonest(demand, usable & only, count)

    def _soonest(self, demand: Demand, usable: Mask, count: int) -> EarliestStart | None:
        """Later starts reach into more maintenance, which may put the start off once more."""
        free_at = np.where(self._board.fits(demand.need), self._start, self._empty_at)
        free_at[self._rooms.places(demand.keeps)] = self._start
        start = self._start
        while True:
            in_time = usable & (self._rooms.window >= start + self._eligible.stays(demand))
            found = _best_domain(self._rooms, in_time, free_at, count, demand.pack, self._start)
            if found is None:
                return None
            nth, mask = found
            places = self._choose(demand, mask, free_at, nth, count)
            spares = self._spares(demand, places)
            times = np.concatenate([free_at[places], self._emptied_at()[spares]])
            until = float(times.max())
            if until <= start or math.isinf(until) or not self._eligible.windows:
                return EarliestStart(
                    places=np.concatenate([places, spares]),
                    until=until,
                    unknown=int(np.isinf(times).sum()),
                    busy=int((times > self._start).sum()),
                )
            start = until

    def _emptied_at(self) -> Times:
        return np.where(self._board.idle(), self._start, self._empty_at)

    def _spares(self, demand: Demand, places: Indices) -> Indices:
        """Nodes that are kept empty besides, for the pool of spares; those it kept so far first."""
        if demand.recovers or self._eligible.spares == 0:
            return np.empty(0, dtype=np.intp)
        pool = self._eligible.pool & ~self._eligible.kept.kept()
        pool[places] = False
        new = np.ones(len(self._rooms), dtype=np.bool_)
        if demand.claim is not None:
            new[self._rooms.places(demand.claim.nodes)] = False
        order = np.lexsort((new, self._emptied_at()))
        return order[pool[order]][: self._eligible.spares]

    def _choose(
        self, demand: Demand, mask: Mask, free_at: Times, nth: float, count: int
    ) -> Indices:
        """Close together if all are known to be free by then; else those that are free first."""
        by_time = np.lexsort((self._board.gpus, free_at))
        if math.isfinite(nth):
            ranks = np.empty(len(by_time), dtype=np.intp)
            ranks[by_time] = np.arange(len(by_time))
            places = choose(self._rooms, mask & (free_at <= nth), count, demand.pack, ranks)
            if places is not None:
                return places
        return by_time[mask[by_time]][:count]


def _best_domain(
    rooms: NodeTable, usable: Mask, free_at: Times, count: int, pack: str, now: float
) -> tuple[float, Mask] | None:
    """When enough nodes of one domain are free, and the nodes of the domain where it is so first.

    Ties go to the domain with the fewest nodes of unknown end, then with the most that are free
    now, then with the least to spare. None: no domain has so many.
    """
    candidates = np.flatnonzero(usable)
    of = rooms.domains[pack][candidates] if pack != "any" else np.zeros_like(candidates)
    order = np.lexsort((free_at[candidates], of))
    times, domains = free_at[candidates][order], of[order]
    starts = np.flatnonzero(np.r_[True, domains[1:] != domains[:-1]]) if len(domains) else domains
    sizes = np.diff(np.r_[starts, len(domains)])
    starts, sizes = starts[sizes >= count], sizes[sizes >= count]
    if not len(starts):
        return None
    nth = times[starts + count - 1]
    known = np.minimum(count, _run_length(np.isfinite(times), starts))
    free = np.minimum(count, _run_length(times <= now, starts))
    best = np.lexsort((sizes, -free, -known, nth))[0]
    chosen = domains[starts[best]]
    mask = usable.copy()
    if pack != "any":
        mask &= rooms.domains[pack] == chosen
    return float(nth[best]), mask


def _run_length(flags: Mask, starts: Indices) -> Indices:
    """How many flags are set in a row from each start."""
    unset = np.append(np.flatnonzero(~flags), len(flags))
    first = unset[np.searchsorted(unset, starts)]
    return (first - starts).astype(np.intp)
