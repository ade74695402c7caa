"""Who leaves for whom: the cheapest runs that make room, and nobody for nothing."""

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

SINGLES = 8
"""Runs that are tried as the only one to leave, the cheapest first."""
Loss = tuple[float, ...]
"""GPU seconds lost, by priority, the highest first."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Something a run could be asked to give back."""

    holding: Holding
    nodes: tuple[str, ...]
    why: str
    rest: bool = False
    """What an elastic run has beside its surplus: to shrink comes before to stop."""

    @property
    def gpus(self) -> int:
        """GPUs it would free."""
        return len(self.nodes) * accounted_gpus(self.holding.need)

    @property
    def by_loss(self) -> tuple[object, ...]:
        """The lowest priority first, surplus before the rest, then the fewest GPU seconds lost."""
        holding = self.holding
        return -PRIORITY_RANK[holding.priority], self.rest, holding.lost_gpu_seconds, holding.run

    @property
    def by_density(self) -> tuple[object, ...]:
        """The same by the GPU seconds lost for each node."""
        holding, each = self.holding, self.holding.lost_gpu_seconds / len(self.nodes)
        return -PRIORITY_RANK[holding.priority], self.rest, each, holding.run


class PreemptionCandidates:
    """What runs have, found by who may take it."""

    def __init__(self, holdings: Iterable[Holding], quotas: Quotas) -> None:
        self._quotas = quotas
        self._of_run: dict[str, list[Holding]] = defaultdict(list)
        self._of_queue: dict[str, list[Holding]] = defaultdict(list)
        self._nodes: dict[tuple[str, int], int] = defaultdict(int)
        """Nodes by group of queues and priority."""
        for holding in holdings:
            if holding.nodes and not holding.leaving:
                self._of_run[holding.run].append(holding)
                if holding.movable:
                    self._of_queue[holding.queue].append(holding)
                    self._count(holding, 1)

    def group(self, queue: str) -> str:
        """Its own name, or nothing: queues without a quota are alike."""
        return queue if self._quotas.limited(queue) else ""

    def leave(self, run: str) -> None:
        """A run was asked to leave: it is not asked again."""
        for holding in self._of_run.pop(run, ()):
            if holding.movable:
                self._of_queue[holding.queue].remove(holding)
                self._count(holding, -1)

    def at_most(self, demand: Demand, waiting: AbstractSet[str]) -> int:
        """How many nodes could be taken for a demand, at the very most."""
        found = sum(len(h.nodes) for run in waiting for h in self._of_run.get(run, ()))
        if demand.may_preempt:
            for group in {"", self.group(demand.queue)}:
                for rank in range(PRIORITY_RANK[demand.priority] + 1, len(PRIORITY_RANK)):
                    found += self._nodes.get((group, rank), 0)
            for queue in self._borrowers(demand):
                found += sum(len(holding.nodes) for holding in self._of_queue[queue])
        return found

    def candidates(self, demand: Demand, waiting: AbstractSet[str]) -> list[Candidate]:
        """What may be taken for a demand, the cheapest first.

        By priority from its own queue, and from those without a quota, to whose runs nothing is
        promised; what its queue has lent; and what runs hold that only wait.

        Args:
            demand: Who needs room.
            waiting: Runs that hold nodes and wait for more themselves, behind it in the order.
        """
        found = [
            Candidate(holding=holding, nodes=holding.nodes, why="order")
            for run in waiting
            if run != demand.run
            for holding in self._of_run.get(run, ())
        ]
        if demand.may_preempt:
            spared, borrowers = waiting | {demand.run}, self._borrowers(demand)
            for queue, holdings in self._of_queue.items():
                there = [holding for holding in holdings if holding.run not in spared]
                if queue in borrowers:
                    found.extend(self._lent(queue, there))
                elif queue == demand.queue or not self._quotas.limited(queue):
                    rank = PRIORITY_RANK[demand.priority]
                    lower = (h for h in there if PRIORITY_RANK[h.priority] > rank)
                    found.extend(part for h in lower for part in _parts(h, "priority"))
        return sorted(found, key=lambda candidate: candidate.by_loss)

    def _borrowers(self, demand: Demand) -> set[str]:
        """Queues that have borrowed what the demand's queue may have back."""
        standing = self._quotas.standing(demand.queue, demand.gpus)
        if standing not in {QuotaStatus.WITHIN, QuotaStatus.RECLAIMING}:
            return set()
        return self._quotas.borrowers(demand.queue)

    def _lent(self, queue: str, holdings: Iterable[Holding]) -> Iterator[Candidate]:
        """The cheapest of a queue, until it has given back all that it has borrowed."""
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
    """A board and quotas on which candidates leave and come back, to see what suffices.

    Args:
        board: What is free now. Changed: who leaves already has left.
        quotas: What queues use now; as it was when the trial is over.
        eligible: What the demand may use of a board.
        demand: Who needs room.
        leaving: What is left already, whoever else is asked.
        options: Who may leave.
    """

    def __init__(
        self,
        board: FreeResources,
        quotas: Quotas,
        eligible: Eligible,
        demand: Demand,
        leaving: Sequence[Holding],
        options: Sequence[Candidate],
    ) -> None:
        self._quotas, self._demand, self._eligible = quotas, demand, eligible
        self.options = options
        for holding in leaving:
            board.give(board.rooms.places(holding.nodes), holding.need)
        self._now = board
        self._left = [(holding.queue, holding.gpus) for holding in leaving]
        self._columns = _Columns(board, options)

    @property
    def missing(self) -> int:
        """Nodes that are missing while nobody is asked: who leaves alone has as many."""
        mask = self._eligible.may_have(self._now, self._demand)
        return self._demand.nodes - self._eligible.most(self._now, self._demand, mask)

    def board(self, chosen: Iterable[int]) -> FreeResources:
        """The board once these options have left."""
        board = self._now.copy()
        self._columns.leave(board, self._mask(chosen))
        return board

    def suffices(self, chosen: Iterable[int]) -> bool:
        """Whether it is enough that these options leave."""
        chosen = list(chosen)
        gone = [*self._left, *((self._option(i).queue, self.options[i].gpus) for i in chosen)]
        by_queue: dict[str, int] = defaultdict(int)
        for queue, gpus in gone:
            by_queue[queue] += gpus
        for queue, gpus in by_queue.items():
            self._quotas.charge(queue, -gpus)
        standing = self._quotas.standing(self._demand.queue, self._demand.gpus)
        for queue, gpus in by_queue.items():
            self._quotas.charge(queue, gpus)
        allowed = standing in {QuotaStatus.WITHIN, QuotaStatus.BORROWING}
        return allowed and self._eligible.suffices(self.board(chosen), self._demand)

    def loss(self, chosen: Iterable[int]) -> Loss:
        """What it costs that these options leave: runs of high priority first."""
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
    """What leaves with each option, worker by worker, so that many leave in one go."""

    def __init__(self, board: FreeResources, options: Sequence[Candidate]) -> None:
        index = board.rooms.index
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

    def leave(self, board: FreeResources, chosen: Mask) -> None:
        """The workers of these options leave a board."""
        here: NDArray[np.bool_] = chosen[self._owner]
        places, owner = self._places[here], self._owner[here]
        np.add.at(board.gpus, places, self._gpus[owner])
        np.add.at(board.cpus, places, self._cpus[owner])
        np.add.at(board.memory, places, self._memory[owner])
        np.add.at(board.tenants, places, -1)


def select(trial: Trial) -> list[int] | None:
    """The cheapest of the options that suffice; None: all together do not.

    To find the very cheapest set is a knapsack problem. Tried are the shortest prefix by loss, the
    shortest by loss for each node, both without those that turn out not to be needed, and the
    cheapest that suffice alone.
    """
    everybody = range(len(trial.options))
    if not trial.suffices(everybody):
        return None
    if trial.suffices(()):
        return []
    by_density = sorted(everybody, key=lambda i: trial.options[i].by_density)
    best = min((_prefix(trial, order) for order in (everybody, by_density)), key=trial.loss)
    missing, most = trial.missing, trial.loss(best)
    alone = [i for i in everybody if len(trial.options[i].nodes) >= missing]
    cheaper = sorted((loss, i) for i in alone if (loss := trial.loss([i])) < most)[:SINGLES]
    return next(([i] for _, i in cheaper if trial.suffices([i])), best)


def _prefix(trial: Trial, order: Sequence[int]) -> list[int]:
    """The shortest prefix that suffices, found by bisection, since whoever leaves only adds room.

    Then the dearest of it that turn out not to be needed are spared.
    """
    low, high = 1, len(order)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if trial.suffices(order[:middle]) else (middle + 1, high)
    leave = list(order[:low])
    for i in reversed(order[:low]):
        without = [other for other in leave if other != i]
        if trial.suffices(without):
            leave = without
    return leave


def evictions(demand: Demand, chosen: Sequence[Candidate]) -> list[Eviction]:
    """One for each run. Who gives more than its surplus gives all."""
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
