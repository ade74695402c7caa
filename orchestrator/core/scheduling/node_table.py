"""The nodes that take work, in columns: what each has, where it lies, when it is maintained."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterable, Mapping
from typing import Self

import numpy as np
from numpy.typing import NDArray

LEVELS = ("zone", "spine", "rack", "nvlink")
"""Topology domains, the largest first; each lies within the one before it."""
Mask = NDArray[np.bool_]
Indices = NDArray[np.intp]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NodeCapacity:
    """One node, as it would be with nothing on it."""

    node: str
    gpus: int = 0
    cpus: float = 1
    memory: int | None = None
    """Bytes; None: not accounted."""
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Topology, by the names of `LEVELS`; a label that is missing counts as one domain."""
    window: dt.datetime | None = None
    """When its next planned maintenance begins."""


class NodeTable:
    """Nodes by index.

    Attributes:
        names: By index, in the order of their names.
        index: Name → index.
        gpus, cpus, memory: What each has; memory is infinite where it is not accounted.
        domains: Level → number of each node's domain, from 0.
        window: Unix time at which the next maintenance begins; infinite: none is planned.
    """

    def __init__(self, rooms: Iterable[NodeCapacity]) -> None:
        ordered = sorted(rooms, key=lambda room: room.node)
        self.names = tuple(room.node for room in ordered)
        self.index = {name: i for i, name in enumerate(self.names)}
        self.gpus = np.array([room.gpus for room in ordered], dtype=np.int64)
        self.cpus = np.array([room.cpus for room in ordered], dtype=np.float64)
        self.memory = np.array(
            [np.inf if room.memory is None else room.memory for room in ordered], dtype=np.float64
        )
        self.window = np.array(
            [np.inf if room.window is None else room.window.timestamp() for room in ordered],
            dtype=np.float64,
        )
        paths = [tuple(room.labels.get(level, "") for level in LEVELS) for room in ordered]
        self.domains = {
            level: _numbered(path[: depth + 1] for path in paths)
            for depth, level in enumerate(LEVELS)
        }

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def none(cls) -> Self:
        """No nodes."""
        return cls(())

    def places(self, nodes: Iterable[str]) -> Indices:
        """Indices of those nodes that are among these."""
        found = [self.index[node] for node in nodes if node in self.index]
        return np.array(found, dtype=np.intp)

    def named(self, places: Indices) -> tuple[str, ...]:
        """Names of nodes."""
        return tuple(self.names[i] for i in places.tolist())


def _numbered(keys: Iterable[tuple[str, ...]]) -> NDArray[np.intp]:
    """Equal keys, equal numbers; the numbers follow the order of the keys."""
    listed = list(keys)
    numbers = {key: number for number, key in enumerate(sorted(set(listed)))}
    return np.array([numbers[key] for key in listed], dtype=np.intp)
