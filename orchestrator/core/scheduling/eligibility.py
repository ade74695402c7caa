"""Which nodes a run may use now, on whatever board it is tried: one place for all that counts.

Room, maintenance, what is kept for others, and the pool of spares.
"""

from __future__ import annotations

import bisect
import datetime as dt
import math

import numpy as np

from orchestrator.core.scheduling import topology
from orchestrator.core.scheduling.free_resources import FreeResources
from orchestrator.core.scheduling.node_choice import spot
from orchestrator.core.scheduling.node_table import Indices, Mask, NodeTable
from orchestrator.core.scheduling.reservations import Reservations
from orchestrator.core.scheduling.types import Demand

MAINTENANCE_LEAD_SECONDS = 3600.0
"""A run whose end is not known starts on no node whose maintenance begins sooner than this."""


class Eligible:
    """What a run may use.

    Args:
        rooms: The nodes.
        now: The moment of the pass.
        spares: Idle nodes that newcomers must leave.

    Attributes:
        kept: What is kept for runs that wait.
        pool: Nodes that count as spares: those with GPUs, where there are any.
        windows: Unix times at which maintenance begins, the next first.
    """

    def __init__(self, rooms: NodeTable, now: dt.datetime, spares: int) -> None:
        self._rooms, self._now, self.spares = rooms, now.timestamp(), spares
        self.kept = Reservations(rooms)
        self.pool: Mask = (rooms.gpus > 0) | (not (rooms.gpus > 0).any())
        windows = rooms.window[np.isfinite(rooms.window)]
        self.windows: list[float] = np.unique(windows).tolist()

    def ends(self, demand: Demand) -> float:
        """Unix time at which it is over for certain; infinite: nobody knows."""
        return math.inf if demand.ends_within is None else self._now + demand.ends_within

    def stays(self, demand: Demand) -> float:
        """Seconds that it stays, as far as maintenance goes."""
        return MAINTENANCE_LEAD_SECONDS if demand.ends_within is None else demand.ends_within

    def in_time(self, demand: Demand) -> Mask:
        """Nodes that are not maintained before the run has ended."""
        mask: Mask = self._rooms.window >= self._now + self.stays(demand)
        return mask

    def fitting(self, board: FreeResources, demand: Demand) -> Mask:
        """Nodes with room for it that it does not have yet, in time before maintenance."""
        mask = board.fits(demand.need)
        if self.windows:
            mask &= self.in_time(demand)
        mask[self._rooms.places(demand.keeps)] = False
        return mask

    def allowed(self, board: FreeResources, demand: Demand) -> Mask:
        """Those of them that are not kept for others."""
        return self.fitting(board, demand) & ~self.kept.beyond(self.ends(demand))

    def spot(self, board: FreeResources, demand: Demand, allowed: Mask) -> Indices | None:
        """Where it goes, of the nodes allowed, with the pool of spares left alone."""
        places = spot(board, demand, allowed)
        if places is None or self._exempt(demand):
            return places
        taken = np.zeros_like(allowed)
        taken[places] = True
        if self._may_take(board, taken)[places].all():
            return places
        return spot(board, demand, self._may_take(board, allowed))

    def may_have(self, board: FreeResources, demand: Demand) -> Mask:
        """Nodes that others would be asked to leave for it: none that it avoids."""
        mask = self.allowed(board, demand)
        mask[self._rooms.places(demand.avoid)] = False
        kept = self._rooms.places(demand.keeps)
        if len(kept) and demand.pack != "any":
            mask &= topology.within(self._rooms, kept, demand.pack)
        return mask

    def suffices(self, board: FreeResources, demand: Demand) -> bool:
        """Whether it would fit on a board, as far as can be told cheaply."""
        mask = self.may_have(board, demand)
        if topology.largest_domain(self._rooms, mask, demand.pack) < demand.nodes:
            return False
        return demand.nodes <= self.most(board, demand, mask)

    def most(self, board: FreeResources, demand: Demand, mask: Mask) -> int:
        """How many of these nodes it may take, with the pool of spares left alone."""
        return int((mask if self._exempt(demand) else self._may_take(board, mask)).sum())

    def _exempt(self, demand: Demand) -> bool:
        """The spares are for recoveries."""
        return demand.recovers or self.spares == 0

    def _may_take(self, board: FreeResources, mask: Mask) -> Mask:
        """As many of these nodes as leave the pool alone."""
        idle = board.idle() & self.pool
        most = max(0, int(idle.sum()) - self.spares)
        allowed = mask.copy()
        allowed[np.flatnonzero(mask & idle)[most:]] = False
        return allowed

    def like(self, demand: Demand) -> tuple[object, ...]:
        """What counts of a demand here beside its shape: reservations and windows open to it."""
        ends = self.ends(demand)
        windows = bisect.bisect_left(self.windows, self._now + self.stays(demand))
        return demand.recovers, self.kept.open_until(ends), windows
