"""The search for the cheapest units whose nodes make room for one demand.

First the domain, then the victims in it: the cost of every domain is estimated at once, and the
most promising ones are searched. In a domain, units are taken in several orders until the demand
fits; those that turn out to be unnecessary are spared, the most expensive first. The exact optimum
is a knapsack problem; `tests/property/test_victims.py` compares the result with it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from orchestrator.core.scheduling.free_resources import shape_of
from orchestrator.core.scheduling.node_table import Indices, Mask
from orchestrator.core.scheduling.types import PRIORITY_RANK
from orchestrator.core.scheduling.victim_orders import Bundles, Timeline
from orchestrator.core.scheduling.victim_problem import NOBODY, Loss, Problem, within_caps
from orchestrator.core.scheduling.victim_sparing import Sparing

MAX_DOMAINS = 8
"""Number of domains, the cheapest by estimate first, in which victims are searched."""
MAX_SINGLE_VICTIMS = 8
"""Number of runs, the cheapest first, that are tried as the only victim."""


def search(problem: Problem) -> tuple[Indices, Mask] | None:
    """The cheapest units found, and the nodes among which the demand then fits; None: none do.

    No units: those that are leaving already suffice.
    """
    everyone, demand = problem.options.units, problem.demand
    now, after = problem.usable(problem.free), problem.free_after(everyone)
    could = problem.usable(after)
    if problem.eligible.usable_count(after, demand, could) < demand.nodes:
        return None
    if not problem.quota_suffices(everyone):
        return None
    ground = _Ground(problem, now, could)
    if problem.quota_suffices(NOBODY):
        for mask in ground.domains_of(now):
            if problem.eligible.usable_count(problem.free, demand, now & mask) >= demand.nodes:
                return NOBODY, mask
    best: tuple[Loss, Indices, Mask] | None = None
    for mask in ground.candidates():
        for units in ground.solutions(mask):
            loss = problem.loss(units)
            if best is None or loss < best[0]:
                best = loss, units, mask
    return None if best is None else best[1:]


class _Ground:
    """The nodes that the demand could get, by domain, and the workers that are in its way."""

    def __init__(self, problem: Problem, now: Mask, could: Mask) -> None:
        self._problem, self._columns = problem, problem.columns
        self._now, self._could = now, could
        table, pack = problem.free.table, problem.demand.pack
        flat = np.zeros(len(table), dtype=np.intp)
        self._domain = flat if pack == "any" else table.domains[pack]
        self._missing = problem.demand.nodes
        self._gain = could & ~now
        columns, workers = self._columns, problem.workers
        self._workers = workers[self._gain[columns.place[workers]]]
        """Workers of the options on nodes that their leaving may win."""
        self._for_quota = self._quota_helpers()
        freed = np.zeros(len(columns.holding) + 1, dtype=np.float64)
        np.add.at(freed, columns.holding, np.where(columns.spare, 0, columns.size))
        shed = np.zeros_like(freed)
        np.add.at(shed, columns.holding, np.where(columns.spare, columns.size, 0))
        of = columns.holding
        self._density = columns.lost / np.maximum(np.where(columns.spare, shed[of], freed[of]), 1)

    def _quota_helpers(self) -> Mask:
        """Units that free quota, where the demand lacks it; else none."""
        problem, columns = self._problem, self._columns
        found = np.zeros(len(columns.holding), dtype=np.bool_)
        if not problem.quota_suffices(NOBODY):
            cohort = problem.quotas.of(problem.demand.queue).cohort
            helps = [
                queue == problem.demand.queue
                or (cohort is not None and problem.quotas.of(queue).cohort == cohort)
                for queue in columns.queues
            ]
            units = problem.options.units
            found[units] = np.array(helps, dtype=np.bool_)[columns.queue[units]]
        return found & ~columns.unlimited[columns.queue]

    def domains_of(self, mask: Mask) -> Iterator[Mask]:
        """The domains in which that many nodes are set."""
        sizes = np.bincount(self._domain[mask], minlength=1)
        for number in np.flatnonzero(sizes >= self._missing).tolist():
            yield self._domain == number

    def candidates(self) -> list[Mask]:
        """The domains that suffice, the cheapest by estimate first."""
        sizes = np.bincount(self._domain[self._could], minlength=1)
        feasible = np.flatnonzero(sizes >= self._missing)
        if len(feasible) > MAX_DOMAINS:
            feasible = feasible[np.lexsort(self._estimates(feasible))[:MAX_DOMAINS]]
        return [self._domain == number for number in feasible.tolist()]

    def _estimates(self, domains: Indices) -> list[NDArray[np.float64]]:
        """Loss of the cheapest sufficient nodes of each domain, as keys of a sort.

        The loss of a run is spread over the nodes that it would free there.
        """
        cost = self._node_costs()
        places = np.flatnonzero(self._gain)
        domain = self._domain[places]
        order = np.lexsort((*(each[places] for each in reversed(cost)), domain))
        places, domain = places[order], domain[order]
        starts = np.searchsorted(domain, domains)
        free = np.bincount(self._domain[self._now], minlength=int(domains.max()) + 1)[domains]
        ends = starts + np.maximum(self._missing - free, 0)
        sums = [np.concatenate([[0.0], np.cumsum(each[places])]) for each in cost]
        # lexsort takes the most important key last.
        return [each[ends] - each[starts] for each in reversed(sums)]

    def _node_costs(self) -> list[NDArray[np.float64]]:
        """For each rank, the most important first: the cost of each node, runs spread over it."""
        columns, count = self._columns, len(self._domain)
        place, unit = columns.place[self._workers], columns.unit[self._workers]
        holding = columns.holding[unit]
        keys = holding * (int(self._domain.max(initial=0)) + 1) + self._domain[place]
        _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
        cost = (1.0 + columns.lost[unit]) / counts[inverse]
        ranks = columns.rank[unit]
        return [
            np.bincount(place, weights=np.where(ranks == rank, cost, 0.0), minlength=count).astype(
                np.float64
            )
            for rank in range(len(PRIORITY_RANK))
        ]

    def solutions(self, mask: Mask) -> Iterator[Indices]:
        """Sufficient sets of units in a domain, without unnecessary members."""
        problem, columns = self._problem, self._columns
        workers = self._workers[mask[columns.place[self._workers]]]
        useful = self._for_quota.copy()
        useful[columns.unit[workers]] = True
        units = np.flatnonzero(useful)
        timeline = Timeline(problem, self._now & mask, workers)
        sparing = Sparing(problem, mask)
        costs = [columns.lost, self._density]
        if problem.demand.pack != "any":
            here = np.bincount(
                columns.holding[columns.unit[workers]], minlength=len(columns.holding)
            )
            costs.append(columns.lost / np.maximum(here[columns.holding], 1))
        for order in self._orders(units, costs, workers):
            chosen = timeline.shortest_prefix(order, mask)
            if chosen is not None:
                yield sparing.spare(chosen)
        yield from self._alone(workers, mask, sparing)

    def _orders(
        self, units: Indices, costs: list[NDArray[np.float64]], workers: Indices
    ) -> Iterator[Indices]:
        caps = self._problem.options.caps
        if not caps:
            for cost in costs:
                yield self._columns.in_order(units, cost)
            return
        for cost in costs:
            yield self._within_caps(self._columns.in_order(units, cost))
        bundles = Bundles(self._problem, self._columns.in_order(units, costs[0]), workers)
        yield bundles.by(lambda loss, gpus: (*loss, gpus))
        yield bundles.by(lambda loss, gpus: (gpus, *loss))

    def _within_caps(self, order: Indices) -> Indices:
        """The order without the units of queues that have then given back what they borrowed."""
        columns, keep = self._columns, np.ones(len(order), dtype=np.bool_)
        for number, borrowed in self._problem.options.caps.items():
            own = np.flatnonzero(columns.queue[order] == number)
            gpus = columns.gpus[order[own]]
            keep[own] = np.cumsum(gpus) - gpus < borrowed
        return order[keep]

    def _alone(self, workers: Indices, mask: Mask, sparing: Sparing) -> Iterator[Indices]:
        """The runs that suffice alone: what is above their minimum, or everything."""
        problem, columns = self._problem, self._columns
        place, unit = columns.place[workers], columns.unit[workers]
        of = columns.holding[unit]
        free, need = problem.free, problem.demand.need
        gpus, cpus, memory = shape_of(need)
        wins = free.gpus[place] + columns.need_gpus[of] >= gpus
        wins &= free.cpus[place] + columns.need_cpus[of] >= cpus
        wins &= free.memory[place] + columns.need_memory[of] >= memory
        missing = self._missing - int((self._now & mask).sum())
        shrinks, count = columns.spare[unit], len(problem.columns.holding)
        for only in (shrinks, np.ones_like(shrinks)):
            won = np.bincount(of[wins & only], minlength=count)
            enough = np.flatnonzero(won >= max(1, missing))
            sets = [columns.units_of(number) for number in enough.tolist()]
            if only is shrinks:
                sets = [each[columns.spare[each]] for each in sets]
            sets = [each[problem.options.why[each] >= 0] for each in sets]
            ranked = sorted((problem.loss(each), i) for i, each in enumerate(sets) if len(each))
            for _, i in ranked[:MAX_SINGLE_VICTIMS]:
                if within_caps(problem, sets[i]) and sparing.suffices(sets[i]):
                    yield sparing.spare(sets[i])
                    break
