"""Which nodes a run may use now: the one place for every rule about it.

A node is eligible if it has capacity for one worker, is not in maintenance before the run ends, is
not reserved for another run, and is not needed for the spare pool. The rules take the free
resources as an argument, so that preemption can evaluate them on hypothetical ones.
"""

from __future__ import annotations

import bisect
import datetime as dt
import math

import numpy as np

from orchestrator.core.scheduling import topology
from orchestrator.core.scheduling.free_resources import FreeResources, count_nodes
from orchestrator.core.scheduling.node_choice import choose_nodes
from orchestrator.core.scheduling.node_table import Indices, Mask, NodeTable
from orchestrator.core.scheduling.reservations import Reservations
from orchestrator.core.scheduling.types import Demand

MAINTENANCE_LEAD_SECONDS = 3600.0
"""A run with an unknown end starts only on nodes free of maintenance for this many seconds."""


class Eligible:
    """The nodes that a demand may use in this pass.

    Args:
        table: The nodes.
        now: The moment of the pass.
        spares: Number of idle nodes that newcomers must leave for recoveries.

    Attributes:
        reservations: Nodes reserved for waiting runs.
        pool: Nodes that count as spares: nodes with GPUs, or all nodes if none has a GPU.
        windows: Unix times at which maintenance begins, in ascending order.
    """

    def __init__(self, table: NodeTable, now: dt.datetime, spares: int) -> None:
        self._table, self._now, self.spares = table, now.timestamp(), spares
        self.reservations = Reservations(table)
        self._keys: dict[tuple[bool, float | None], int] = {}
        self._numbers: dict[tuple[object, ...], int] = {}
        self._keys_of = 0
        self.pool: Mask = (table.gpus > 0) | (not (table.gpus > 0).any())
        windows = table.window[np.isfinite(table.window)]
        self.windows: list[float] = np.unique(windows).tolist()

    def ends_at(self, demand: Demand) -> float:
        """Latest Unix time at which the run ends (`max_runtime`); infinite: no limit."""
        return math.inf if demand.ends_within is None else self._now + demand.ends_within

    def stay_seconds(self, demand: Demand) -> float:
        """Seconds for which a node must stay free of maintenance to take this run."""
        return MAINTENANCE_LEAD_SECONDS if demand.ends_within is None else demand.ends_within

    def in_time(self, demand: Demand) -> Mask:
        """Nodes whose next maintenance begins only after the run has ended."""
        mask: Mask = self._table.window >= self._now + self.stay_seconds(demand)
        return mask

    def fitting(self, free: FreeResources, demand: Demand) -> Mask:
        """Nodes with capacity for one worker in time before maintenance, not held by the run."""
        mask = free.fits(demand.need)
        if self.windows:  # most clusters have none: save the comparison over all nodes
            mask &= self.in_time(demand)
        mask[self._table.places(demand.keeps)] = False
        return mask

    def allowed(self, free: FreeResources, demand: Demand) -> Mask:
        """The fitting nodes that are not reserved for other runs."""
        return self.not_reserved(free, demand, self.fitting(free, demand))

    def not_reserved(self, free: FreeResources, demand: Demand, fits: Mask) -> Mask:
        """The fitting nodes on which the run delays no run that has a reservation."""
        return self.reservations.respected(fits, self.ends_at(demand), demand.need, free)

    def choose_nodes(self, free: FreeResources, demand: Demand, allowed: Mask) -> Indices | None:
        """Choose `demand.nodes` of the allowed nodes; the spare pool stays whole. None: too few."""
        places = choose_nodes(free, demand, allowed)
        if places is None or self._may_use_spares(demand):
            return places
        taken = np.zeros_like(allowed)
        taken[places] = True
        # The best choice often spares the pool already; only otherwise exclude pool nodes.
        if self._without_pool(free, taken)[places].all():
            return places
        return choose_nodes(free, demand, self._without_pool(free, allowed))

    def usable_after_preemption(self, free: FreeResources, demand: Demand) -> Mask:
        """Allowed nodes for which other runs may be preempted: none that the run avoids."""
        mask = self.allowed(free, demand)
        mask[self._table.places(demand.avoid)] = False
        kept = self._table.places(demand.keeps)
        if len(kept) and demand.pack != "any":
            mask &= topology.same_domain(self._table, kept, demand.pack)
        return mask

    def suffices(self, free: FreeResources, demand: Demand) -> bool:
        """True if the demand probably fits these free resources: a cheap, necessary condition."""
        mask = self.usable_after_preemption(free, demand)
        if topology.largest_domain(self._table, mask, demand.pack) < demand.nodes:
            return False
        return demand.nodes <= self.usable_count(free, demand, mask)

    def usable_count(self, free: FreeResources, demand: Demand, mask: Mask) -> int:
        """Number of nodes in `mask` that the demand may take without touching the spare pool."""
        return count_nodes(mask if self._may_use_spares(demand) else self._without_pool(free, mask))

    def _may_use_spares(self, demand: Demand) -> bool:
        """True for recoveries: the spare pool exists for them."""
        return demand.recovers or self.spares == 0

    def _without_pool(self, free: FreeResources, mask: Mask) -> Mask:
        """The part of `mask` that leaves enough idle nodes in the spare pool."""
        idle = free.idle() & self.pool
        most = max(0, count_nodes(idle) - self.spares)
        allowed = mask.copy()
        allowed[np.flatnonzero(mask & idle)[most:]] = False
        return allowed

    def cache_key(self, demand: Demand) -> int:
        """A number for the properties, other than its shape, that decide its eligible nodes."""
        if self._keys_of != self.reservations.changes:
            self._keys, self._keys_of = {}, self.reservations.changes
        known = demand.recovers, demand.ends_within
        if (number := self._keys.get(known)) is None:
            ends = self.ends_at(demand)
            windows = bisect.bisect_left(self.windows, self._now + self.stay_seconds(demand))
            key = demand.recovers, self.reservations.open_until(ends), windows
            number = self._keys[known] = self._numbers.setdefault(key, len(self._numbers))
        return number
