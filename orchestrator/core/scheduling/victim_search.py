"""The search for the cheapest units whose nodes make room for one demand.

First the domain, then the victims in it: the cost of every domain is estimated at once, and the
most promising ones are searched. In a domain, units are taken in several orders until the demand
fits; those that turn out to be unnecessary are spared, the most expensive first. The exact optimum
is a knapsack problem; `tests/property/test_victims.py` compares the result with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from orchestrator.core.scheduling import topology
from orchestrator.core.scheduling.free_resources import count_nodes, shape_of
from orchestrator.core.scheduling.node_table import Indices, Mask
from orchestrator.core.scheduling.types import PRIORITY_RANK
from orchestrator.core.scheduling.victim_orders import Bundles, Timeline
from orchestrator.core.scheduling.victim_problem import NOBODY, Loss, Problem, within_caps
from orchestrator.core.scheduling.victim_sparing import Sparing

MAX_DOMAINS = 8
"""Number of domains, the cheapest by estimate first, in which victims are searched."""
MAX_SINGLE_VICTIMS = 8
"""Number of runs, the cheapest first, that are tried as the only victim."""
ROUNDING = 1e-9
"""Relative error that sums of losses have at most; of 10,000 terms it is a thousandth of this."""


def ground_for(problem: Problem) -> Ground | None:
    """The nodes to search; None: the demand would not fit even if every unit left."""
    everyone, demand = problem.options.units, problem.demand
    if not problem.quota_suffices(everyone):  # first, as it looks at no node
        return None
    now, after = problem.usable(problem.free), problem.free_after(everyone)
    could = problem.usable(after)
    if problem.eligible.usable_count(after, demand, could) < demand.nodes:
        return None
    if topology.largest_domain(problem.free.table, could, demand.pack) < demand.nodes:
        return None
    return Ground(problem, now, could, after.idle())


def search(problem: Problem, ground: Ground) -> tuple[Indices, Mask] | None:
    """The cheapest units found, and the nodes among which the demand then fits; None: none do.

    No units: those that are leaving already suffice.
    """
    demand, now = problem.demand, ground.now
    if problem.quota_suffices(NOBODY):
        for mask in ground.domains_of(now):
            if problem.eligible.usable_count(problem.free, demand, now & mask) >= demand.nodes:
                return NOBODY, mask
    best: tuple[Loss, Indices, Mask] | None = None
    for mask in ground.candidates():
        if best is not None and certainly_costs_more(ground.least(mask), best[0]):
            continue
        for loss, units in ground.solve(mask):
            if best is None or loss < best[0]:
                best = loss, units, mask
    return None if best is None else best[1:]


def certainly_costs_more(least: Loss, found: Loss) -> bool:
    """True if a set that loses at least `least` loses more than `found`, beyond all rounding."""
    for low, loss in zip(least, found, strict=True):
        if low != loss:
            return low > loss * (1.0 + ROUNDING)
        if low > 0.0:
            return False  # equal, but for rounding
    return False


class Ground:
    """The nodes that the demand could get, by domain, and the workers that are in its way.

    Attributes:
        now: Nodes that it could have without any unit.
    """

    def __init__(self, problem: Problem, now: Mask, could: Mask, idle: Mask) -> None:
        self._problem, self._columns = problem, problem.columns
        self.now, self._could = now, could
        table, pack = problem.free.table, problem.demand.pack
        flat = np.zeros(len(table), dtype=np.intp)
        self._domain = flat if pack == "any" else table.domains[pack]
        self._missing = problem.demand.nodes
        self._gain = could & ~now
        columns, workers = self._columns, problem.workers
        self._workers = workers[self._gain[columns.place[workers]]]
        """Workers of the options on nodes that their leaving may win."""
        self._helpers = self._quota_helpers() | self._spare_helpers(idle)
        """Units that help although they are on no node that the demand could get."""
        total = np.bincount(columns.holding, weights=columns.size * ~columns.spare)
        shed = np.bincount(columns.holding, weights=columns.size * columns.spare)
        nodes = np.where(columns.spare, shed[columns.holding], total[columns.holding])
        self._density = columns.lost / np.maximum(nodes, 1)

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

    def _spare_helpers(self, idle: Mask) -> Mask:
        """Units on nodes that would then be spares, where the demand must leave some; else none."""
        problem, columns = self._problem, self._columns
        found = np.zeros(len(columns.holding), dtype=np.bool_)
        if problem.keeps_spares:
            spares = idle & problem.eligible.pool
            found[columns.unit[problem.workers[spares[columns.place[problem.workers]]]]] = True
        return found

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
        cost = self._costs
        places = np.flatnonzero(self._gain)
        domain = self._domain[places]
        order = np.lexsort((*(each[places] for each in reversed(cost)), domain))
        places, domain = places[order], domain[order]
        starts = np.searchsorted(domain, domains)
        free = np.bincount(self._domain[self.now], minlength=int(domains.max()) + 1)[domains]
        ends = starts + np.maximum(self._missing - free, 0)
        sums = [np.concatenate([[0.0], np.cumsum(each[places])]) for each in cost]
        # lexsort takes the most important key last.
        return [each[ends] - each[starts] for each in reversed(sums)]

    @cached_property
    def _costs(self) -> list[NDArray[np.float64]]:
        """For each rank, the most important first: the cost of each node, runs spread over it."""
        columns, count = self._columns, len(self._domain)
        place, unit = columns.place[self._workers], columns.unit[self._workers]
        cost, ranks = self._spread, columns.rank[unit]
        return [
            np.bincount(place, weights=np.where(ranks == rank, cost, 0.0), minlength=count).astype(
                np.float64
            )
            for rank in range(len(PRIORITY_RANK))
        ]

    @cached_property
    def _spread(self) -> NDArray[np.float64]:
        """By worker, the loss of its run, spread over those of its nodes that a domain may win."""
        columns = self._columns
        place, unit = columns.place[self._workers], columns.unit[self._workers]
        keys = columns.holding[unit] * (int(self._domain.max(initial=0)) + 1) + self._domain[place]
        _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
        cost: NDArray[np.float64] = (1.0 + columns.lost[unit]) / counts[inverse]
        return cost

    def least(self, mask: Mask) -> Loss:
        """A bound: any set of units that makes room in a domain loses at least as much.

        Each run's loss is spread over the nodes that it could free there, and of each node only
        its cheapest unit counts. So a domain need not be searched that cannot be the cheapest.
        """
        nodes = max(0, self._missing - count_nodes(self.now & mask))
        domain, index, cost = self._shares
        mine = domain == (self._domain[np.argmax(mask)] if mask.any() else -1)
        kinds = 2 * len(PRIORITY_RANK)
        sums = np.bincount(index[mine][:nodes], weights=cost[mine][:nodes], minlength=kinds)
        return tuple(sums.tolist())

    @cached_property
    def _shares(self) -> tuple[Indices, Indices, NDArray[np.float64]]:
        """For each node that may be won, the cheapest first: domain, place in `Loss`, and share."""
        columns = self._columns
        place, unit = columns.place[self._workers], columns.unit[self._workers]
        cost, index = self._spread, 2 * columns.rank[unit] + columns.spare[unit]
        order = np.lexsort((cost, -index, place))
        cheapest = order[np.r_[True, np.diff(place[order]) != 0][: len(order)]]
        order = cheapest[np.lexsort((cost[cheapest], -index[cheapest]))]
        return self._domain[place[order]], index[order], cost[order]

    def solve(self, mask: Mask) -> Iterator[tuple[Loss, Indices]]:
        """Sufficient sets of units in a domain, without unnecessary members, and their losses."""
        problem, columns = self._problem, self._columns
        workers = self._workers[mask[columns.place[self._workers]]]
        timeline = Timeline(problem, self.now & mask, workers)
        sparing = Sparing(problem, mask)
        seen: set[bytes] = set()
        best: Loss | None = None
        for order in self._orders(workers):
            chosen = timeline.shortest_prefix(order, mask)
            if chosen is None or (key := np.sort(chosen).tobytes()) in seen:
                continue
            seen.add(key)
            for units in self._spared(sparing, chosen):
                if not within_caps(problem, units.tolist()):
                    continue
                loss = problem.loss(units)
                best = loss if best is None else min(loss, best)
                yield loss, units
        if (alone := self._alone(workers, mask, sparing, best)) is not None:
            yield problem.loss(alone), alone

    def _spared(self, sparing: Sparing, chosen: Indices) -> Iterator[Indices]:
        """The units that are needed, node by node; and as few runs as possible that shrink."""
        yield sparing.spare(chosen)
        columns = self._columns
        shrinks = np.zeros(len(columns.holding), dtype=np.bool_)
        shrinks[columns.holding[chosen[columns.spare[chosen]]]] = True
        more = shrinks[columns.holding] & columns.spare & (self._problem.options.why >= 0)
        more[chosen] = True
        every = np.flatnonzero(more)
        if columns.spare[chosen].any() and within_caps(self._problem, every.tolist()):
            yield sparing.spare(every, by_run=True)

    def _orders(self, workers: Indices) -> Iterator[Indices]:
        """Orders in which the units of these workers, and those that help otherwise, may leave."""
        columns, caps = self._columns, self._problem.options.caps
        wins = np.zeros(len(columns.holding), dtype=np.bool_)
        wins[columns.unit[workers]] = True
        costs = [columns.lost, self._density]
        if self._problem.demand.pack != "any":
            here = np.bincount(
                columns.holding[columns.unit[workers]], minlength=len(columns.holding)
            )
            costs.append(columns.lost / np.maximum(here[columns.holding], 1))
        every = wins | self._helpers
        if not caps:
            for cost in costs:
                yield columns.in_order(np.flatnonzero(every), cost)
            return
        # Nodes first: what only frees quota or spares must not use up what may be taken back. It
        # may be cheaper, though.
        orders = [columns.in_order(np.flatnonzero(wins), cost) for cost in costs]
        others = columns.in_order(np.flatnonzero(self._helpers & ~wins), columns.lost)
        if len(others):
            for cost in costs:
                yield self._within_caps(columns.in_order(np.flatnonzero(every), cost))
        short = False
        for order in orders:
            within = self._within_caps(np.concatenate([order, others]))
            short |= len(within) < len(order) + len(others)
            yield within
        if short:
            bundles = Bundles(self._problem, orders[0], workers)
            for key in ((*self._costs, bundles.gpus), (bundles.gpus, *self._costs)):
                bundle = bundles.by(key)
                within = self._within_caps(np.concatenate([bundle, others]))
                yield np.concatenate([bundle, within[~np.isin(within, bundle)]])

    def _within_caps(self, order: Indices) -> Indices:
        """The order without the units of queues that have then given back what they borrowed."""
        columns, caps = self._columns, self._problem.options.caps
        most = np.full(len(columns.queues), np.iinfo(np.int64).max, dtype=np.int64)
        most[list(caps)] = list(caps.values())
        queue, gpus = columns.queue[order], columns.gpus[order]
        by_queue = np.argsort(queue, kind="stable")
        before = np.cumsum(gpus[by_queue]) - gpus[by_queue]
        fresh = np.r_[True, np.diff(queue[by_queue]) != 0][: len(order)]
        before -= before[np.flatnonzero(fresh)][np.cumsum(fresh) - 1]
        keep = np.empty(len(order), dtype=np.bool_)
        keep[by_queue] = before < most[queue[by_queue]]
        found: Indices = order[keep]
        return found

    def _alone(
        self, workers: Indices, mask: Mask, sparing: Sparing, best: Loss | None
    ) -> Indices | None:
        """The cheapest run that suffices alone: what is above its minimum, or everything."""
        problem, columns = self._problem, self._columns
        place, unit = columns.place[workers], columns.unit[workers]
        of = columns.holding[unit]
        free, need = problem.free, problem.demand.need
        gpus, cpus, memory = shape_of(need)
        taken = problem.taken
        wins = free.gpus[place] + columns.need_gpus[of] - taken[0][place] >= gpus
        wins &= free.cpus[place] + columns.need_cpus[of] - taken[1][place] >= cpus
        wins &= free.memory[place] + columns.need_memory[of] - taken[2][place] >= memory
        missing = max(1, self._missing - count_nodes(self.now & mask))
        spare = columns.spare[unit]
        sheds = np.flatnonzero(np.bincount(of[wins & spare], minlength=1) >= missing)
        stops = np.flatnonzero(np.bincount(of[wins], minlength=1) >= missing)
        numbers = np.concatenate([sheds, stops])
        whole = np.r_[np.zeros(len(sheds), dtype=np.bool_), np.ones(len(stops), dtype=np.bool_)]
        first = columns.first[numbers]
        order = np.lexsort((columns.lost[first], whole, -columns.rank[first]))
        for i in order[:MAX_SINGLE_VICTIMS].tolist():
            units = columns.units_of(numbers[i])
            units = units[(problem.options.why[units] >= 0) & (whole[i] | columns.spare[units])]
            if best is not None and problem.loss(units) >= best:
                return None
            if within_caps(problem, units.tolist()) and sparing.suffices(units):
                spared = sparing.spare(units)
                if within_caps(problem, spared.tolist()):
                    return spared
        return None
