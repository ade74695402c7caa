"""Which of the chosen victims turn out to be unnecessary."""

from __future__ import annotations

import numpy as np

from orchestrator.core.scheduling.free_resources import count_nodes, shape_of
from orchestrator.core.scheduling.node_table import Indices, Mask
from orchestrator.core.scheduling.victim_problem import Problem


class Sparing:
    """Spares units of a sufficient set, in time that grows with the number of their nodes.

    Args:
        problem: The demand and the units.
        mask: The nodes among which the demand must fit.
    """

    def __init__(self, problem: Problem, mask: Mask) -> None:
        self._problem, self._mask = problem, mask

    def suffices(self, units: Indices) -> bool:
        """True if the demand fits quota and nodes once these units have left."""
        problem = self._problem
        after = problem.free_after(units)
        usable = problem.usable(after) & self._mask
        enough = problem.eligible.usable_count(after, problem.demand, usable)
        return enough >= problem.demand.nodes and problem.quota_suffices(units)

    def spare(self, units: Indices) -> Indices:
        """The units that are needed. Those that lose the most are spared first."""
        problem, columns = self._problem, self._problem.columns
        stopping = np.unique(columns.holding[units[~columns.spare[units]]])
        units = columns.in_order(self._with_surplus(units, stopping), columns.lost)
        board, charges = _Board(problem, units, self._mask), _Charges(problem, units)
        stops = set(stopping.tolist())
        surplus, holding = columns.spare[units].tolist(), columns.holding[units].tolist()
        kept = []
        for i in reversed(range(len(units))):
            if surplus[i] and holding[i] in stops:
                kept.append(i)  # it leaves with its run
            elif not charges.put_back(i):
                kept.append(i)
            elif not board.put_back(i):
                charges.take(i)
                kept.append(i)
            elif not surplus[i]:
                stops.discard(holding[i])
        charges.end(kept)
        return units[np.array(kept[::-1], dtype=np.intp)]

    def _with_surplus(self, units: Indices, stopping: Indices) -> Indices:
        """The units, and the surplus of the runs that stop."""
        columns = self._problem.columns
        stops = np.zeros(len(columns.holding) + 1, dtype=np.bool_)
        stops[stopping] = True
        every = stops[columns.holding] & columns.spare & (self._problem.options.why >= 0)
        every[units] = True
        return np.flatnonzero(every)


class _Charges:
    """The quotas as they are charged once the units have left; restored by `end`."""

    def __init__(self, problem: Problem, units: Indices) -> None:
        self._problem, columns = problem, problem.columns
        self._limited = problem.quotas.limited(problem.demand.queue)
        if self._limited:
            self._queue = [columns.queues[number] for number in columns.queue[units].tolist()]
            self._gpus = columns.gpus[units].tolist()
            for queue, gpus in problem.left.items():
                problem.quotas.charge(queue, -gpus)
            for i in range(len(units)):
                self.take(i)

    def put_back(self, i: int) -> bool:
        """Charge a unit again; False, and nothing is charged: the quota needs it to leave."""
        if not self._limited:
            return True  # most demands: a queue without quota
        self._problem.quotas.charge(self._queue[i], self._gpus[i])
        if self._problem.quota_allows():
            return True
        self.take(i)
        return False

    def take(self, i: int) -> None:
        """Take the charge of a unit back."""
        if self._limited:
            self._problem.quotas.charge(self._queue[i], -self._gpus[i])

    def end(self, kept: list[int]) -> None:
        """Restore the charges of all."""
        if self._limited:
            for i in kept:
                self._problem.quotas.charge(self._queue[i], self._gpus[i])
            for queue, gpus in self._problem.left.items():
                self._problem.quotas.charge(queue, gpus)


class _Board:
    """Free nodes once the units have left, to which units are put back one by one.

    Workers that are alone on their node are counted at once, by unit; only nodes that several units
    share are looked at one after the other.
    """

    def __init__(self, problem: Problem, units: Indices, mask: Mask) -> None:
        self._problem = problem
        columns, demand = problem.columns, problem.demand
        after = problem.free_after(units)
        usable = problem.usable(after) & mask
        idle = after.idle() & problem.eligible.pool
        self._spares = problem.eligible.spares if problem.keeps_spares else None
        self._usable, self._idle = count_nodes(usable), count_nodes(idle)
        self._idle_usable = count_nodes(usable & idle)
        number = np.full(len(columns.holding), -1, dtype=np.intp)
        number[units] = np.arange(len(units))
        mine = number[columns.unit[problem.workers]]
        workers, mine = problem.workers[mine >= 0], mine[mine >= 0]
        place, of = columns.place[workers], columns.holding[columns.unit[workers]]
        self._needs = columns.need_gpus[of], columns.need_cpus[of], columns.need_memory[of]
        self._shape = shape_of(demand.need)
        fits = (
            (after.gpus[place] - self._needs[0] >= self._shape[0])
            & (after.cpus[place] - self._needs[1] >= self._shape[1])
            & (after.memory[place] - self._needs[2] >= self._shape[2])
        )
        alone = np.bincount(place, minlength=len(mask))[place] == 1
        # What each unit takes away when it stays: usable nodes, idle ones, and those that are both.
        effects = (usable[place] & ~fits, idle[place], usable[place] & idle[place])
        self._effects = [_by_unit(mine, alone & each, len(units)) for each in effects]
        self._shared = self._shared_nodes(mine, np.flatnonzero(~alone), place)
        self._plain = not self._shared and self._spares is None
        self._after, self._mask_usable, self._mask_idle = after, usable, idle

    def _shared_nodes(
        self, mine: Indices, shared: Indices, place: Indices
    ) -> dict[int, list[tuple[int, int]]]:
        """For each unit, its workers on shared nodes: node and number of the worker."""
        found: dict[int, list[tuple[int, int]]] = {}
        for worker in shared.tolist():
            found.setdefault(int(mine[worker]), []).append((int(place[worker]), worker))
        return found

    def put_back(self, i: int) -> bool:
        """Let a unit stay if the demand fits all the same; False: it is needed, nothing changes."""
        lost = self._effects[0][i]
        if self._plain:
            if lost > self._usable - self._problem.demand.nodes:
                return False
            self._usable -= lost
            return True
        idle, both = self._effects[1][i], self._effects[2][i]
        changes = [self._change(node, worker) for node, worker in self._shared.get(i, ())]
        lost += sum(change[0] for change in changes)
        idle += sum(change[1] for change in changes)
        both += sum(change[2] for change in changes)
        if self._count(self._usable - lost, self._idle - idle, self._idle_usable - both) < (
            self._problem.demand.nodes
        ):
            return False
        self._usable -= lost
        self._idle -= idle
        self._idle_usable -= both
        for node, worker in self._shared.get(i, ()):
            self._apply(node, worker)
        return True

    def _count(self, usable: int, idle: int, both: int) -> int:
        """Usable nodes, without those that the pool of spares needs."""
        if self._spares is None:
            return usable
        return usable - max(0, both - max(0, idle - self._spares))

    def _change(self, node: int, worker: int) -> tuple[int, int, int]:
        """1 or 0 each: the node is no longer usable, idle, and both, once this worker is back."""
        after = self._after
        gpus, cpus, memory = (each[worker] for each in self._needs)
        fits = (
            after.gpus[node] - gpus >= self._shape[0]
            and after.cpus[node] - cpus >= self._shape[1]
            and after.memory[node] - memory >= self._shape[2]
        )
        usable, idle = bool(self._mask_usable[node]), bool(self._mask_idle[node])
        return int(usable and not fits), int(idle), int(usable and idle)

    def _apply(self, node: int, worker: int) -> None:
        after = self._after
        lost, _, _ = self._change(node, worker)
        after.gpus[node] -= self._needs[0][worker]
        after.cpus[node] -= self._needs[1][worker]
        after.memory[node] -= self._needs[2][worker]
        self._mask_idle[node] = False
        if lost:
            self._mask_usable[node] = False


def _by_unit(units: Indices, flags: Mask, count: int) -> list[int]:
    """Number of set flags by unit."""
    sums: list[int] = np.bincount(units[flags], minlength=count).tolist()
    return sums
