"""Orders in which victims leave, and after how many of them a demand fits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import numpy as np

from orchestrator.core.scheduling.free_resources import shape_of
from orchestrator.core.scheduling.node_table import Indices, Mask
from orchestrator.core.scheduling.victim_problem import NOBODY, Loss, Problem, within_caps

_NEVER = np.iinfo(np.intp).max


class Timeline:
    """When each node of a domain becomes usable, as units leave in some order."""

    def __init__(self, problem: Problem, now: Mask, workers: Indices) -> None:
        self._problem, self._now = problem, int(now.sum())
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
        have = [free.gpus[nodes].copy(), free.cpus[nodes].copy(), free.memory[nodes].copy()]
        times = np.full(len(nodes), _NEVER, dtype=np.intp)
        segment = np.cumsum(fresh) - 1
        for turn in range(int(nth.max()) + 1):  # the tenants of a node leave one after the other
            now = nth == turn
            at, who = segment[now], of[now]
            have[0][at] += columns.need_gpus[who]
            have[1][at] += columns.need_cpus[who]
            have[2][at] += columns.need_memory[who]
            fits = (have[0][at] >= gpus) & (have[1][at] >= cpus) & (have[2][at] >= memory)
            times[at] = np.where(fits, np.minimum(times[at], when[now]), times[at])
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
    """

    def __init__(self, problem: Problem, order: Indices, workers: Indices) -> None:
        self._problem = problem
        columns = problem.columns
        position = np.zeros(len(columns.holding), dtype=np.intp)
        position[order] = np.arange(len(order))
        units = columns.unit[workers]
        sequence = np.lexsort((position[units], columns.place[workers]))
        self._on: dict[int, list[int]] = defaultdict(list)
        for place, unit in zip(
            columns.place[workers][sequence].tolist(), units[sequence].tolist(), strict=True
        ):
            self._on[place].append(unit)

    def by(self, key: Callable[[Loss, float], Loss]) -> Indices:
        """The units of one node after the other, as far as the caps allow, until enough are won."""
        problem, columns = self._problem, self._problem.columns
        found: list[tuple[Loss, int, list[int]]] = []
        for place, units in self._on.items():
            bundle = self._needed(place, units)
            if bundle:
                loss = problem.loss(np.array(bundle, dtype=np.intp))
                gpus = float(columns.gpus[bundle].sum())
                found.append((key(loss, gpus), place, bundle))
        chosen: dict[int, None] = {}
        won, missing = 0, problem.demand.nodes
        for _, _, bundle in sorted(found):
            more = dict.fromkeys((*chosen, *bundle))
            if within_caps(problem, more):
                chosen, won = more, won + 1
                if won >= missing and problem.quota_suffices(np.array(list(chosen), dtype=np.intp)):
                    break
        return np.array(list(chosen), dtype=np.intp)

    def _needed(self, place: int, units: list[int]) -> list[int]:
        problem, columns = self._problem, self._problem.columns
        gpus, cpus, memory = shape_of(problem.demand.need)
        free = problem.free
        have = [free.gpus[place], free.cpus[place], free.memory[place]]
        bundle = []
        for unit in units:
            of = columns.holding[unit]
            bundle.append(unit)
            have[0] += columns.need_gpus[of]
            have[1] += columns.need_cpus[of]
            have[2] += columns.need_memory[of]
            if have[0] >= gpus and have[1] >= cpus and have[2] >= memory:
                return bundle
        return []
