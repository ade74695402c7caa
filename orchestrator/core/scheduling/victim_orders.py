"""Orders in which victims leave, and after how many of them a demand fits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.core.scheduling.free_resources import count_nodes, shape_of
from orchestrator.core.scheduling.node_table import Indices, Mask
from orchestrator.core.scheduling.victim_problem import NOBODY, Problem

_NEVER = np.iinfo(np.intp).max


class Timeline:
    """When each node of a domain becomes usable, as units leave in some order."""

    def __init__(self, problem: Problem, now: Mask, workers: Indices) -> None:
        self._problem, self._now = problem, count_nodes(now)
        columns = problem.columns
        order = np.argsort(columns.place[workers], kind="stable")
        self._workers = workers[order]
        self._place = columns.place[self._workers]

    def shortest_prefix(self, order: Indices, mask: Mask) -> Indices | None:
        """The shortest prefix of the units after which the demand fits; None: there is none."""
        problem = self._problem
        needed, length = problem.demand.nodes - self._now, 0
        if needed > 0:
            times = self._times(order)
            if len(times) < needed:
                return None
            length = int(np.partition(times, needed - 1)[needed - 1]) + 1
            if length > len(order):
                return None

        if problem.keeps_spares:
            length = _bisect(length, len(order), lambda n: self._spares_stay(order[:n], mask))
        length = _bisect(length, len(order), lambda n: problem.quota_suffices(order[:n]))
        return order[:length] if length <= len(order) else None

    def _spares_stay(self, units: Indices, mask: Mask) -> bool:
        after = self._problem.free_after(units)
        usable = self._problem.usable(after) & mask
        demand = self._problem.demand
        return self._problem.eligible.usable_count(after, demand, usable) >= demand.nodes

    def _times(self, order: Indices) -> Indices:
        """Positions in the order at which a node becomes usable, one for each node that does."""
        problem, columns = self._problem, self._problem.columns
        position = np.full(len(columns.holding), _NEVER, dtype=np.intp)
        position[order] = np.arange(len(order))
        when = position[columns.unit[self._workers]]
        taken = when != _NEVER
        workers, place, when = self._workers[taken], self._place[taken], when[taken]
        sequence = np.lexsort((when, place))
        workers, place, when = workers[sequence], place[sequence], when[sequence]
        if not len(place):
            return NOBODY
        fresh = np.r_[True, place[1:] != place[:-1]]
        starts = np.flatnonzero(fresh)
        nth = np.arange(len(place)) - starts[np.cumsum(fresh) - 1]
        of = columns.holding[columns.unit[workers]]
        free, (gpus, cpus, memory) = problem.free, shape_of(problem.demand.need)
        nodes = place[starts]
        now = free.gpus[nodes], free.cpus[nodes], free.memory[nodes]
        have = [each - taken[nodes] for each, taken in zip(now, problem.taken, strict=True)]
        times = np.full(len(nodes), _NEVER, dtype=np.intp)
        segment = np.cumsum(fresh) - 1
        for turn in range(int(nth.max()) + 1):  # the tenants of a node leave one after the other
            next_ = nth == turn
            at, who = segment[next_], of[next_]
            have[0][at] += columns.need_gpus[who]
            have[1][at] += columns.need_cpus[who]
            have[2][at] += columns.need_memory[who]
            fits = (have[0][at] >= gpus) & (have[1][at] >= cpus) & (have[2][at] >= memory)
            times[at] = np.where(fits, np.minimum(times[at], when[next_]), times[at])
        found: Indices = times[times != _NEVER]
        return found


def _bisect(low: int, most: int, suffices: Callable[[int], bool]) -> int:
    """The least number from `low` to `most` that suffices; `most + 1`: none does.

    Valid because every further victim only adds free nodes and quota.
    """
    if low > most or suffices(low):
        return low
    if not suffices(most):
        return most + 1
    high = most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(middle) else (middle, high)
    return high


class Bundles:
    """For each node, the units that must leave before it can be used.

    Where what may be taken back is limited, units must be chosen together: the cheapest ones by
    themselves could use up the limit on nodes that nobody can use.

    Args:
        problem: The demand and the units.
        order: The units, in the order in which the tenants of one node leave.
        workers: Their workers on nodes that may be won.

    Attributes:
        gpus: By node index, accounted GPUs of the units that are on it.
    """

    def __init__(self, problem: Problem, order: Indices, workers: Indices) -> None:
        self._problem = problem
        columns, count = problem.columns, len(problem.free.table)
        position = np.zeros(len(columns.holding), dtype=np.intp)
        position[order] = np.arange(len(order))
        units, place = columns.unit[workers], columns.place[workers]
        self.gpus = np.bincount(place, weights=columns.gpus[units], minlength=count)
        sequence = np.lexsort((position[units], place))
        self._units, self._place = units[sequence], place[sequence]
        self._nodes = np.flatnonzero(np.bincount(place, minlength=count))

    def by(self, keys: Iterable[NDArray[Any]]) -> Indices:
        """The units of one node after the other, as far as the caps allow, until enough are won.

        Args:
            keys: By node index, the most important key of the order of nodes first.
        """
        problem, columns = self._problem, self._problem.columns
        order = np.lexsort([key[self._nodes] for key in reversed(list(keys))])
        chosen: dict[int, None] = {}
        given: dict[int, tuple[int, int]] = {}
        won = 0
        for place in self._nodes[order].tolist():
            bundle = [unit for unit in self._needed(place) if unit not in chosen]
            after = dict(given)
            for unit in bundle:
                number = int(columns.queue[unit])
                part = columns.gpus if columns.spare[unit] else columns.run_gpus
                gpus = int(part[unit])
                total, largest = after.get(number, (0, 0))
                after[number] = total + gpus, max(largest, gpus)
            if not bundle or not _within(after, problem.options.caps):
                continue
            chosen.update(dict.fromkeys(bundle))
            given, won = after, won + 1
            if won >= problem.demand.nodes and problem.quota_suffices(_units(chosen)):
                break
        return _units(chosen)

    def _needed(self, place: int) -> list[int]:
        """The units that must leave a node; none: it cannot be won."""
        problem, columns = self._problem, self._problem.columns
        gpus, cpus, memory = shape_of(problem.demand.need)
        free = problem.free
        now = free.gpus[place], free.cpus[place], free.memory[place]
        have = [each - taken[place] for each, taken in zip(now, problem.taken, strict=True)]
        low, high = np.searchsorted(self._place, [place, place + 1])
        bundle = []
        for unit in self._units[low:high].tolist():
            of = columns.holding[unit]
            bundle.append(unit)
            have[0] += columns.need_gpus[of]
            have[1] += columns.need_cpus[of]
            have[2] += columns.need_memory[of]
            if have[0] >= gpus and have[1] >= cpus and have[2] >= memory:
                return bundle
        return []


def _within(given: Mapping[int, tuple[int, int]], caps: Mapping[int, int]) -> bool:
    """True if each queue gives at most what it borrowed, but for the largest unit as a whole."""
    return all(
        total - largest < caps[number]
        for number, (total, largest) in given.items()
        if number in caps
    )


def _units(chosen: Iterable[int]) -> Indices:
    return np.array(list(chosen), dtype=np.intp)
