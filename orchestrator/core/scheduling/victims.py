"""The nodes that preemption could free, as columns, and who may take which of them.

A unit is what leaves together: one node of a run's surplus, or all nodes that the run cannot go
without. Columns let a search test any subset of units in one operation over all nodes.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections import defaultdict
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from orchestrator.core.scheduling.holding_table import HoldingTable
from orchestrator.core.scheduling.node_table import Indices, Mask
from orchestrator.core.scheduling.quota import Quotas, QuotaStatus
from orchestrator.core.scheduling.types import PRIORITY_RANK, Demand, Holding

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
        held: The holdings of all runs.
        quotas: Use by queue; read whenever a question is asked.
        now: The moment of the pass.
    """

    def __init__(self, held: HoldingTable, quotas: Quotas, now: dt.datetime) -> None:
        self._all, self._quotas = held, quotas
        # `order` may take idle nodes of a run that is not movable: it has no work to lose.
        self._rows = np.flatnonzero(held.staying)
        self.held = [held.holdings[row] for row in self._rows.tolist()]
        self._movable: Mask = np.array(
            [h.movable and (h.safe_until is None or h.safe_until <= now) for h in self.held],
            dtype=np.bool_,
        )
        self._nodes: dict[tuple[str, int], int] = defaultdict(int)
        """Number of preemptible nodes by queue ("": without quota) and rank of priority."""
        self._surplus: dict[tuple[str, int], int] = defaultdict(int)
        self._below: dict[tuple[str, int], int] = {}
        self._gpus: dict[tuple[str, int], int] = defaultdict(int)
        """Accounted GPUs of preemptible nodes by queue and rank, and those of a surplus."""
        self._surplus_gpus: dict[tuple[str, int], int] = defaultdict(int)
        groups: dict[str, str] = {}
        rows = zip(
            *(each[self._rows].tolist() for each in (held.size, held.rank, held.accounted)),
            self._movable.tolist(),
            strict=True,
        )
        for holding, (size, rank, each, movable) in zip(self.held, rows, strict=True):
            if not movable:
                continue
            if (group := groups.get(holding.queue)) is None:
                group = groups[holding.queue] = self.group(holding.queue)
            self._nodes[group, rank] += size
            self._gpus[group, rank] += size * each
            if holding.surplus:
                self._surplus[group, rank] += len(holding.surplus)
                self._surplus_gpus[group, rank] += len(holding.surplus) * each

    @cached_property
    def _waiting_nodes(self) -> dict[str, int]:
        """Nodes that each run holds; of interest for those that wait."""
        found: dict[str, int] = defaultdict(int)
        for holding in self.held:
            found[holding.run] += len(holding.nodes)
        return found

    def group(self, queue: str) -> str:
        """The queue itself if it has a quota; "" for all queues without one, which are alike."""
        return queue if self._quotas.limited(queue) else ""

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

    def free_too_little_quota(self, demand: Demand, left: Mapping[str, int]) -> bool:
        """True if the demand lacks quota even once all have left whom it may preempt by priority.

        A cheap check for the usual case: runs of a full queue that cannot take anything back.

        Args:
            demand: The run that needs nodes.
            left: GPUs by queue of the runs that are leaving already.
        """
        quotas, queue, rank = self._quotas, demand.queue, PRIORITY_RANK[demand.priority]
        if not quotas.limited(queue) or quotas.owns(queue, demand.gpus):
            return False
        lower = 0
        if demand.may_preempt:
            lower = sum(self._gpus.get((queue, r), 0) for r in range(rank + 1, 4))
            lower += self._surplus_gpus.get((queue, rank), 0)
        freed = {**left, queue: left.get(queue, 0) + lower}
        status = quotas.status(queue, demand.gpus, freed)
        return status is QuotaStatus.OVER or status is QuotaStatus.RECLAIMING

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
            for number in columns.holdings_of(run):
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
        return Columns(self._all, self._rows, self._movable, self._quotas)


class Columns:
    """Units and the workers of which they consist.

    Attributes:
        first: By holding, its first unit; one more at the end.
        holding, rank, lost, gpus, queue: By unit: number of its holding, rank of its priority, GPU
            seconds lost if the run stops, accounted GPUs that it frees, number of its queue.
            A recovery that leaves gives up the share of the quota for its missing nodes, too.
        run_gpus: By unit, accounted GPUs of its whole run.
        spare: By unit, True for a node of a surplus.
        movable, alive: By unit, False: not to be touched, or taken already.
        unlimited: By queue number, True for a queue without quota.
        place, unit: By worker: node index and unit.
        need_gpus, need_cpus, need_memory: By holding: what one of its workers takes.
    """

    def __init__(self, held: HoldingTable, rows: Indices, movable: Mask, quotas: Quotas) -> None:
        holdings = [held.holdings[row] for row in rows.tolist()]
        number: dict[str, int] = {}
        queues = [number.setdefault(h.queue, len(number)) for h in holdings]
        self.queue_number, self.queues = number, list(number)
        surplus = np.array([len(h.surplus) for h in holdings], dtype=np.intp)
        if surplus.any():
            names, sizes, counts = _units(holdings)
        else:  # most fleets: each run is one unit
            names = [node for holding in holdings for node in holding.nodes]
            sizes, counts = held.size[rows].tolist(), [1] * len(rows)
        units = np.arange(len(sizes))
        self.first = np.concatenate([[0], np.cumsum(counts)]).astype(np.intp)
        self.holding: Indices = np.repeat(np.arange(len(rows)), counts)
        self.position: Indices = units - self.first[self.holding]
        self.spare: Mask = self.position < surplus[self.holding]
        self.size = np.array(sizes, dtype=np.intp)
        accounted = held.accounted[rows]
        lost = np.array([h.lost_gpu_seconds for h in holdings], dtype=np.float64)
        self.rank = held.rank[rows][self.holding]
        self.queue = np.array(queues, dtype=np.intp)[self.holding]
        counted = np.array([h.gpus for h in holdings], dtype=np.int64)
        owed = (counted - accounted * held.size[rows])[self.holding] * ~self.spare
        self.lost, self.gpus = lost[self.holding], accounted[self.holding] * self.size + owed
        self.run_gpus = counted[self.holding]
        self.movable: Mask = movable[self.holding]
        self.alive: Mask = np.ones(len(units), dtype=np.bool_)
        self.unlimited: Mask = np.array(
            [not quotas.limited(queue) for queue in self.queues], dtype=np.bool_
        )
        at = held.table.index.get
        place = np.array([at(name, -1) for name in names], dtype=np.intp)
        unit = np.repeat(units, self.size)
        self.place, self.unit = place[place >= 0], unit[place >= 0]
        self.need_gpus, self.need_cpus = held.gpus[rows], held.cpus[rows]
        self.need_memory = held.memory[rows]
        self._runs = [holding.run for holding in holdings]

    def holdings_of(self, run: str) -> list[int]:
        """The holdings of a run, by number: two if it leaves a part of its nodes."""
        last = self._last.get(run)
        if last is None:
            return []
        if len(self._last) == len(self._runs):
            return [last]
        return [number for number, other in enumerate(self._runs) if other == run]

    @cached_property
    def _last(self) -> dict[str, int]:
        return {run: number for number, run in enumerate(self._runs)}

    @cached_property
    def _name(self) -> Indices:
        """By unit: rank of the id of its run."""
        ranks = np.empty(len(self._runs), dtype=np.intp)
        ranks[np.argsort(np.array(self._runs, dtype=np.str_))] = np.arange(len(self._runs))
        return ranks[self.holding]

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


def _units(holdings: Sequence[Holding]) -> tuple[list[str], list[int], list[int]]:
    """The groups of nodes that leave together; nodes of the surplus one by one, then the rest.

    Returns:
        The nodes of all groups, the size of each group, and the number of groups of each holding.
    """
    names: list[str] = []
    sizes: list[int] = []
    counts: list[int] = []
    for holding in holdings:
        nodes, alone = holding.nodes, len(holding.surplus)
        if alone:
            surplus = set(holding.surplus)
            names += holding.surplus
            sizes += [1] * alone
            nodes = tuple(node for node in nodes if node not in surplus)
        if nodes:
            names += nodes
            sizes.append(len(nodes))
        counts.append(alone + bool(nodes))
    return names, sizes, counts
