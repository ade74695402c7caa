"""The nodes that preemption could free, as columns, and who may take which of them.

A unit is what leaves together: one node of a run's surplus, or all nodes that the run cannot go
without. Columns let a search test any subset of units in one operation over all nodes.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections import defaultdict
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from orchestrator.core.scheduling.free_resources import shape_of
from orchestrator.core.scheduling.node_table import Indices, Mask, NodeTable
from orchestrator.core.scheduling.quota import Quotas
from orchestrator.core.scheduling.types import PRIORITY_RANK, Demand, Holding, accounted_gpus

REASONS = ("order", "priority", "surplus", "reclaim")
"""Why a unit may be taken (`Eviction.why`): an idle node of a run further back, a lower priority,
what a run has above its minimum, borrowed quota that its owner needs back."""
_ORDER, _PRIORITY, _SURPLUS, _RECLAIM = range(len(REASONS))


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """The units that one demand may preempt.

    Attributes:
        units: Numbers of the units.
        why: For each unit of the table, the index in `REASONS`; meaningless outside `units`.
        caps: Queue number → GPUs that the queue has borrowed; no more than these is taken back.
    """

    units: Indices
    why: NDArray[np.int8]
    caps: dict[int, int]


class Victims:
    """All units of one pass, by the runs that may preempt them.

    Args:
        table: The nodes.
        holdings: What every run holds.
        quotas: Use by queue; read whenever a question is asked.
        now: The moment of the pass.
    """

    def __init__(
        self, table: NodeTable, holdings: Iterable[Holding], quotas: Quotas, now: dt.datetime
    ) -> None:
        self._table, self._quotas, self._now = table, quotas, now
        # `order` may take idle nodes of a run that is not movable: it has no work to lose.
        self.held = [h for h in holdings if h.nodes and not h.leaving]
        self._nodes: dict[tuple[str, int], int] = defaultdict(int)
        """Number of preemptible nodes by queue ("": without quota) and rank of priority."""
        self._surplus: dict[tuple[str, int], int] = defaultdict(int)
        self._below: dict[tuple[str, int], int] = {}
        self._waiting_nodes: dict[str, int] = defaultdict(int)
        for holding in self.held:
            self._waiting_nodes[holding.run] += len(holding.nodes)
            if self._movable(holding):
                key = self.group(holding.queue), PRIORITY_RANK[holding.priority]
                self._nodes[key] += len(holding.nodes)
                self._surplus[key] += len(holding.surplus)

    def group(self, queue: str) -> str:
        """The queue itself if it has a quota; "" for all queues without one, which are alike."""
        return queue if self._quotas.limited(queue) else ""

    def _movable(self, holding: Holding) -> bool:
        return holding.movable and (holding.safe_until is None or holding.safe_until <= self._now)

    def at_most(self, demand: Demand, waiting: AbstractSet[str]) -> int:
        """Upper bound of the nodes that preemption could free for a demand; a cheap pre-check."""
        found = sum(self._waiting_nodes.get(run, 0) for run in waiting) if waiting else 0
        if not demand.may_preempt:
            return found
        own, rank = self._quotas.owns(demand.queue, demand.gpus), PRIORITY_RANK[demand.priority]
        group = self.group(demand.queue)
        found += self._lower("", rank) + (self._lower(group, rank) if group else 0)
        if own and self._quotas.of(demand.queue).cohort is not None:
            found += sum(self._nodes.get(("", r), 0) for r in range(rank + 1))
            for queue in self._quotas.borrowers(demand.queue):
                if found >= demand.nodes:
                    break
                found += sum(self._nodes.get((queue, r), 0) for r in range(4))
        return found

    def _lower(self, group: str, rank: int) -> int:
        """Nodes that a run of this rank may take from a group by priority, surplus included."""
        if (known := self._below.get((group, rank))) is None:
            known = sum(self._nodes.get((group, r), 0) for r in range(rank + 1, 4))
            known += self._surplus.get((group, rank), 0)
            self._below[group, rank] = known
        return known

    def options(self, demand: Demand, waiting: AbstractSet[str]) -> Options:
        """Every unit that may be preempted for a demand.

        Args:
            demand: The run that needs nodes.
            waiting: Runs behind it in the order that hold nodes while they wait for more.
        """
        columns = self.columns
        why = np.full(len(columns.holding), -1, dtype=np.int8)
        caps: dict[int, int] = {}
        if demand.may_preempt:
            caps = self._by_right(demand, why)
        for run in {*waiting, demand.run}:
            for number in columns.holdings_of.get(run, ()):
                units = columns.units_of(number)
                why[units] = -1 if run == demand.run else _ORDER
        why[~columns.alive] = -1
        return Options(np.flatnonzero(why >= 0), why, caps)

    def _by_right(self, demand: Demand, why: NDArray[np.int8]) -> dict[int, int]:
        """Mark the units that the demand may take from running runs; returns the caps."""
        columns, quotas = self.columns, self._quotas
        rank = PRIORITY_RANK[demand.priority]
        own = columns.queue_number.get(demand.queue, -1)
        unlimited = columns.unlimited[columns.queue]
        reach = columns.movable & (unlimited | (columns.queue == own))
        why[reach & (columns.rank > rank)] = _PRIORITY
        why[reach & (columns.rank == rank) & columns.spare] = _SURPLUS
        if not quotas.owns(demand.queue, demand.gpus):
            return {}
        # A queue's own quota always comes back, whatever the priorities: from queues of its cohort
        # that have borrowed it, and from those that have no quota, all of whose use is borrowed.
        cohort = quotas.of(demand.queue).cohort
        caps, lent = {}, np.zeros(len(columns.unlimited), dtype=np.bool_)
        borrowers = quotas.borrowers(demand.queue)
        for queue, number in columns.queue_number.items():
            if queue in borrowers:
                caps[number] = borrowers[queue]
                lent[number] = True
            elif columns.unlimited[number] and cohort and quotas.of(queue).cohort == cohort:
                lent[number] = True
        taken = columns.movable & lent[columns.queue]
        why[taken & (why < 0)] = _RECLAIM
        return caps

    def take(self, units: Indices) -> None:
        """Drop what this pass has preempted. A run that shrinks can shrink further at no cost."""
        columns = self.columns
        for number in set(columns.holding[units].tolist()):
            own = columns.units_of(number)
            columns.alive[own[~columns.spare[own]]] = False
            columns.lost[own] = 0.0
        for number in set(columns.holding[units[~columns.spare[units]]].tolist()):
            columns.alive[columns.units_of(number)] = False
        columns.alive[units] = False

    @cached_property
    def columns(self) -> Columns:
        """The units as columns; made when a demand first needs them."""
        movable = [self._movable(holding) for holding in self.held]
        return Columns(self._table, self.held, movable, self._quotas)


class Columns:
    """Units and the workers of which they consist.

    Attributes:
        first: By holding, its first unit; one more at the end.
        holding, rank, lost, gpus, queue: By unit: number of its holding, rank of its priority, GPU
            seconds lost if the run stops, accounted GPUs that it frees, number of its queue.
        run_gpus: By unit, accounted GPUs of its whole run.
        spare: By unit, True for a node of a surplus.
        movable, alive: By unit, False: not to be touched, or taken already.
        unlimited: By queue number, True for a queue without quota.
        place, unit: By worker: node index and unit.
        need_gpus, need_cpus, need_memory: By holding: what one of its workers takes.
    """

    def __init__(
        self, table: NodeTable, held: Sequence[Holding], movable: Sequence[bool], quotas: Quotas
    ) -> None:
        self.holdings_of: dict[str, list[int]] = defaultdict(list)
        self.queue_number: dict[str, int] = {}
        units: list[tuple[int, bool, int]] = []  # number of the holding, is it surplus, position
        sizes: list[int] = []
        places: list[int] = []
        first: list[int] = []
        index = table.index
        for number, holding in enumerate(held):
            self.holdings_of[holding.run].append(number)
            self.queue_number.setdefault(holding.queue, len(self.queue_number))
            first.append(len(units))
            for position, group in enumerate(_units(holding)):
                spare = position < len(holding.surplus)
                units.append((number, spare, position))
                sizes.append(len(group))
                places += [index.get(node, -1) for node in group]
        listed = np.array(units, dtype=np.intp).reshape(-1, 3)
        self.first = np.array([*first, len(units)], dtype=np.intp)
        self.holding, self.spare = listed[:, 0], listed[:, 1].astype(np.bool_)
        self.position = listed[:, 2]
        self.size = np.array(sizes, dtype=np.intp)
        ranks = np.array([PRIORITY_RANK[h.priority] for h in held], dtype=np.intp)
        queues = np.array([self.queue_number[h.queue] for h in held], dtype=np.intp)
        lost = np.array([h.lost_gpu_seconds for h in held], dtype=np.float64)
        accounted = np.array([accounted_gpus(h.need) for h in held], dtype=np.int64)
        self.rank, self.queue = ranks[self.holding], queues[self.holding]
        self.lost, self.gpus = lost[self.holding], accounted[self.holding] * self.size
        total = np.array([holding.gpus for holding in held], dtype=np.int64)
        self.run_gpus = total[self.holding]
        self.movable: Mask = np.array(movable, dtype=np.bool_)[self.holding]
        self.alive: Mask = np.ones(len(units), dtype=np.bool_)
        self.unlimited: Mask = np.array(
            [not quotas.limited(queue) for queue in self.queue_number], dtype=np.bool_
        )
        self.queues = list(self.queue_number)
        place, unit = np.array(places, dtype=np.intp), np.repeat(np.arange(len(units)), self.size)
        self.place, self.unit = place[place >= 0], unit[place >= 0]
        shapes = [shape_of(holding.need) for holding in held]
        self.need_gpus = np.array([shape[0] for shape in shapes], dtype=np.int64)
        self.need_cpus = np.array([shape[1] for shape in shapes], dtype=np.float64)
        self.need_memory = np.array([shape[2] for shape in shapes], dtype=np.float64)
        names = np.argsort(np.argsort(np.array([h.run for h in held])), kind="stable")
        self._name = names[self.holding] if len(held) else self.holding

    def units_of(self, number: int) -> Indices:
        """The units of a holding."""
        found: Indices = np.arange(self.first[number], self.first[number + 1])
        return found

    def in_order(self, units: Indices, cost: NDArray[np.float64]) -> Indices:
        """Sorted: lowest priority, surplus before required nodes, then by the cost of each unit."""
        keys = (
            self.position[units],
            self._name[units],
            cost[units],
            ~self.spare[units],
            -self.rank[units],
        )
        found: Indices = units[np.lexsort(keys)]
        return found


def _units(holding: Holding) -> Iterable[tuple[str, ...]]:
    """The groups of nodes that leave together; nodes of the surplus one by one, then the rest."""
    yield from ((node,) for node in holding.surplus)
    surplus = set(holding.surplus)
    rest = tuple(node for node in holding.nodes if node not in surplus)
    if rest:
        yield rest
