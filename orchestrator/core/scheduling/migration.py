"""Migration of a run that holds nodes: part of its gang, or the whole gang, to other nodes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from orchestrator.core.scheduling.eligibility import Eligible
from orchestrator.core.scheduling.free_resources import FreeResources
from orchestrator.core.scheduling.types import Demand


@dataclasses.dataclass(frozen=True, slots=True)
class Move:
    """The nodes that a run gets, and the nodes that it leaves for them."""

    to: tuple[str, ...]
    leaves: tuple[str, ...]


def off_avoided_nodes(free: FreeResources, eligible: Eligible, demand: Demand) -> Move | None:
    """Replace as many avoided nodes as possible by nodes near the rest; None: no node."""
    for left in _shrinking_prefixes(demand.unwanted):
        staying = tuple(node for node in demand.keeps if node not in left)
        request = dataclasses.replace(demand, nodes=demand.nodes + len(left), keeps=staying)
        allowed = eligible.allowed(free, request)
        allowed[free.table.places((*demand.avoid, *left))] = False
        places = eligible.choose_nodes(free, request, allowed)
        if places is not None:
            return Move(free.table.named(places), left)
    return None


def _shrinking_prefixes(nodes: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for count in range(len(nodes), 0, -1):
        yield nodes[:count]


def whole_gang(free: FreeResources, eligible: Eligible, demand: Demand) -> Move | None:
    """Move a packed gang into another domain when its own domain has no capacity for the rest.

    The nodes it leaves become free only after its agents have stopped. None: the gang is not
    packed, holds nothing, or fits no other domain.
    """
    if not demand.keeps or demand.pack == "any":
        return None
    trial, table = free.copy(), free.table
    trial.give(table.places(demand.keeps), demand.need)
    gang = dataclasses.replace(demand, nodes=demand.gang, keeps=(), unwanted=())
    allowed = eligible.allowed(trial, gang)
    allowed[table.places(demand.avoid)] = False
    places = eligible.choose_nodes(trial, gang, allowed)
    if places is None:
        return None
    chosen = table.named(places)
    return Move(
        tuple(node for node in chosen if node not in demand.keeps),
        tuple(node for node in demand.keeps if node not in chosen),
    )
