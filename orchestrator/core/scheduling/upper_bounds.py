"""Upper bounds: demands that no empty cluster and no idle cohort could satisfy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from orchestrator.core.scheduling import topology
from orchestrator.core.scheduling.eligibility import Eligible
from orchestrator.core.scheduling.free_resources import Pool, could_fit, kinds_that_fit, shape_of
from orchestrator.core.scheduling.node_table import NodeTable
from orchestrator.core.scheduling.quota import Quotas, QuotaStatus
from orchestrator.core.scheduling.types import Demand, Holding, accounted_gpus


class Ceilings:
    """The largest gang that nodes and quota allow, cached by kinds of node and topology level."""

    def __init__(self, table: NodeTable, quotas: Quotas, eligible: Eligible) -> None:
        self._table, self._quotas, self._eligible = table, quotas, eligible
        self._nodes: dict[tuple[Pool, str], tuple[int, int]] = {}
        self._pool = int(eligible.pool.sum())

    def exceeded_by(self, demand: Demand) -> str:
        """Why the demand exceeds what exists; empty: it does not.

        No end of another run makes such a demand fit, so it does not block the queue.
        """
        most = None if continues_on_nodes(demand) else self._quotas.ceiling(demand.queue)
        if most is not None and demand.gang * accounted_gpus(demand.need) > most:
            return f"queue {demand.queue} may use {most} GPUs at most"
        nodes, outside = self._most_nodes(demand)
        where = "the cluster has" if demand.pack == "any" else f"one {demand.pack} has"
        if nodes < demand.gang:
            return f"{where} {nodes} nodes that fit, even empty"
        spares = 0 if demand.recovers else self._eligible.spares
        if spares and demand.gang > max(0, self._pool - spares) + outside:
            return f"{where} {nodes} nodes that fit, of which {spares} are spares for recoveries"
        return ""

    def most_nodes(self, demand: Demand, pool: Pool) -> int:
        """Nodes of the largest gang of this shape that the empty cluster could take."""
        nodes, outside = self._most_nodes(demand, pool)
        spares = 0 if demand.recovers else self._eligible.spares
        return min(nodes, max(0, self._pool - spares) + outside) if spares else nodes

    def most_gpus(self, queue: str) -> int | None:
        """GPUs that the queue may use at most; None: no limit."""
        return self._quotas.ceiling(queue)

    def _most_nodes(self, demand: Demand, pool: Pool | None = None) -> tuple[int, int]:
        """Fitting nodes of the best empty domain, and how many fitting nodes are not spares."""
        # By kinds of node, not by shapes: of these there may be as many as demands.
        key = pool or kinds_that_fit(self._table, shape_of(demand.need)), demand.pack
        if key not in self._nodes:
            mask = could_fit(self._table, demand.need)
            most = topology.largest_domain(self._table, mask, demand.pack)
            self._nodes[key] = most, int((mask & ~self._eligible.pool).sum())
        return self._nodes[key]


def continues_on_nodes(demand: Demand) -> bool:
    """True for a recovery that still holds nodes: its queue's quota already counts them."""
    return demand.recovers and bool(demand.keeps)


def within_quota(quotas: Quotas, demand: Demand, gone: Iterable[Holding] = ()) -> bool:
    """True if the demand's queue may use that many GPUs more, now or after `gone` has left."""
    if continues_on_nodes(demand):
        return True
    freed: dict[str, int] = defaultdict(int)
    for holding in gone:
        freed[holding.queue] += holding.gpus
    status = quotas.status(demand.queue, demand.gpus, freed)
    return status is QuotaStatus.WITHIN or status is QuotaStatus.BORROWING
