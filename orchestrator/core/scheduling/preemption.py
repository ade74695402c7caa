"""Preemption: which runs stop so that another one can start, at the lowest cost.

Candidates come from three rules: lower priority in the same queue or in queues without a quota
("priority"), borrowed quota that its owner needs back ("reclaim"), and nodes that a run further
back holds idle while it waits ("order"). Nothing is preempted unless the demand then fits
completely. The choice is a heuristic, not the optimum (:func:`select`).
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet

import numpy as np
from numpy.typing import NDArray

from orchestrator.core.scheduling.eligibility import Eligible
from orchestrator.core.scheduling.free_resources import FreeResources
from orchestrator.core.scheduling.node_table import Mask
from orchestrator.core.scheduling.quota import Quotas, QuotaStatus
from orchestrator.core.scheduling.types import (
    PRIORITY_RANK,
    Demand,
    Eviction,
    Holding,
    accounted_gpus,
)

MAX_SINGLE_VICTIMS = 8
"""Number of candidates, the cheapest first, that are tried as the only victim."""
Loss = tuple[float, ...]
"""GPU seconds lost by priority, the highest priority first; compared lexicographically."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Nodes of one run that preemption could free."""

    holding: Holding
    nodes: tuple[str, ...]
    why: str
    rest: bool = False
    """True for the required nodes of an elastic run; its surplus is a candidate of its own."""

    @property
    def gpus(self) -> int:
        """GPUs that it would free, at least one per node."""
        return len(self.nodes) * accounted_gpus(self.holding.need)

    @property
    def by_loss(self) -> tuple[object, ...]:
        """Sort key: lowest priority, then surplus before required nodes, then GPU seconds lost."""
        holding = self.holding
        return -PRIORITY_RANK[holding.priority], self.rest, holding.lost_gpu_seconds, holding.run

    @property
    def by_density(self) -> tuple[object, ...]:
        """Sort key: as `by_loss`, with GPU seconds lost per freed node."""
        holding, each = self.holding, self.holding.lost_gpu_seconds / len(self.nodes)
        return -PRIORITY_RANK[holding.priority], self.rest, each, holding.run


class PreemptionCandidates:
    """Held nodes, indexed by the runs that may preempt them."""

    def __init__(self, holdings: Iterable[Holding], quotas: Quotas) -> None:
        self._quotas = quotas
        self._of_run: dict[str, list[Holding]] = defaultdict(list)
        self._of_queue: dict[str, list[Holding]] = defaultdict(list)
        self._nodes: dict[tuple[str, int], int] = defaultdict(int)
        """Number of preemptible nodes by group of queues and rank of priority."""
        for holding in holdings:
            if holding.nodes and not holding.leaving:
                # `order` may take idle nodes of a run that is not movable: it has no work to lose.
                self._of_run[holding.run].append(holding)
                if holding.movable:
                    self._of_queue[holding.queue].append(holding)
                    self._count(holding, 1)

    def group(self, queue: str) -> str:
        """The queue itself if it has a quota; "" for all queues without one, which are alike."""
        return queue if self._quotas.limited(queue) else ""

    def remove(self, run: str) -> None:
        """Drop a run that this pass has preempted, so that it is not preempted twice."""
        for holding in self._of_run.pop(run, ()):
            if holding.movable:
                self._of_queue[holding.queue].remove(holding)
                self._count(holding, -1)

    def at_most(self, demand: Demand, waiting: AbstractSet[str]) -> int:
        """Upper bound of the nodes that preemption could free for a demand; a cheap pre-check."""
        found = sum(len(h.nodes) for run in waiting for h in self._of_run.get(run, ()))
        if demand.may_preempt:
            for group in {"", self.group(demand.queue)}:
                for rank in range(PRIORITY_RANK[demand.priority] + 1, len(PRIORITY_RANK)):
                    found += self._nodes.get((group, rank), 0)
            for queue in self._borrowers(demand):
                found += sum(len(holding.nodes) for holding in self._of_queue[queue])
        return found

    def candidates(self, demand: Demand, waiting: AbstractSet[str]) -> list[Candidate]:
        """Everything that may be preempted for a demand, the cheapest first.

        Args:
            demand: The run that needs nodes.
            waiting: Runs behind it in the order that hold nodes while they wait for more.
        """
        found = [
            Candidate(holding=holding, nodes=holding.nodes, why="order")
            for run in waiting
            if run != demand.run
            for holding in self._of_run.get(run, ())
        ]
        if demand.may_preempt:
            # Waiting runs are in `found` already, and a run never preempts itself.
            excluded, borrowers = waiting | {demand.run}, self._borrowers(demand)
            for queue, holdings in self._of_queue.items():
                movable = [holding for holding in holdings if holding.run not in excluded]
                if queue in borrowers:
                    found.extend(self._lent(queue, movable))
                elif queue == demand.queue or not self._quotas.limited(queue):
                    rank = PRIORITY_RANK[demand.priority]
                    lower = (h for h in movable if PRIORITY_RANK[h.priority] > rank)
                    found.extend(part for h in lower for part in _parts(h, "priority"))
        return sorted(found, key=lambda candidate: candidate.by_loss)

    def _borrowers(self, demand: Demand) -> set[str]:
        """Queues whose borrowed quota the demand's queue may reclaim now."""
        status = self._quotas.status(demand.queue, demand.gpus)
        if status not in {QuotaStatus.WITHIN, QuotaStatus.RECLAIMING}:
            return set()
        return self._quotas.borrowers(demand.queue)

    def _lent(self, queue: str, holdings: Iterable[Holding]) -> Iterator[Candidate]:
        """The cheapest parts of a queue's runs that return all that the queue has borrowed."""
        borrowed = self._quotas.borrowed(queue)
        parts = (part for holding in holdings for part in _parts(holding, "reclaim"))
        for part in sorted(parts, key=lambda candidate: candidate.by_loss):
            if borrowed <= 0:
                return
            yield part
            borrowed -= part.gpus

    def _count(self, holding: Holding, sign: int) -> None:
        key = self.group(holding.queue), PRIORITY_RANK[holding.priority]
        self._nodes[key] += sign * len(holding.nodes)


def _parts(holding: Holding, why: str) -> Iterator[Candidate]:
    if holding.surplus:
        yield Candidate(holding=holding, nodes=holding.surplus, why=why)
    rest = tuple(node for node in holding.nodes if node not in holding.surplus)
    if rest:
        yield Candidate(holding=holding, nodes=rest, why=why, rest=bool(holding.surplus))


class Trial:
    """Free resources and quotas on which candidates are removed hypothetically.

    Args:
        free: Free resources now. Modified: nodes of runs that already leave are added.
        quotas: Use by queue; modified during each check and restored afterwards.
        eligible: The rules about nodes that the demand may use.
        demand: The run that needs nodes.
        leaving: Holdings that become free without any further preemption.
        options: The candidates.
    """

    def __init__(
        self,
        free: FreeResources,
        quotas: Quotas,
        eligible: Eligible,
        demand: Demand,
        leaving: Sequence[Holding],
        options: Sequence[Candidate],
    ) -> None:
        self._quotas, self._demand, self._eligible = quotas, demand, eligible
        self.options = options
        for holding in leaving:
            free.give(free.table.places(holding.nodes), holding.need)
        self._free = free
        self._left = [(holding.queue, holding.gpus) for holding in leaving]
        self._columns = _Columns(free, options)

    @property
    def missing(self) -> int:
        """Nodes still missing without preemption; a single victim must free at least as many."""
        mask = self._eligible.usable_after_preemption(self._free, self._demand)
        return self._demand.nodes - self._eligible.usable_count(self._free, self._demand, mask)

    def free_after(self, chosen: Iterable[int]) -> FreeResources:
        """Free resources once the chosen candidates have left."""
        free = self._free.copy()
        self._columns.remove(free, self._mask(chosen))
        return free

    def suffices(self, chosen: Iterable[int]) -> bool:
        """True if the demand fits quota and nodes once the chosen candidates have left."""
        chosen = list(chosen)
        gone = [*self._left, *((self._option(i).queue, self.options[i].gpus) for i in chosen)]
        by_queue: dict[str, int] = defaultdict(int)
        for queue, gpus in gone:
            by_queue[queue] += gpus
        for queue, gpus in by_queue.items():
            self._quotas.charge(queue, -gpus)
        status = self._quotas.status(self._demand.queue, self._demand.gpus)
        for queue, gpus in by_queue.items():
            self._quotas.charge(queue, gpus)
        allowed = status in {QuotaStatus.WITHIN, QuotaStatus.BORROWING}
        return allowed and self._eligible.suffices(self.free_after(chosen), self._demand)

    def loss(self, chosen: Iterable[int]) -> Loss:
        """Cost of the chosen candidates, by priority.

        Each run also counts one GPU second, so that fewer victims win among free ones.
        """
        by_rank = [0.0] * len(PRIORITY_RANK)
        for run in {self._option(i).run: self._option(i) for i in chosen}.values():
            by_rank[PRIORITY_RANK[run.priority]] += 1.0 + run.lost_gpu_seconds
        return tuple(by_rank)

    def _option(self, number: int) -> Holding:
        return self.options[number].holding

    def _mask(self, chosen: Iterable[int]) -> Mask:
        mask = np.zeros(len(self.options), dtype=np.bool_)
        mask[list(chosen)] = True
        return mask


class _Columns:
    """The workers of all candidates as arrays, so that any subset is removed in one operation."""

    def __init__(self, free: FreeResources, options: Sequence[Candidate]) -> None:
        index = free.table.index
        workers = [
            (place, number)
            for number, option in enumerate(options)
            for node in option.nodes
            if (place := index.get(node)) is not None
        ]
        table = np.array(workers, dtype=np.intp).reshape(-1, 2)
        self._places, self._owner = table[:, 0], table[:, 1]
        needs = [option.holding.need for option in options]
        self._gpus = np.array([need.gpus_per_node for need in needs], dtype=np.int64)
        self._cpus = np.array([need.cpus_per_node for need in needs], dtype=np.float64)
        self._memory = np.array([need.memory_per_node for need in needs], dtype=np.float64)

    def remove(self, free: FreeResources, chosen: Mask) -> None:
        """Remove the workers of the chosen candidates from `free`."""
        here: NDArray[np.bool_] = chosen[self._owner]
        places, owner = self._places[here], self._owner[here]
        np.add.at(free.gpus, places, self._gpus[owner])
        np.add.at(free.cpus, places, self._cpus[owner])
        np.add.at(free.memory, places, self._memory[owner])
        np.add.at(free.tenants, places, -1)


def select(trial: Trial) -> list[int] | None:
    """A cheap sufficient subset of the candidates, by index; None: even all do not suffice.

    The exact optimum is a knapsack problem. The function compares the shortest sufficient prefix by
    loss, the shortest by loss per node, both without unneeded members, and the cheapest single
    candidates that suffice alone.
    """
    everyone = range(len(trial.options))
    # If even all candidates do not suffice, no subset does.
    if not trial.suffices(everyone):
        return None
    if trial.suffices(()):
        return []
    by_density = sorted(everyone, key=lambda i: trial.options[i].by_density)
    best = min((_prefix(trial, order) for order in (everyone, by_density)), key=trial.loss)
    missing, most = trial.missing, trial.loss(best)
    alone = [i for i in everyone if len(trial.options[i].nodes) >= missing]
    cheaper = sorted((loss, i) for i in alone if (loss := trial.loss([i])) < most)[
        :MAX_SINGLE_VICTIMS
    ]
    return next(([i] for _, i in cheaper if trial.suffices([i])), best)


def _prefix(trial: Trial, order: Sequence[int]) -> list[int]:
    """The shortest sufficient prefix, then without the expensive members that are not needed.

    Bisection is valid because every further victim only adds free nodes.
    """
    low, high = 1, len(order)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if trial.suffices(order[:middle]) else (middle + 1, high)
    chosen = list(order[:low])
    for i in reversed(order[:low]):
        without = [other for other in chosen if other != i]
        if trial.suffices(without):
            chosen = without
    return chosen


def evictions(demand: Demand, chosen: Sequence[Candidate]) -> list[Eviction]:
    """One eviction per run: of its surplus, or of all nodes if more than that is chosen."""
    asked: dict[str, list[Candidate]] = {}
    for candidate in chosen:
        asked.setdefault(candidate.holding.run, []).append(candidate)
    found = []
    for run, parts in asked.items():
        holding = parts[0].holding
        shrinks = all(part.nodes == holding.surplus for part in parts)
        found.append(
            Eviction(
                run=run,
                nodes=holding.surplus if shrinks else holding.nodes,
                by=demand.run,
                why=parts[0].why,
                lost_gpu_seconds=holding.lost_gpu_seconds,
            )
        )
    return found
