"""What could never be placed: more than there is, even with nothing on it."""

from __future__ import annotations

from orchestrator.core.scheduling import topology
from orchestrator.core.scheduling.eligibility import Eligible
from orchestrator.core.scheduling.free_resources import Shape, could_fit, shape_of
from orchestrator.core.scheduling.node_table import NodeTable
from orchestrator.core.scheduling.quota import Quotas
from orchestrator.core.scheduling.types import Demand, accounted_gpus


class Ceilings:
    """The most that a gang can have, of nodes and of quota."""

    def __init__(self, rooms: NodeTable, quotas: Quotas, eligible: Eligible) -> None:
        self._rooms, self._quotas, self._eligible = rooms, quotas, eligible
        self._nodes: dict[tuple[Shape, str], tuple[int, int]] = {}
        self._pool = int(eligible.pool.sum())

    def exceeded_by(self, demand: Demand) -> str:
        """How a demand asks for more than there is; empty: it does not.

        Nothing that ends would make it fit, so it holds nobody up.
        """
        most = None if goes_on(demand) else self._quotas.most(demand.queue)
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

    def _most_nodes(self, demand: Demand) -> tuple[int, int]:
        """Nodes that fit when they are empty, in the best domain; those that are no spares."""
        key = shape_of(demand.need), demand.pack
        if key not in self._nodes:
            mask = could_fit(self._rooms, demand.need)
            most = topology.largest_domain(self._rooms, mask, demand.pack)
            self._nodes[key] = most, int((mask & ~self._eligible.pool).sum())
        return self._nodes[key]


def goes_on(demand: Demand) -> bool:
    """A recovery that has nodes still: what it had, its queue's quota was charged for already."""
    return demand.recovers and bool(demand.keeps)
