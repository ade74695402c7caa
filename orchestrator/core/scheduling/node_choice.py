"""Where the missing nodes of one gang go, given which may be used."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from orchestrator.core.scheduling import topology
from orchestrator.core.scheduling.free_resources import FreeResources
from orchestrator.core.scheduling.node_table import Indices, Mask
from orchestrator.core.scheduling.types import Demand


def spot(board: FreeResources, demand: Demand, allowed: Mask) -> Indices | None:
    """Near what the run has, and away from what it avoids if there is elsewhere; None: nowhere."""
    if int(allowed.sum()) < demand.nodes:
        return None
    order = board.tightest_first(demand.avoid)
    for mask in _preferred(board, demand, allowed):
        if demand.gang == 1 and (partly := np.flatnonzero(mask & ~board.idle())).size:
            fullest = int(np.argmin(order[partly]))  # beside others, so that nodes stay whole
            return partly[fullest : fullest + 1]
        places = topology.choose(board.rooms, mask, demand.nodes, demand.pack, order)
        if places is not None:
            return places
    return None


def _preferred(board: FreeResources, demand: Demand, allowed: Mask) -> Iterator[Mask]:
    """What may be used, the best first."""
    rooms = board.rooms
    kept = rooms.places(demand.keeps)
    near = topology.beside(rooms, kept, demand.pack)
    gentle = allowed.copy()
    gentle[rooms.places(demand.avoid)] = False
    for mask in (gentle, allowed) if demand.avoid else (allowed,):
        for domain in near:
            yield mask & domain
        if not len(kept) or demand.pack == "any":
            yield mask
        else:
            yield mask & topology.within(rooms, kept, demand.pack)
