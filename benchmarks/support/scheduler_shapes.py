"""Snapshots at which a scheduling pass is most expensive, at any size.

Each comes from a report on how the scheduler of somebody's cluster slowed down, or from a review of
this one: very many queues or shapes, elastic fleets, packed gangs that need a whole domain, and
gangs for which thousands of runs leave. Racks have 16 nodes, spines 256; a size is a number of
nodes, and running and waiting runs are in proportion to it.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import random
from collections.abc import Callable
from typing import Any

from jobs.spec import Priority, Resources
from orchestrator.core.scheduling import (
    Demand,
    Holding,
    NodeCapacity,
    NodeTable,
    Quota,
    Snapshot,
)

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
SIZES = (1, 2, 4, 8, 16)
"""Nodes of the waiting runs where a shape does not say otherwise."""
_LOW, _HIGH = Priority.LOW, Priority.HIGH


class Shapes:
    """Snapshots of clusters of `nodes` nodes, from one seed."""

    def __init__(self, nodes: int, seed: int = 1) -> None:
        self.nodes, self._random = nodes, random.Random(seed)
        self._pending = nodes // 2

    def all(self) -> dict[str, Callable[[], Snapshot]]:
        """Every shape by its name."""
        return {
            "one shape": self.base,
            "queues in 10 cohorts": lambda: self.queues(10),
            "queues in one cohort": lambda: self.queues(1),
            "half of the queues take back": self.reclaim,
            "all shapes differ, nobody can leave": lambda: self.shapes(Priority.CRITICAL),
            "all shapes differ, mixed priorities": lambda: self.shapes(None),
            "all shapes differ, all in vain": self.in_vain,
            "elastic packed runs grow": self.growth,
            "packed recoveries": self.recoveries,
            "half of all nodes for one gang, rigid": lambda: self.gangs(0.5, 1, elastic=False),
            "elastic, four gangs of a fifth": lambda: self.gangs(0.2, 4, elastic=True),
            "elastic, one gang of four fifths": lambda: self.gangs(0.8, 1, elastic=True),
            "elastic, a whole spine": lambda: self.spine(1, elastic=True),
            "rigid, a whole spine": lambda: self.spine(1),
            "rigid, four whole spines": lambda: self.spine(4),
            "one-node runs, a whole spine": lambda: self.spine(1, per=1),
            "one-node runs, four whole spines": lambda: self.spine(4, per=1),
        }

    def base(self) -> Snapshot:
        """All nodes busy, runs of one shape and all priorities wait."""
        table, holdings = self._fleet(5)
        return Snapshot(table=table, holdings=holdings, demands=self._waiting())

    def queues(self, cohorts: int) -> Snapshot:
        """500 queues (at full size) with quotas that are all in use."""
        quotas = self._quotas(cohorts)
        table, holdings = self._fleet(5, queue=lambda i: f"q{i % len(quotas)}")
        return Snapshot(table=table, holdings=holdings, quotas=quotas, demands=self._queued(quotas))

    def reclaim(self) -> Snapshot:
        """One half of the queues has borrowed all that the other half wants back."""
        quotas = self._quotas(1)
        half = len(quotas) // 2
        table, holdings = self._fleet(5, queue=lambda i: f"q{i % half}")
        demands = self._queued(quotas[half:])
        return Snapshot(table=table, holdings=holdings, quotas=quotas, demands=demands)

    def shapes(self, priority: Priority | None) -> Snapshot:
        """No two waiting runs are alike."""
        table, holdings = self._fleet(5, priority=priority)
        return Snapshot(
            table=table,
            holdings=holdings,
            demands=[
                self._demand(i, self._random.choice(SIZES[:4]), memory=10**9 + i)
                for i in range(self._pending)
            ],
        )

    def in_vain(self) -> Snapshot:
        """Urgent gangs that each need a rack, no two alike; in every rack one run stays."""
        table, holdings = self._fleet(4, priority=_LOW)
        held = [
            dataclasses.replace(holding, priority=Priority.CRITICAL) if i % 4 == 0 else holding
            for i, holding in enumerate(holdings)
        ]
        demands = [
            self._demand(i, 16, memory=10**9 + i, priority=_HIGH, pack="rack")
            for i in range(self._pending)
        ]
        return Snapshot(table=table, holdings=held, demands=demands)

    def growth(self) -> Snapshot:
        """Elastic runs, each within a rack, that could grow; a sixth of the nodes is idle."""
        table, holdings = self._fleet(5, busy=5 / 6, pack="rack", wants=3, priority=Priority.NORMAL)
        return Snapshot(table=table, holdings=holdings)

    def recoveries(self) -> Snapshot:
        """Each rack has lost a node, and no node is free."""
        _, holdings = self._fleet(16)
        lost = {holding.nodes[-1] for holding in holdings if len(holding.nodes) == 16}
        kept = [
            dataclasses.replace(h, nodes=tuple(n for n in h.nodes if n not in lost), movable=False)
            for h in holdings
        ]
        demands = [
            Demand(
                run=h.run,
                name=h.run,
                need=h.need,
                nodes=1,
                keeps=h.nodes,
                recovers=True,
                priority=h.priority,
                submitted_at=NOW,
                pack="rack",
            )
            for h in kept
        ]
        left = NodeTable(_node(i) for i in range(self.nodes) if f"n{i:05}" not in lost)
        return Snapshot(table=left, holdings=kept, demands=demands)

    def gangs(self, share: float, count: int, *, elastic: bool) -> Snapshot:
        """Urgent gangs, each of a share of all nodes, in a fleet of low priority."""
        table, holdings = self._low_fleet(5, elastic=elastic)
        nodes = int(self.nodes * share)
        demands = [self._demand(i, nodes, priority=_HIGH) for i in range(count)]
        return Snapshot(table=table, holdings=holdings, demands=demands)

    def spine(self, count: int, *, elastic: bool = False, per: int = 5) -> Snapshot:
        """Urgent gangs that each need a whole spine, in a fleet of low priority."""
        table, holdings = self._low_fleet(per, elastic=elastic)
        size = min(256, self.nodes)
        demands = [self._demand(i, size, priority=_HIGH, pack="spine") for i in range(count)]
        return Snapshot(table=table, holdings=holdings, demands=demands)

    def _quotas(self, cohorts: int) -> list[Quota]:
        count = max(4, self.nodes // 20)
        return [Quota(name=f"q{i}", gpus=160, cohort=f"c{i % cohorts}") for i in range(count)]

    def _queued(self, quotas: list[Quota]) -> list[Demand]:
        return [
            self._demand(i, self._random.choice(SIZES), queue=self._random.choice(quotas).name)
            for i in range(self._pending)
        ]

    def _waiting(self) -> list[Demand]:
        return [self._demand(i, self._random.choice(SIZES)) for i in range(self._pending)]

    def _low_fleet(self, per: int, *, elastic: bool) -> tuple[NodeTable, list[Holding]]:
        table, holdings = self._fleet(per, priority=_LOW)
        if elastic:
            holdings = [dataclasses.replace(h, surplus=h.nodes[1:]) for h in holdings]
        return table, holdings

    def _fleet(
        self,
        per: int,
        *,
        busy: float = 1.0,
        priority: Priority | None = None,
        queue: Callable[[int], str] = lambda _: "default",
        **fields: Any,
    ) -> tuple[NodeTable, list[Holding]]:
        """Nodes, and runs of `per` nodes side by side on them."""
        table = NodeTable(_node(i) for i in range(self.nodes))
        names = table.names[: int(self.nodes * busy)]
        holdings = []
        for number, first in enumerate(range(0, len(names), per)):
            nodes = names[first : first + per]
            holdings.append(
                Holding(
                    run=f"r{number:05}",
                    need=Resources(nodes=len(nodes), gpus_per_node=8, cpus_per_node=64),
                    nodes=nodes,
                    queue=queue(number),
                    priority=priority or self._random.choice(list(Priority)),
                    lost_gpu_seconds=self._random.random() * 1e5,
                    **fields,
                )
            )
        return table, holdings

    def _demand(self, i: int, nodes: int, memory: int = 0, **fields: Any) -> Demand:
        fields.setdefault("priority", self._random.choice(list(Priority)))
        need = Resources(nodes=nodes, gpus_per_node=8, cpus_per_node=64, memory_per_node=memory)
        return Demand(
            run=f"w{i:05}",
            name=f"w{i}",
            need=need,
            nodes=nodes,
            submitted_at=NOW - dt.timedelta(seconds=self._random.randrange(86_400)),
            **fields,
        )


def _node(i: int) -> NodeCapacity:
    labels = {"zone": str(i // 4096), "spine": str(i // 256), "rack": str(i // 16)}
    return NodeCapacity(node=f"n{i:05}", gpus=8, cpus=128, memory=2**40, labels=labels)
