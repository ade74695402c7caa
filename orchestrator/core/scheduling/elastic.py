"""Nobody waits for nodes: standbys come up, and elastic runs grow."""

from __future__ import annotations

import bisect
import dataclasses
import datetime as dt
from collections.abc import Iterable

from orchestrator.core.scheduling import topology
from orchestrator.core.scheduling.eligibility import Eligible
from orchestrator.core.scheduling.fair_share import Shares
from orchestrator.core.scheduling.free_resources import FreeResources
from orchestrator.core.scheduling.quota import Quotas, QuotaStatus
from orchestrator.core.scheduling.types import PRIORITY_RANK, Demand, Holding, accounted_gpus


def grow(
    board: FreeResources,
    eligible: Eligible,
    quotas: Quotas,
    shares: Shares,
    holdings: Iterable[Holding],
) -> dict[str, tuple[str, ...]]:
    """More nodes for those that want some: by priority, then by share; nobody borrows to grow."""
    found: dict[str, tuple[str, ...]] = {}
    wanting = [holding for holding in holdings if holding.wants > 0]
    for holding in sorted(wanting, key=lambda h: _turn(h, shares)):
        if not board.fits(holding.need).any():
            continue
        demand = _demand(holding)
        allowed = eligible.allowed(board, demand)
        kept = board.rooms.places(holding.nodes)
        if holding.pack != "any" and len(kept):
            allowed &= topology.within(board.rooms, kept, holding.pack)
        count = min(
            holding.wants,
            eligible.most(board, demand, allowed),
            _within_quota(quotas, holding),
        )
        if count <= 0:
            continue
        places = eligible.spot(board, dataclasses.replace(demand, nodes=count), allowed)
        if places is not None:
            board.take(places, holding.need)
            quotas.charge(holding.queue, count * accounted_gpus(holding.need))
            found[holding.run] = board.rooms.named(places)
    return found


def _turn(holding: Holding, shares: Shares) -> tuple[object, ...]:
    return (
        PRIORITY_RANK[holding.priority],
        shares.score(holding.queue, holding.project),
        holding.run,
    )


def _within_quota(quotas: Quotas, holding: Holding) -> int:
    """Nodes it may have more without borrowing, and without taking back what was lent."""
    each = accounted_gpus(holding.need)
    return bisect.bisect_left(
        range(1, holding.wants + 1),
        True,
        key=lambda count: quotas.standing(holding.queue, count * each) is not QuotaStatus.WITHIN,
    )


def _demand(holding: Holding) -> Demand:
    """More nodes for a run that has some, as a demand."""
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
