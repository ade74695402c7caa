"""Growth: standbys and elastic runs get the nodes that no waiting run needs.

This runs last in a pass, on nodes that no waiting run could use. A grown run can be shrunk again by
preemption (`Holding.surplus`).
"""

from __future__ import annotations

import bisect
import dataclasses
import datetime as dt
from collections.abc import Iterable

from orchestrator.core.scheduling import topology
from orchestrator.core.scheduling.eligibility import Eligible
from orchestrator.core.scheduling.fair_share import Shares
from orchestrator.core.scheduling.free_resources import FreeResources, Shape, shape_of
from orchestrator.core.scheduling.node_table import Indices, Mask
from orchestrator.core.scheduling.quota import Quotas, QuotaStatus
from orchestrator.core.scheduling.types import PRIORITY_RANK, Demand, Holding, accounted_gpus


def grow(
    free: FreeResources,
    eligible: Eligible,
    quotas: Quotas,
    shares: Shares,
    holdings: Iterable[Holding],
    closed: Mask,
) -> dict[str, tuple[str, ...]]:
    """Additional nodes for each run that wants some, by priority and then by fair share.

    None of the nodes is in `closed`: nodes that a waiting run could use.
    Growth never borrows quota and never reclaims lent quota. A run may get fewer nodes than it
    wants; a run that gets none is absent from the result.
    """
    found: dict[str, tuple[str, ...]] = {}
    room = _Room(free, ~closed)
    wanting = [holding for holding in holdings if holding.wants > 0]
    for holding in sorted(wanting, key=lambda h: _order(h, shares)):
        kept = free.table.places(holding.nodes)
        if not room.may_exist(holding, kept):
            continue
        demand = _demand(holding)
        allowed = eligible.allowed(free, demand) & room.usable
        if holding.pack != "any" and len(kept):
            allowed &= topology.same_domain(free.table, kept, holding.pack)
        count = min(
            holding.wants,
            eligible.usable_count(free, demand, allowed),
            _within_quota(quotas, holding),
        )
        if count <= 0:
            continue
        places = eligible.choose_nodes(free, dataclasses.replace(demand, nodes=count), allowed)
        if places is not None:
            free.take(places, holding.need)
            quotas.charge(holding.queue, count * accounted_gpus(holding.need))
            found[holding.run] = free.table.named(places)
    return found


class _Room:
    """The domains in which runs may grow, as they were before any run grew.

    Growth only takes room, so the answer stays a necessary condition. It spares most runs of a
    packed fleet the look at all nodes.

    Args:
        free: Free resources now.
        usable: Nodes that no waiting run could use.
    """

    def __init__(self, free: FreeResources, usable: Mask) -> None:
        self._free, self.usable = free, usable
        self._domains: dict[tuple[Shape, str], set[int]] = {}

    def may_exist(self, holding: Holding, kept: Indices) -> bool:
        """False if a run that holds the nodes `kept` certainly cannot grow."""
        if holding.pack == "any" or not len(kept):
            return bool(self._free.fits(holding.need).any())
        domains = self._free.table.domains[holding.pack]
        key = shape_of(holding.need), holding.pack
        if key not in self._domains:
            self._domains[key] = set(domains[self._free.fits(holding.need) & self.usable].tolist())
        return int(domains[kept[0]]) in self._domains[key]


def _order(holding: Holding, shares: Shares) -> tuple[object, ...]:
    return (
        PRIORITY_RANK[holding.priority],
        shares.score(holding.queue, holding.project),
        holding.run,
    )


def _within_quota(quotas: Quotas, holding: Holding) -> int:
    """Nodes (up to `wants`) that fit the nominal quota without borrowing or reclaiming."""
    each = accounted_gpus(holding.need)
    return bisect.bisect_left(
        range(1, holding.wants + 1),
        True,
        key=lambda count: quotas.status(holding.queue, count * each) is not QuotaStatus.WITHIN,
    )


def _demand(holding: Holding) -> Demand:
    """The demand for the additional nodes of a run that already holds some."""
    return Demand(
        run=holding.run,
        name=holding.run,
        need=holding.need,
        nodes=holding.wants,
        queue=holding.queue,
        project=holding.project,
        priority=holding.priority,
        submitted_at=dt.datetime.min.replace(tzinfo=dt.UTC),
        pack=holding.pack,
        keeps=holding.nodes,
        avoid=holding.avoid,
        ends_within=holding.ends_within,
    )
