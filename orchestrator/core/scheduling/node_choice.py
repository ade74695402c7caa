"""The choice of nodes for the missing workers of one gang among the eligible nodes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from orchestrator.core.scheduling import topology
from orchestrator.core.scheduling.free_resources import FreeResources, count_nodes
from orchestrator.core.scheduling.node_table import Indices, Mask
from orchestrator.core.scheduling.types import Demand


def choose_nodes(free: FreeResources, demand: Demand, allowed: Mask) -> Indices | None:
    """Choose nodes near the run's own and, where possible, none that it avoids; None: no fit.

    A gang of one worker goes to the fullest node already in use, so that idle nodes stay whole.
    """
    if count_nodes(allowed) < demand.nodes:
        return None
    order = free.tightest_first(demand.avoid)
    for mask in _preferred(free, demand, allowed):
        if demand.gang == 1 and (partly := np.flatnonzero(mask & ~free.idle())).size:
            fullest = int(np.argmin(order[partly]))  # share a used node: whole nodes stay free
            return partly[fullest : fullest + 1]
        places = topology.choose(free.table, mask, demand.nodes, demand.pack, order)
        if places is not None:
            return places
    return None


def _preferred(free: FreeResources, demand: Demand, allowed: Mask) -> Iterator[Mask]:
    """Masks of the nodes to try, the most preferred first."""
    table = free.table
    kept = table.places(demand.keeps)
    near = topology.domains_around(table, kept, demand.pack)
    gentle = allowed.copy()
    gentle[table.places(demand.avoid)] = False
    for mask in (gentle, allowed) if demand.avoid else (allowed,):
        for domain in near:
            yield mask & domain
        if not len(kept) or demand.pack == "any":
            yield mask
        else:
            yield mask & topology.same_domain(table, kept, demand.pack)
