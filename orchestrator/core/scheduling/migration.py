"""A run that has nodes goes elsewhere with some of its gang, or with all of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from orchestrator.core.scheduling.eligibility import Eligible
from orchestrator.core.scheduling.free_resources import FreeResources
from orchestrator.core.scheduling.types import Demand


@dataclasses.dataclass(frozen=True, slots=True)
class Move:
    """Nodes that a run gets, and those it leaves."""

    to: tuple[str, ...]
    leaves: tuple[str, ...]


def away(board: FreeResources, eligible: Eligible, demand: Demand) -> Move | None:
    """Off as many of the nodes that it avoids as others can be had for, near those that stay."""
    for left in _fewer_and_fewer(demand.unwanted):
        stays = tuple(node for node in demand.keeps if node not in left)
        asks = dataclasses.replace(demand, nodes=demand.nodes + len(left), keeps=stays)
        allowed = eligible.allowed(board, asks)
        allowed[board.rooms.places((*demand.avoid, *left))] = False
        places = eligible.spot(board, asks, allowed)
        if places is not None:
            return Move(board.rooms.named(places), left)
    return None


def _fewer_and_fewer(nodes: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for count in range(len(nodes), 0, -1):
        yield nodes[:count]


def as_a_whole(board: FreeResources, eligible: Eligible, demand: Demand) -> Move | None:
    """All of a packed gang into another domain: there is no room near the nodes that it has.

    The nodes it leaves are not free before its agents have left them.
    """
    if not demand.keeps or demand.pack == "any":
        return None
    trial, rooms = board.copy(), board.rooms
    trial.give(rooms.places(demand.keeps), demand.need)
    gang = dataclasses.replace(demand, nodes=demand.gang, keeps=(), unwanted=())
    allowed = eligible.allowed(trial, gang)
    allowed[rooms.places(demand.avoid)] = False
    places = eligible.spot(trial, gang, allowed)
    if places is None:
        return None
    chosen = rooms.named(places)
    return Move(
        tuple(node for node in chosen if node not in demand.keeps),
        tuple(node for node in demand.keeps if node not in chosen),
    )
