"""The placement of single gangs during a pass: free nodes first, then a migration of the gang."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterable

from orchestrator.core.scheduling import migration, shortage
from orchestrator.core.scheduling.eligibility import Eligible
from orchestrator.core.scheduling.fair_share import Shares
from orchestrator.core.scheduling.free_resources import FreeResources, count_nodes
from orchestrator.core.scheduling.quota import Quotas
from orchestrator.core.scheduling.rejection_cache import Key, Rejection, RejectionCache
from orchestrator.core.scheduling.types import (
    Demand,
    Holding,
    Pending,
    Plan,
    accounted_gpus,
    held_by,
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """The state that the placements of a pass change.

    Attributes:
        now: The moment of the pass.
        free: Free resources.
        quotas: Use by queue.
        shares: Use by project.
        eligible: The rules about nodes.
        holdings: Nodes that every run holds, including runs placed in this pass.
        owed: Recovering run → accounted GPUs that its quota counts beside what it holds.
        rejections: Earlier answers by kind of demand.
        plan: The result of the pass.
    """

    now: dt.datetime
    free: FreeResources
    quotas: Quotas
    shares: Shares
    eligible: Eligible
    holdings: list[Holding]
    owed: dict[str, int]
    rejections: RejectionCache
    plan: Plan


def owed(holdings: Iterable[Holding]) -> dict[str, int]:
    """Recovering run → accounted GPUs that its quota counts beside what the run holds."""
    return {h.run: h.missing * accounted_gpus(h.need) for h in holdings if h.missing > 0}


class GangPlacement:
    """Places one gang after another."""

    def __init__(self, books: Books) -> None:
        self._books, self._free, self._eligible = books, books.free, books.eligible
        self._rejections = books.rejections

    def place(self, demand: Demand, key: Key) -> Rejection | None:
        """Place the demand without preemption; otherwise say why that is not possible.

        Args:
            demand: The run.
            key: The demands that may use the same nodes.
        """
        if tried := self._rejections.failed(key, demand):
            return tried
        if self._free.full_for(demand.need) and not demand.keeps:
            return Rejection(demand.nodes, Pending.NO_CAPACITY, 0)
        # Try to move first, which chooses the missing nodes and the replacements together.
        if demand.unwanted and self.move(demand):
            return None
        fits = self._eligible.fitting(self._free, demand)
        allowed = self._eligible.not_reserved(self._free, demand, fits)
        places = self._eligible.choose_nodes(self._free, demand, allowed)
        if places is not None:
            self.commit(demand, self._free.table.named(places))
            return None
        if self.move(demand):
            return None
        why = shortage.reason(self._free, self._eligible, demand, fits, allowed)
        blocking = self._eligible.reservations.blocking
        behind = blocking(fits & ~allowed) if why is Pending.RESERVED else None
        rejection = Rejection(demand.nodes, why, count_nodes(allowed), behind)
        self._rejections.note_failed(key, demand, rejection)
        return rejection

    def move(self, demand: Demand) -> bool:
        """Place the demand by migration: away from avoided nodes, or as a whole. True: moved."""
        move = migration.off_avoided_nodes(self._free, self._eligible, demand)
        if move is None:
            move = migration.whole_gang(self._free, self._eligible, demand)
        if move is None:
            return False
        self._books.plan.leaves[demand.run] = move.leaves
        # Quota is free at once, nodes are not: their agents still have to stop.
        gpus = len(move.leaves) * accounted_gpus(demand.need)
        self._books.quotas.charge(demand.queue, -gpus)
        self.commit(demand, move.to)
        return True

    def commit(self, demand: Demand, nodes: tuple[str, ...]) -> None:
        """Give these nodes to the demand."""
        books = self._books
        self._free.take(self._free.table.places(nodes), demand.need)
        self.charge(demand, len(nodes))
        books.shares.charge(demand)
        books.plan.placements[demand.run] = nodes
        books.holdings.append(held_by(demand, nodes, books.now))

    def charge(self, demand: Demand, nodes: int) -> None:
        """Count these nodes in the quota, but for those of a recovery that it counts already."""
        gpus = nodes * accounted_gpus(demand.need) - self._books.owed.pop(demand.run, 0)
        self._books.quotas.charge(demand.queue, gpus)
