"""What could never be placed: more than there is, even with nothing on it."""

from __future__ import annotations

from orchestrator.core.scheduling import topology
from orchestrator.core.scheduling.board import Shape, could_fit, shape_of
from orchestrator.core.scheduling.quota import Quotas
from orchestrator.core.scheduling.rooms import Rooms
from orchestrator.core.scheduling.terms import Demand, accounted_gpus


class Ceilings:
    """The most that a gang can have, of nodes and of quota."""

    def __init__(self, rooms: Rooms, quotas: Quotas) -> None:
        self._rooms, self._quotas = rooms, quotas
        self._nodes: dict[tuple[Shape, str], int] = {}

    def exceeded_by(self, demand: Demand) -> str:
        """How a demand asks for more than there is; empty: it does not.

        Nothing that ends would make it fit, so it holds nobody up.
        """
        most = self._quotas.most(demand.queue)
        if most is not None and demand.gang * accounted_gpus(demand.need) > most:
            return f"queue {demand.queue} may use {most} GPUs at most"
        nodes = self._most_nodes(demand)
        if nodes >= demand.gang:
            return ""
        where = "the cluster has" if demand.pack == "any" else f"one {demand.pack} has"
        return f"{where} {nodes} nodes that fit, even empty"

    def _most_nodes(self, demand: Demand) -> int:
        """Nodes that fit when they are empty, in the best domain."""
        key = shape_of(demand.need), demand.pack
        if key not in self._nodes:
            mask = could_fit(self._rooms, demand.need)
            self._nodes[key] = topology.largest_domain(self._rooms, mask, demand.pack)
        return self._nodes[key]
