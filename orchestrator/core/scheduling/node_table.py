"""The schedulable nodes as columns: capacity, topology and next maintenance of each."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterable, Mapping
from typing import Self

import numpy as np
from numpy.typing import NDArray

LEVELS = ("zone", "spine", "rack", "nvlink")
"""Topology levels, the largest first; every domain lies within one of the level before it."""
Mask = NDArray[np.bool_]
Indices = NDArray[np.intp]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NodeCapacity:
    """The total resources of one node, regardless of its workers."""

    node: str
    gpus: int = 0
    cpus: float = 1
    memory: int | None = None
    """Bytes; None: memory is not accounted on this node, so any need fits."""
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Topology by the names of `LEVELS`; nodes without a label share one domain of that level."""
    window: dt.datetime | None = None
    """Begin of the next planned maintenance; None: none is planned."""
    away: bool = False
    """True if the node takes no work now, but is expected back: it drains, reboots, is cordoned."""
    returns_at: dt.datetime | None = None
    """When an away node is expected back; None: unknown."""
    counts_until: dt.datetime | None = None
    """When an away node stops being expected back; None: it takes work now."""


class NodeTable:
    """Nodes by index, in the order of their names. Immutable once built.

    Attributes:
        names: Names by index.
        index: Name → index.
        gpus, cpus, memory: Total resources; memory in bytes, infinite where it is not accounted.
        kinds: The distinct totals (GPUs, CPUs, bytes) of nodes.
        kind_of: Number of the kind of each node.
        domains: Level → domain number of each node, from 0.
        window: Unix time at which the next maintenance begins; infinite: none is planned.
        away: Nodes that take no work now, but are expected back.
        returns: Unix time at which an away node is expected back; infinite: unknown.
        away_until: Unix time at which the first away node stops being expected back; infinite: no
            node is away.
    """

    def __init__(self, nodes: Iterable[NodeCapacity]) -> None:
        ordered = sorted(nodes, key=lambda node: node.node)
        self.names = tuple(node.node for node in ordered)
        self.index = {name: i for i, name in enumerate(self.names)}
        self.gpus = np.array([node.gpus for node in ordered], dtype=np.int64)
        self.cpus = np.array([node.cpus for node in ordered], dtype=np.float64)
        self.memory = np.array(
            [np.inf if node.memory is None else node.memory for node in ordered], dtype=np.float64
        )
        self.window = np.array(
            [np.inf if node.window is None else node.window.timestamp() for node in ordered],
            dtype=np.float64,
        )
        totals = list(
            zip(self.gpus.tolist(), self.cpus.tolist(), self.memory.tolist(), strict=True)
        )
        number_of = {kind: number for number, kind in enumerate(sorted(set(totals)))}
        self.kinds = tuple(number_of)
        self.kind_of = np.array([number_of[kind] for kind in totals], dtype=np.intp)
        self.away: Mask = np.array([node.away for node in ordered], dtype=np.bool_)
        self.returns = np.array(
            [np.inf if n.returns_at is None else n.returns_at.timestamp() for n in ordered],
            dtype=np.float64,
        )
        self.away_until = min(
            (n.counts_until.timestamp() for n in ordered if n.counts_until is not None),
            default=float("inf"),
        )
        paths = [tuple(node.labels.get(level, "") for level in LEVELS) for node in ordered]
        self.domains = {
            level: _numbered(path[: depth + 1] for path in paths)
            for depth, level in enumerate(LEVELS)
        }

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def none(cls) -> Self:
        """A table without nodes."""
        return cls(())

    def places(self, nodes: Iterable[str]) -> Indices:
        """Indices of the given nodes; names that are not in the table are left out."""
        found = [self.index[node] for node in nodes if node in self.index]
        return np.array(found, dtype=np.intp)

    def named(self, places: Indices) -> tuple[str, ...]:
        """Names of the nodes at these indices."""
        return tuple(self.names[i] for i in places.tolist())


def _numbered(keys: Iterable[tuple[str, ...]]) -> NDArray[np.intp]:
    """Number the keys so that equal keys share a number and numbers follow the sorted keys."""
    listed = list(keys)
    numbers = {key: number for number, key in enumerate(sorted(set(listed)))}
    return np.array([numbers[key] for key in listed], dtype=np.intp)
