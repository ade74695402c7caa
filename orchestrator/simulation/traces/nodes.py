"""Free GPUs of a pool, and the node choice for one gang."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection, Iterator, Sequence

Grant = tuple[int, int]
"""A node by index, and the number of its GPUs."""
Grants = tuple[Grant, ...]


class Nodes:
    """The nodes of one pool, indexed by their number of free GPUs.

    Attributes:
        sizes: GPUs of each node.
        largest: GPUs of the largest node.
        capacity: GPUs of all nodes.
        free: Free GPUs of each node.
        free_gpus: Free GPUs of all nodes.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = tuple(sizes)
        self.largest = max(self.sizes)
        self.capacity = sum(self.sizes)
        self.free = list(self.sizes)
        self.free_gpus = self.capacity
        self._by_free: list[list[int]] = [[] for _ in range(self.largest + 1)]
        self._idle: dict[int, list[int]] = {
            size: [] for size in sorted(set(self.sizes), reverse=True)
        }
        for node, size in enumerate(self.sizes):
            self._by_free[size].append(node)
            self._idle[size].append(node)

    def with_free(self, gpus: int) -> Sequence[int]:
        """Nodes with exactly `gpus` free GPUs, by index."""
        return self._by_free[gpus]

    def idle(self) -> Iterator[int]:
        """Yield idle nodes, the largest first, then by index."""
        for nodes in self._idle.values():
            yield from nodes

    def take(self, grants: Grants) -> None:
        """Occupy GPUs.

        Raises:
            ValueError: Some of them are not free.
        """
        for node, gpus in grants:
            self._change(node, -gpus)

    def give(self, grants: Grants) -> None:
        """Free GPUs.

        Raises:
            ValueError: Some of them are free already.
        """
        for node, gpus in grants:
            self._change(node, gpus)

    def has(self, grants: Grants) -> bool:
        """True if all these GPUs are free."""
        return all(self.free[node] >= gpus for node, gpus in grants)

    def _change(self, node: int, gpus: int) -> None:
        size, before = self.sizes[node], self.free[node]
        after = before + gpus
        if not 0 <= after <= size:
            raise ValueError(f"node {node} has {before} of {size} GPUs free; asked for {-gpus}")
        _remove(self._by_free[before], node)
        insort(self._by_free[after], node)
        if before == size:
            _remove(self._idle[size], node)
        if after == size:
            insort(self._idle[size], node)
        self.free[node] = after
        self.free_gpus += gpus


def _remove(ordered: list[int], node: int) -> None:
    del ordered[bisect_left(ordered, node)]


def best_fit(nodes: Nodes, gpus: int) -> Grants | None:
    """Choose the GPUs of a gang; None: it does not fit now.

    A gang that fits on one node goes to the node with the fewest sufficient free GPUs, so that
    large blocks stay whole. A larger gang takes idle nodes, the largest first, and puts the rest on
    one other node by best fit. Ties go to the lowest index.
    """
    if gpus > nodes.free_gpus:
        return None
    if gpus <= nodes.largest:
        return _on_one(tightest(nodes, gpus), gpus)
    whole, rest = whole_nodes(nodes, gpus)
    if rest == 0:
        return whole
    last = _on_one(tightest(nodes, rest, besides={node for node, _ in whole}), rest)
    return None if last is None else whole + last


def _on_one(node: int | None, gpus: int) -> Grants | None:
    return None if node is None else ((node, gpus),)


def tightest(nodes: Nodes, gpus: int, *, besides: Collection[int] = ()) -> int | None:
    """The node with the fewest sufficient free GPUs; None: there is none."""
    for free in range(gpus, nodes.largest + 1):
        for node in nodes.with_free(free):
            if node not in besides:
                return node
    return None


def whole_nodes(nodes: Nodes, gpus: int) -> tuple[Grants, int]:
    """Idle nodes that the gang fills completely, and the number of its GPUs left over."""
    whole: list[Grant] = []
    for node in nodes.idle():
        if gpus == 0:
            break
        if (size := nodes.sizes[node]) <= gpus:
            whole.append((node, size))
            gpus -= size
    return tuple(whole), gpus
