"""Which of the chosen victims turn out to be unnecessary."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

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

    def spare(self, units: Indices, *, by_run: bool = False) -> Indices:
        """The units that are needed. Those that lose the most are spared first.

        Args:
            units: A sufficient set.
            by_run: Spare the surplus of a run whole at first, and node by node at the end: a run
                that shrinks loses no more with more nodes, so another may be spared instead.
        """
        problem, columns = self._problem, self._problem.columns
        stopping = np.unique(columns.holding[units[~columns.spare[units]]])
        units = columns.in_order(self._with_surplus(units, stopping), columns.lost)
        walk = _Walk(problem, units, self._mask)
        if by_run:
            kinds = list(zip(columns.holding[units].tolist(), columns.spare[units], strict=True))
            for _, group in itertools.groupby(reversed(range(len(units))), key=kinds.__getitem__):
                walk.stay(list(group))
        walk.stay_one_by_one()
        return units[walk.end()]

    def _with_surplus(self, units: Indices, stopping: Indices) -> Indices:
        """The units, and the surplus of the runs that stop."""
        columns = self._problem.columns
        stops = np.zeros(len(columns.holding) + 1, dtype=np.bool_)
        stops[stopping] = True
        every = stops[columns.holding] & columns.spare & (self._problem.options.why >= 0)
        every[units] = True
        return np.flatnonzero(every)


class _Walk:
    """Units that all leave, of which one after the other stays if the demand fits all the same."""

    def __init__(self, problem: Problem, units: Indices, mask: Mask) -> None:
        columns = problem.columns
        self._board, self._charges = _Board(problem, units, mask), _Charges(problem, units)
        self._surplus = columns.spare[units].tolist()
        self._holding = columns.holding[units].tolist()
        self._leaves = [True] * len(units)
        self._stops = {h for h, s in zip(self._holding, self._surplus, strict=True) if not s}

    def stay_one_by_one(self) -> None:
        """Let each unit stay that can, those that lose the most first."""
        lost = None if self._charges.matter else self._board.nodes_of_units
        if lost is None:
            for i in reversed(range(len(self._leaves))):
                self.stay([i])
            return
        # Only a number of nodes decides: one loop, as there may be tens of thousands of units.
        room, stops = self._board.room, self._stops
        for i in reversed(range(len(self._leaves))):
            surplus = self._surplus[i]
            if self._leaves[i] and lost[i] <= room and not (surplus and self._holding[i] in stops):
                room -= lost[i]
                self._leaves[i] = False
                if not surplus:
                    stops.discard(self._holding[i])
        self._board.room = room

    def stay(self, group: Sequence[int]) -> None:
        """Let all of these units stay, or none if the demand would not fit."""
        done: list[int] = []
        for i in group:
            if not self._leaves[i]:
                continue
            if (self._surplus[i] and self._holding[i] in self._stops) or not self._put_back(i):
                for other in reversed(done):
                    self._take(other)
                return
            done.append(i)
        for i in done:
            if not self._surplus[i]:
                self._stops.discard(self._holding[i])

    def end(self) -> Indices:
        """The units that leave, by number; the quotas are restored."""
        kept: Indices = np.flatnonzero(self._leaves)
        self._charges.end(kept.tolist())
        return kept

    def _put_back(self, i: int) -> bool:
        if not self._charges.put_back(i):
            return False
        if not self._board.put_back(i):
            self._charges.take(i)
            return False
        self._leaves[i] = False
        return True

    def _take(self, i: int) -> None:
        self._charges.take(i)
        self._board.take(i)
        self._leaves[i] = True


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

    @property
    def matter(self) -> bool:
        """True if the demand's queue has a quota."""
        return self._limited

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
        taken = problem.taken
        fits = (
            (after.gpus[place] - taken[0][place] - self._needs[0] >= self._shape[0])
            & (after.cpus[place] - taken[1][place] - self._needs[1] >= self._shape[1])
            & (after.memory[place] - taken[2][place] - self._needs[2] >= self._shape[2])
        )
        alone = np.bincount(place, minlength=len(mask))[place] == 1
        # What each unit takes away when it stays: usable nodes, idle ones, and those that are both.
        effects = (usable[place] & ~fits, idle[place], usable[place] & idle[place])
        self._effects = [_by_unit(mine, alone & each, len(units)) for each in effects]
        self._shared = self._shared_nodes(mine, np.flatnonzero(~alone), place)
        self._done: dict[int, tuple[int, int, int, Sequence[tuple[bool, bool]]]] = {}
        """Unit that was put back → what that took away, and what its shared nodes were before."""
        self._plain = not self._shared and self._spares is None
        self._after, self._mask_usable, self._mask_idle = after, usable, idle

    @property
    def nodes_of_units(self) -> list[int] | None:
        """Usable nodes that each unit takes when it stays; None: more than their number counts."""
        return self._effects[0] if self._plain else None

    @property
    def room(self) -> int:
        """Usable nodes beyond those that the demand needs."""
        return self._usable - self._problem.demand.nodes

    @room.setter
    def room(self, nodes: int) -> None:
        self._usable = self._problem.demand.nodes + nodes

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
            self._done[i] = lost, 0, 0, ()
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
        shared = self._shared.get(i, ())
        flags = tuple((bool(self._mask_usable[n]), bool(self._mask_idle[n])) for n, _ in shared)
        self._done[i] = lost, idle, both, flags
        for node, worker in shared:
            self._apply(node, worker, -1)
        return True

    def take(self, i: int) -> None:
        """Have a unit leave after all that was put back; the last one that was put back first."""
        lost, idle, both, flags = self._done.pop(i)
        self._usable += lost
        self._idle += idle
        self._idle_usable += both
        for (node, worker), (usable, empty) in zip(self._shared.get(i, ()), flags, strict=True):
            self._apply(node, worker, 1)
            self._mask_usable[node], self._mask_idle[node] = usable, empty

    def _count(self, usable: int, idle: int, both: int) -> int:
        """Usable nodes, without those that the pool of spares needs."""
        if self._spares is None:
            return usable
        return usable - max(0, both - max(0, idle - self._spares))

    def _change(self, node: int, worker: int) -> tuple[int, int, int]:
        """1 or 0 each: the node is no longer usable, idle, and both, once this worker is back."""
        after = self._after
        each = zip(self._needs, self._problem.taken, strict=True)
        gpus, cpus, memory = (need[worker] + taken[node] for need, taken in each)
        fits = (
            after.gpus[node] - gpus >= self._shape[0]
            and after.cpus[node] - cpus >= self._shape[1]
            and after.memory[node] - memory >= self._shape[2]
        )
        usable, idle = bool(self._mask_usable[node]), bool(self._mask_idle[node])
        return int(usable and not fits), int(idle), int(usable and idle)

    def _apply(self, node: int, worker: int, sign: int) -> None:
        after = self._after
        lost = sign < 0 and self._change(node, worker)[0]
        after.gpus[node] += sign * self._needs[0][worker]
        after.cpus[node] += sign * self._needs[1][worker]
        after.memory[node] += sign * self._needs[2][worker]
        if sign < 0:
            self._mask_idle[node] = False
        if lost:
            self._mask_usable[node] = False


def _by_unit(units: Indices, flags: Mask, count: int) -> list[int]:
    """Number of set flags by unit."""
    sums: list[int] = np.bincount(units[flags], minlength=count).tolist()
    return sums
