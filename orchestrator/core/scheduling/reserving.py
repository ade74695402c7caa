"""Reservation for the run that is first in the queue and does not fit (EASY backfill).

Lifka, "The ANL/IBM SP scheduling system", 1995: whoever is not first may only use what does not
delay who is. Here the nodes themselves are kept, and the choice is remembered from pass to pass, so
that nothing that starts later can be on them when they are wanted.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from orchestrator.core.scheduling.board import Board, could_fit
from orchestrator.core.scheduling.rooms import Indices, Mask, Rooms
from orchestrator.core.scheduling.terms import Claim, Demand, Holding
from orchestrator.core.scheduling.topology import choose

Times = NDArray[np.float64]


def busy_until(rooms: Rooms, holdings: Sequence[Holding]) -> Times:
    """Unix time at which the last worker on each node is expected to leave; infinite: unknown."""
    until = np.full(len(rooms), -np.inf)
    for holding in holdings:
        ends = math.inf if holding.ends_at is None else holding.ends_at.timestamp()
        places = rooms.places(holding.nodes)
        until[places] = np.maximum(until[places], ends)
    return until


class Reservations:
    """What is kept for runs that wait, in one pass."""

    def __init__(self, rooms: Rooms, now: dt.datetime) -> None:
        self._rooms, self._now = rooms, now
        self._kept: dict[str, tuple[Indices, float]] = {}
        """Places, and the Unix time until which others may use them; never: minus infinity."""

    def keep(self, run: str, claim: Claim) -> None:
        """Keep what a run claims."""
        if claim.nodes:
            until = -math.inf if claim.until is None else claim.until.timestamp()
            self._kept[run] = self._rooms.places(claim.nodes), until

    def release(self, run: str) -> None:
        """Keep nothing for a run any more."""
        self._kept.pop(run, None)

    def open_until(self, ends: float) -> tuple[bool, ...]:
        """Which of the reservations a run that ends then does not delay."""
        return tuple(ends <= until for _, until in self._kept.values())

    def beyond(self, ends: float) -> Mask:
        """Nodes that a run that ends then would keep from others."""
        mask = np.zeros(len(self._rooms), dtype=np.bool_)
        for places, until in self._kept.values():
            if not ends <= until:
                mask[places] = True
        return mask

    def whole(self, demand: Demand, claim: Claim) -> bool:
        """Whether everything that was kept can still be used, and suffices."""
        places = self._rooms.places(claim.nodes)
        fit = could_fit(self._rooms, demand.need)[places]
        return len(places) == len(claim.nodes) >= demand.nodes and bool(fit.all())

    def best(self, board: Board, demand: Demand, holdings: Sequence[Holding]) -> Claim:
        """The soonest nodes; what it has kept already stays, unless others are free sooner.

        So the start of the first in the queue is never put off by what starts behind it.
        """
        busy = busy_until(self._rooms, holdings)
        usable = could_fit(self._rooms, demand.need)
        usable[self._rooms.places(demand.keeps)] = False
        usable &= ~self.beyond(math.inf)  # what is kept for others already
        soonest = reserve(board, demand, usable, busy, self._now)
        old = demand.claim
        if old is None or not self.whole(demand, old):
            return soonest
        only = np.zeros(len(self._rooms), dtype=np.bool_)
        only[self._rooms.places(old.nodes)] = True
        kept = reserve(board, demand, usable & only, busy, self._now)
        return soonest if _until(soonest) < _until(kept) else kept


def _until(claim: Claim) -> float:
    """Unix time; infinite: unknown."""
    return math.inf if claim.until is None else claim.until.timestamp()


def reserve(board: Board, demand: Demand, usable: Mask, busy: Times, now: dt.datetime) -> Claim:
    """The nodes that will be free together the soonest; ties by how close they lie.

    Args:
        board: What is free now.
        demand: Who is first in the queue.
        usable: Nodes that it fits on when they are empty.
        busy: :func:`busy_until`.
        now: The moment of the pass.
    """
    rooms, start = board.rooms, now.timestamp()
    free_at = np.where(board.fits(demand.need), start, np.maximum(busy, start))
    soonest = _soonest(rooms, demand, usable, free_at)
    in_time = usable & (free_at <= soonest)
    by_time = np.empty(len(rooms), dtype=np.intp)
    by_time[np.lexsort((board.gpus, free_at))] = np.arange(len(rooms))
    places = choose(rooms, in_time, demand.nodes, demand.pack, by_time)
    if places is None:
        return Claim(nodes=())
    ends = float(free_at[places].max())
    until = dt.datetime.fromtimestamp(ends, dt.UTC) if math.isfinite(ends) else None
    return Claim(nodes=rooms.named(places), until=until)


def _soonest(rooms: Rooms, demand: Demand, usable: Mask, free_at: Times) -> float:
    """When enough nodes (of one domain, where that is asked for) are free."""
    if demand.pack == "any":
        return _nth(free_at[usable], demand.nodes)
    domains = rooms.domains[demand.pack]
    return min(
        (_nth(free_at[usable & (domains == each)], demand.nodes) for each in np.unique(domains)),
        default=math.inf,
    )


def _nth(times: Times, count: int) -> float:
    return math.inf if len(times) < count else float(np.partition(times, count - 1)[count - 1])
