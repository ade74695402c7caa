"""The rules of preemption once more, in plain words, for a search over all subsets of victims."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence

from orchestrator.core.scheduling import Demand, Holding, Quota, Snapshot
from orchestrator.core.scheduling.quota import Quotas, QuotaStatus
from orchestrator.core.scheduling.types import PRIORITY_RANK, accounted_gpus

RACK = 3
"""Nodes of a rack in the snapshots that it judges."""


class Oracle:
    """What one demand may take from whom, and at what loss, without columns.

    A unit is (number of the holding, its nodes, True if it is surplus).
    """

    def __init__(self, snapshot: Snapshot, demand: Demand) -> None:
        self.snapshot, self.demand = snapshot, demand
        self.quotas = {quota.name: quota for quota in snapshot.quotas}
        self.units: list[tuple[int, tuple[str, ...], bool]] = []
        self.why: list[str] = []
        for number, holding in enumerate(snapshot.holdings):
            rest = tuple(node for node in holding.nodes if node not in holding.surplus)
            parts: list[tuple[tuple[str, ...], bool]]
            parts = [((node,), True) for node in holding.surplus]
            parts += [(rest, False)] if rest else []
            for nodes, surplus in parts:
                if (why := self._right(holding, surplus)) is not None:
                    self.units.append((number, nodes, surplus))
                    self.why.append(why)

    def _right(self, holding: Holding, surplus: bool) -> str | None:
        if holding.leaving or not holding.movable or not self.demand.may_preempt:
            return None
        theirs, own = PRIORITY_RANK[holding.priority], PRIORITY_RANK[self.demand.priority]
        limited = self.quotas.get(holding.queue, Quota(name="")).gpus is not None
        if holding.queue == self.demand.queue or not limited:
            if theirs > own:
                return "priority"
            if theirs == own and surplus:
                return "surplus"
        mine = self.quotas.get(self.demand.queue)
        if mine is None or mine.gpus is None or mine.cohort is None:
            return None
        within = self._used_now()[self.demand.queue] + self.demand.gpus <= mine.gpus
        other = self.quotas.get(holding.queue)
        if not within or other is None or other.cohort != mine.cohort:
            return None
        if not limited or (holding.queue != self.demand.queue and self.borrowed(holding.queue)):
            return "reclaim"
        return None

    def used(self, gone: Iterable[int]) -> Counter[str]:
        """GPUs by queue once these units, and who is leaving already, have left."""
        found: Counter[str] = Counter()
        for holding in self.snapshot.holdings:
            if not holding.leaving:
                found[holding.queue] += holding.gpus
        for unit in gone:
            holding = self.snapshot.holdings[self.units[unit][0]]
            found[holding.queue] -= len(self.units[unit][1]) * accounted_gpus(holding.need)
        return found

    def borrowed(self, queue: str) -> int:
        return max(0, self._used_now()[queue] - (self.quotas[queue].gpus or 0))

    def _used_now(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for holding in self.snapshot.holdings:
            found[holding.queue] += holding.gpus
        return found

    def closure(self, chosen: Iterable[int]) -> set[int]:
        """The units, and the surplus of the runs that stop."""
        stops = {self.units[unit][0] for unit in chosen if not self.units[unit][2]}
        return {*chosen, *(i for i, unit in enumerate(self.units) if unit[0] in stops)}

    def allowed(self, chosen: Iterable[int]) -> bool:
        """No queue gives back more than it has borrowed, but for its largest part as a whole."""
        chosen = list(chosen)
        stops = {self.units[unit][0] for unit in chosen if not self.units[unit][2]}
        given: dict[str, dict[object, int]] = {}
        for unit in chosen:
            number, nodes, _ = self.units[unit]
            holding = self.snapshot.holdings[number]
            quota = self.quotas.get(holding.queue)
            if self.why[unit] == "reclaim" and quota is not None and quota.gpus is not None:
                gpus = len(nodes) * accounted_gpus(holding.need)
                key, part = (("run", number), holding.gpus) if number in stops else (unit, gpus)
                given.setdefault(holding.queue, {})[key] = part
        return all(
            sum(each.values()) - max(each.values()) < self.borrowed(queue)
            for queue, each in given.items()
        )

    def suffices(self, chosen: Iterable[int]) -> bool:
        chosen = self.closure(list(chosen))
        free = {name: [8, 64.0, 0] for name in self.snapshot.table.names}
        left = [(self.units[unit][0], node) for unit in chosen for node in self.units[unit][1]]
        for number, holding in enumerate(self.snapshot.holdings):
            for node in holding.nodes:
                if not holding.leaving and (number, node) not in left:
                    free[node][0] -= holding.need.gpus_per_node
                    free[node][1] -= holding.need.cpus_per_node
                    free[node][2] += 1
        need = self.demand.need
        fitting = [
            node
            for node, (gpus, cpus, _) in free.items()
            if gpus >= need.gpus_per_node and cpus >= need.cpus_per_node
        ]
        idle = {node for node, (_, _, tenants) in free.items() if tenants == 0}
        spares = 0 if self.demand.recovers else self.snapshot.spares
        racks = Counter(int(node[1:]) // RACK for node in fitting)
        enough = len(fitting) - max(0, len(idle.intersection(fitting)) - max(0, len(idle) - spares))
        if enough < self.demand.nodes:
            return False
        if self.demand.pack == "rack":
            best = 0
            for rack in racks:
                mine = [node for node in fitting if int(node[1:]) // RACK == rack]
                most = max(0, len(idle) - spares)
                best = max(best, len(mine) - max(0, len(idle.intersection(mine)) - most))
            if best < self.demand.nodes:
                return False
        quotas = Quotas(self.snapshot.quotas)
        for queue, gpus in self.used(chosen).items():
            quotas.charge(queue, gpus)
        status = quotas.status(self.demand.queue, self.demand.gpus)
        return status in {QuotaStatus.WITHIN, QuotaStatus.BORROWING}

    def loss(self, chosen: Iterable[int]) -> tuple[float, ...]:
        """GPU seconds by priority, of runs that stop and of runs that shrink."""
        stops: dict[int, bool] = {}
        for unit in chosen:
            number, _, surplus = self.units[unit]
            stops[number] = stops.get(number, False) or not surplus
        sums = [0.0] * 8
        for number, stop in stops.items():
            holding = self.snapshot.holdings[number]
            sums[2 * PRIORITY_RANK[holding.priority] + (not stop)] += 1 + holding.lost_gpu_seconds
        return tuple(sums)

    def exact(self) -> tuple[float, ...] | None:
        """The smallest loss of all subsets; None: none suffices."""
        numbers = range(len(self.units))
        subsets = (
            some
            for count in range(len(self.units) + 1)
            for some in itertools.combinations(numbers, count)
        )
        losses = [self.loss(s) for s in subsets if self.allowed(s) and self.suffices(s)]
        return min(losses, default=None)

    def greedy(self) -> tuple[float, ...] | None:
        """The choice that was made before: two prefixes over the whole cluster, and single runs."""
        lumps = self._lumps()
        everything = [unit for lump in lumps for unit in lump]
        if not self.suffices(everything):
            return None
        prefixes = [self._prefix(order) for order in (lumps, sorted(lumps, key=self._density))]
        alone = [lump for lump in lumps if self.suffices(lump)]
        losses = [self.loss(some) for some in (*prefixes, *alone) if self.allowed(some)]
        return min(losses, default=None)

    def _lumps(self) -> list[tuple[int, ...]]:
        """Surplus and rest of each run; of borrowers the cheapest that return what was borrowed."""
        found: dict[tuple[int, bool], list[int]] = {}
        for i, (number, _, surplus) in enumerate(self.units):
            found.setdefault((number, surplus), []).append(i)
        lumps = sorted((tuple(lump) for lump in found.values()), key=self._by_loss)
        given: Counter[str] = Counter()
        kept = []
        for lump in lumps:
            holding = self.snapshot.holdings[self.units[lump[0]][0]]
            capped = self.why[lump[0]] == "reclaim" and self.quotas[holding.queue].gpus is not None
            if not capped or given[holding.queue] < self.borrowed(holding.queue):
                kept.append(lump)
            given[holding.queue] += self._nodes(lump) * accounted_gpus(holding.need)
        return kept

    def _nodes(self, lump: tuple[int, ...]) -> int:
        return sum(len(self.units[unit][1]) for unit in lump)

    def _by_loss(self, lump: tuple[int, ...]) -> tuple[object, ...]:
        number, _, surplus = self.units[lump[0]]
        holding = self.snapshot.holdings[number]
        return -PRIORITY_RANK[holding.priority], not surplus, holding.lost_gpu_seconds, holding.run

    def _density(self, lump: tuple[int, ...]) -> tuple[object, ...]:
        rank, rest, lost, run = self._by_loss(lump)
        assert isinstance(lost, float)
        return rank, rest, lost / self._nodes(lump), run

    def _prefix(self, order: Sequence[tuple[int, ...]]) -> list[int]:
        count = next(
            n for n in range(len(order) + 1) if self.suffices(u for lump in order[:n] for u in lump)
        )
        chosen = list(order[:count])
        for lump in reversed(order[:count]):
            without = [other for other in chosen if other != lump]
            if self.suffices(unit for other in without for unit in other):
                chosen = without
        return [unit for lump in chosen for unit in lump]
