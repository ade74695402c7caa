"""Reads nodes of the inventory from what Ray says of its nodes. Pure."""

from __future__ import annotations

import datetime as dt
import math
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from orchestrator.clusters import other_use
from orchestrator.clusters.ray.facts import PendingNode, RayNode, Snapshot
from orchestrator.core.messages.events import NodeInfo

CPU_STEP, MEMORY_STEP = 0.5, 256 * 2**20
"""Capacity is rounded down to these: small tasks of others come and go, and each change of the
inventory is an event."""
_NODE_ID = "ray.io/node-id"
PENDING = "pending"
"""First word of the reason of a node that the autoscaler has ordered."""


class NodeNames:
    """Which node of Ray has which name in babysit.

    Ray's own ids change with each start of a raylet, and say nothing to people: a node has the name
    that `ray start --node-name` gave it, or its address. Of several live nodes with one name all
    but the first get a part of their id; a node keeps its name while it lives.
    """

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        """Ray's id -> name."""

    def update(self, nodes: tuple[RayNode, ...]) -> None:
        """Name the nodes that are new, and forget those that are gone."""
        live = {node.id for node in nodes}
        self._names = {node: name for node, name in self._names.items() if node in live}
        shared = Counter(node.name for node in nodes)
        for node in sorted(nodes, key=lambda node: node.id):
            alone = shared[node.name] == 1 and node.name not in self._names.values()
            self._names.setdefault(node.id, node.name if alone else f"{node.name}-{node.id[:8]}")

    def of(self, node: str) -> str:
        """The name of a node of Ray."""
        return self._names[node]

    def find(self, name: str) -> str | None:
        """Ray's id of a node; None: there is none of this name."""
        return next((node for node, known in self._names.items() if known == name), None)

    def all(self) -> list[str]:
        """The names there are."""
        return sorted(self._names.values())


def chosen(seen: Snapshot, labels: Mapping[str, str]) -> Snapshot:
    """Leave out the live nodes that lack one of these labels."""
    nodes = (node for node in seen.nodes if labels.items() <= node.labels.items())
    return seen._replace(nodes=tuple(nodes))


def inventory(seen: Snapshot, names: NodeNames, topology: Mapping[str, str]) -> list[NodeInfo]:
    """The nodes that runs may use, by name, and those that are about to come.

    Args:
        seen: What Ray says.
        names: Names of the live nodes.
        topology: Level -> label of Ray that says where a node is at that level.
    """
    hosts = Counter(node.host for node in seen.nodes)
    live = [_live(node, names.of(node.id), hosts[node.host] > 1, topology) for node in seen.nodes]
    return sorted([*live, *map(_pending, seen.pending)], key=lambda node: node.id)


def _live(node: RayNode, name: str, shares: bool, topology: Mapping[str, str]) -> NodeInfo:
    own = {label: value for label, value in node.labels.items() if label != _NODE_ID}
    levels = {level: own[label] for level, label in topology.items() if label in own}

    whole, left = _rounded(node.total, {}), _rounded(node.total, node.others)
    return NodeInfo(
        id=name,
        gpus=left.gpus,
        cpus=left.cpus,
        memory=left.memory,
        used_by_others=other_use.in_words(
            whole.gpus - left.gpus, whole.cpus - left.cpus, whole.memory - left.memory
        ),
        host=node.host if shares else "",
        labels={**{label: value for label, value in own.items() if "/" not in label}, **levels},
        state="ready" if node.deadline is None else "draining",
        reason=_drained(node.deadline),
    )


class _Size(NamedTuple):
    gpus: int
    cpus: float
    memory: int


def _rounded(total: Mapping[str, float], less: Mapping[str, float]) -> _Size:
    """Resources of Ray in the inventory's units, without those of `less`."""

    def left(resource: str) -> float:
        return max(0.0, total.get(resource, 0.0) - less.get(resource, 0.0))

    return _Size(
        gpus=math.floor(left("GPU") + 1e-6),
        cpus=math.floor(left("CPU") / CPU_STEP + 1e-6) * CPU_STEP,
        memory=int(left("memory") // MEMORY_STEP * MEMORY_STEP),
    )


def _drained(deadline: int | None) -> str:
    if deadline is None:
        return ""
    if deadline <= 0:
        return "Ray drains the node"
    at = dt.datetime.fromtimestamp(deadline / 1000, tz=dt.UTC)
    return f"Ray drains the node, and ends it at {at:%Y-%m-%d %H:%M:%S} UTC"


def _pending(node: PendingNode) -> NodeInfo:
    return NodeInfo(
        id=f"{PENDING}-{node.id}",
        gpus=int(node.total.get("GPU", 0)),
        cpus=node.total.get("CPU", 0.0),
        memory=int(node.total.get("memory", 0)),
        state="cordoned",
        reason=f"{PENDING}: Ray's autoscaler has ordered it ({node.kind}): {node.status}",
    )
