"""Node choice by topology: the smallest domain that fits, by best fit, over the fewest blocks.

`tests/property/test_scheduling.py` compares it with an exact search on small clusters. Solvers stay
out of this path: their time limits would make plans depend on the wall clock.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from orchestrator.core.scheduling.free_resources import count_nodes
from orchestrator.core.scheduling.node_table import LEVELS, Indices, Mask, NodeTable

Order = NDArray[np.intp]


def allowed_levels(pack: str) -> tuple[str, ...]:
    """Levels whose single domain may hold the gang, the smallest first; `any` allows all levels."""
    smallest_first = tuple(reversed(LEVELS))
    return smallest_first if pack == "any" else smallest_first[: smallest_first.index(pack) + 1]


def choose(table: NodeTable, fits: Mask, count: int, pack: str, order: Order) -> Indices | None:
    """Choose `count` of the nodes that fit; None: no domain allowed by `pack` has `count` of them.

    Args:
        table: All nodes.
        fits: Nodes that may be used.
        count: Number of nodes to choose.
        pack: The largest level of which the gang may span one domain; `any`: no limit.
        order: Rank of each node: within the last block, smaller ranks are taken first.
    """
    candidates = np.flatnonzero(fits)
    if len(candidates) < count:
        return None
    for level in allowed_levels(pack):
        inside = _best_domain(table.domains[level][candidates], count)
        if inside is not None:
            return _fill(table, candidates[inside], count, LEVELS.index(level) + 1, order)
    return _fill(table, candidates, count, 0, order) if pack == "any" else None


def largest_domain(table: NodeTable, fits: Mask, pack: str) -> int:
    """Number of fitting nodes in the best domain of the level; for `any`, in the whole cluster."""
    if pack == "any" or not fits.any():
        return count_nodes(fits)
    return int(np.bincount(table.domains[pack][fits]).max())


def domains_around(table: NodeTable, places: Indices, pack: str) -> list[Mask]:
    """Masks of the domains that contain all of `places`, from the smallest level to the largest."""
    near = []
    for level in allowed_levels(pack):
        domains = table.domains[level]
        if len(places) and (domains[places] == domains[places[0]]).all():
            near.append(domains == domains[places[0]])
    return near


def same_domain(table: NodeTable, places: Indices, pack: str) -> Mask:
    """Nodes in the same domain of level `pack` as the first of `places`."""
    domains = table.domains[pack]
    mask: Mask = domains == domains[places[0]]
    return mask


def _best_domain(domains: Indices, count: int) -> Mask | None:
    """The smallest domain with `count` nodes (best fit keeps large domains whole); None: none."""
    return _smallest(domains, count) if np.bincount(domains).max() >= count else None


def _smallest(domains: Indices, count: int) -> Mask:
    """The smallest domain with `count` nodes. The caller knows that one exists."""
    sizes = np.bincount(domains)
    enough = np.flatnonzero(sizes >= count)
    best: Mask = domains == enough[np.argmin(sizes[enough])]
    return best


def _fill(table: NodeTable, candidates: Indices, count: int, depth: int, order: Order) -> Indices:
    """Take the largest blocks completely, and the rest from the smallest block that suffices."""
    if depth == len(LEVELS):
        return candidates[np.argsort(order[candidates], kind="stable")[:count]]
    domains = table.domains[LEVELS[depth]][candidates]
    sizes = np.bincount(domains)
    largest_first = np.argsort(-sizes, kind="stable")
    filled = np.cumsum(sizes[largest_first])
    whole = int(np.searchsorted(filled, count))  # number of blocks that are taken completely
    rank = np.empty(len(sizes), dtype=np.intp)
    rank[largest_first] = np.arange(len(sizes))
    taken = candidates[rank[domains] < whole]
    count -= len(taken)
    left = rank[domains] >= whole
    candidates, domains = candidates[left], domains[left]
    inside = _smallest(domains, count)  # exists: the next block in size order has `count` nodes
    return np.concatenate([taken, _fill(table, candidates[inside], count, depth + 1, order)])
