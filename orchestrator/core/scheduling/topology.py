"""Where a gang goes: the smallest domain that fits, by best fit, over as few blocks as can be.

Compared with an exact search on small clusters in `tests/property/test_scheduling.py`; solvers stay
out of the path, as their time limits would make answers depend on the wall clock.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from orchestrator.core.scheduling.node_table import LEVELS, Indices, Mask, NodeTable

Order = NDArray[np.intp]


def allowed_levels(pack: str) -> tuple[str, ...]:
    """Levels a gang may fill one domain of, the smallest first; `any` allows all."""
    smallest_first = tuple(reversed(LEVELS))
    return smallest_first if pack == "any" else smallest_first[: smallest_first.index(pack) + 1]


def choose(rooms: NodeTable, fits: Mask, count: int, pack: str, order: Order) -> Indices | None:
    """`count` of the nodes that fit; None: there is no place.

    Args:
        rooms: All nodes.
        fits: Those that may be used.
        count: How many.
        pack: The largest domain that the gang may span.
        order: Rank of each node: within the last block, smaller ranks are taken first.
    """
    candidates = np.flatnonzero(fits)
    if len(candidates) < count:
        return None
    for level in allowed_levels(pack):
        inside = _best_domain(rooms.domains[level][candidates], count)
        if inside is not None:
            return _fill(rooms, candidates[inside], count, LEVELS.index(level) + 1, order)
    return _fill(rooms, candidates, count, 0, order) if pack == "any" else None


def largest_domain(rooms: NodeTable, fits: Mask, pack: str) -> int:
    """How many nodes that fit lie in the best domain of the level; `any`: how many there are."""
    if pack == "any" or not fits.any():
        return int(fits.sum())
    return int(np.bincount(rooms.domains[pack][fits]).max())


def beside(rooms: NodeTable, places: Indices, pack: str) -> list[Mask]:
    """Nodes near these: in the smallest domain that holds them all, then in each larger one."""
    near = []
    for level in allowed_levels(pack):
        domains = rooms.domains[level]
        if len(places) and (domains[places] == domains[places[0]]).all():
            near.append(domains == domains[places[0]])
    return near


def within(rooms: NodeTable, places: Indices, pack: str) -> Mask:
    """Nodes that a gang with some nodes already may add, by its domain of the level."""
    domains = rooms.domains[pack]
    mask: Mask = domains == domains[places[0]]
    return mask


def _best_domain(domains: Indices, count: int) -> Mask | None:
    """The nodes of the domain with the fewest that still suffice, so that large ones stay whole."""
    return _smallest(domains, count) if np.bincount(domains).max() >= count else None


def _smallest(domains: Indices, count: int) -> Mask:
    """The same, where some domain has so many."""
    sizes = np.bincount(domains)
    enough = np.flatnonzero(sizes >= count)
    best: Mask = domains == enough[np.argmin(sizes[enough])]
    return best


def _fill(rooms: NodeTable, candidates: Indices, count: int, depth: int, order: Order) -> Indices:
    """Take the largest blocks whole, and the rest from the smallest block that has it."""
    if depth == len(LEVELS):
        return candidates[np.argsort(order[candidates], kind="stable")[:count]]
    domains = rooms.domains[LEVELS[depth]][candidates]
    sizes = np.bincount(domains)
    largest_first = np.argsort(-sizes, kind="stable")
    filled = np.cumsum(sizes[largest_first])
    whole = int(np.searchsorted(filled, count))  # so many blocks are taken whole
    rank = np.empty(len(sizes), dtype=np.intp)
    rank[largest_first] = np.arange(len(sizes))
    taken = candidates[rank[domains] < whole]
    count -= len(taken)
    left = rank[domains] >= whole
    candidates, domains = candidates[left], domains[left]
    inside = _smallest(domains, count)  # the next largest has them
    return np.concatenate([taken, _fill(rooms, candidates[inside], count, depth + 1, order)])
