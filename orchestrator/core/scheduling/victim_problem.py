"""The problem that preemption solves for one demand: which victims free enough for it."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

import numpy as np

from orchestrator.core.scheduling.eligibility import Eligible
from orchestrator.core.scheduling.free_resources import FreeResources
from orchestrator.core.scheduling.node_table import Indices, Mask
from orchestrator.core.scheduling.quota import Quotas, QuotaStatus
from orchestrator.core.scheduling.quota_what_if import WhatIf
from orchestrator.core.scheduling.reservations import Columns
from orchestrator.core.scheduling.types import PRIORITY_RANK, Demand, Holding
from orchestrator.core.scheduling.victims import Options, Victims

Loss = tuple[float, ...]
"""GPU seconds lost by priority, the highest first, of runs that stop and of runs that shrink;
compared lexicographically. Each run counts one more, so that fewer victims win among free ones."""
NOBODY: Indices = np.empty(0, dtype=np.intp)
"""No units."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Situation:
    """The state of a pass that looks for victims.

    Attributes:
        free: Free resources now.
        leaving: Holdings that become free without any further preemption.
        quotas: Use by queue.
        eligible: The rules about the nodes that a demand may use.
        victims: What may be preempted in this pass.
    """

    free: FreeResources
    leaving: Sequence[Holding]
    quotas: Quotas
    eligible: Eligible
    victims: Victims

    @cached_property
    def coming(self) -> int:
        """Number of nodes that become free."""
        return sum(len(holding.nodes) for holding in self.leaving)

    @cached_property
    def left(self) -> Mapping[str, int]:
        """GPUs of the runs that are leaving already, by queue."""
        found: dict[str, int] = defaultdict(int)
        for holding in self.leaving:
            found[holding.queue] += holding.gpus
        return found


class Problem:
    """The needs of one demand, and the cluster as it would be without any given units.

    Args:
        situation: The state of the pass.
        demand: The run that needs nodes.
        options: The units that may be taken.

    Attributes:
        left: GPUs of the runs that are leaving already, by queue.
    """

    def __init__(self, situation: Situation, demand: Demand, options: Options) -> None:
        self.quotas, self.eligible = situation.quotas, situation.eligible
        self.demand, self.options = demand, options
        self.columns = situation.victims.columns
        self._situation, self.left = situation, situation.left

    # Lazy, as most demands of a fleet with quotas fail before anybody looks at the nodes.

    @cached_property
    def free(self) -> FreeResources:
        """Free resources once the runs have left that are leaving already."""
        free = self._situation.free.copy()
        for holding in self._situation.leaving:
            free.give(free.table.places(holding.nodes), holding.need)
        return free

    @cached_property
    def workers(self) -> Indices:
        """Workers of the options."""
        mine = np.zeros(len(self.columns.holding), dtype=np.bool_)
        mine[self.options.units] = True
        found: Indices = np.flatnonzero(mine[self.columns.unit])
        return found

    @cached_property
    def taken(self) -> Columns:
        """By column and node index, what the demand must leave to reservations of other runs."""
        ends = self.eligible.ends_at(self.demand)
        return self.eligible.reservations.taken(ends, self.demand.need, self.free)

    @property
    def keeps_spares(self) -> bool:
        """True if the demand must leave the pool of spares whole."""
        return self.eligible.spares > 0 and not self.demand.recovers

    def free_after(self, units: Indices) -> FreeResources:
        """Free resources once these units have left."""
        free, columns = self.free.copy(), self.columns
        chosen = np.zeros(len(columns.holding), dtype=np.bool_)
        chosen[units] = True
        workers = self.workers[chosen[columns.unit[self.workers]]]
        places, of = columns.place[workers], columns.holding[columns.unit[workers]]
        np.add.at(free.gpus, places, columns.need_gpus[of])
        np.add.at(free.cpus, places, columns.need_cpus[of])
        np.add.at(free.memory, places, columns.need_memory[of])
        np.add.at(free.tenants, places, -1)
        return free

    def usable(self, free: FreeResources) -> Mask:
        """Nodes that the demand may use, given these free resources."""
        return self.eligible.usable_after_preemption(free, self.demand)

    def quota_suffices(self, units: Indices) -> bool:
        """True if the queue may use the nodes once these units have left."""
        if not self.quotas.limited(self.demand.queue):
            return True
        columns = self.columns
        freed = np.bincount(
            columns.queue[units], weights=columns.gpus[units], minlength=len(columns.queues)
        )
        return self._what_if.allowed(freed.astype(np.int64))

    @cached_property
    def _what_if(self) -> WhatIf:
        return WhatIf(
            self.quotas, self.demand.queue, self.demand.gpus, self.columns.queues, self.left
        )

    def quota_allows(self) -> bool:
        """True if the queue may use the nodes as its quota is charged now."""
        status = self.quotas.status(self.demand.queue, self.demand.gpus)
        return status in {QuotaStatus.WITHIN, QuotaStatus.BORROWING}

    def loss(self, units: Indices) -> Loss:
        """Cost of these units."""
        columns = self.columns
        holdings, at = np.unique(columns.holding[units], return_index=True)
        stops = np.zeros(len(holdings), dtype=np.bool_)
        stopped = columns.holding[units[~columns.spare[units]]]
        stops[np.searchsorted(holdings, stopped)] = True
        first = units[at]
        sums = np.bincount(
            2 * columns.rank[first] + ~stops,
            weights=1.0 + columns.lost[first],
            minlength=2 * len(PRIORITY_RANK),
        )
        return tuple(sums.tolist())


def within_caps(problem: Problem, units: Iterable[int]) -> bool:
    """True if no queue gives back more than it has borrowed, but for its largest part as a whole.

    A run that stops is one part; of a run that shrinks each node is one.
    """
    columns, caps = problem.columns, problem.options.caps
    if not caps:
        return True
    parts: dict[int, dict[int, int]] = defaultdict(dict)
    units = list(units)
    stops = {int(columns.holding[unit]) for unit in units if not columns.spare[unit]}
    for unit in units:
        number, holding = int(columns.queue[unit]), int(columns.holding[unit])
        if number in caps and holding in stops:
            parts[number][-1 - holding] = int(columns.run_gpus[unit])
        elif number in caps:
            parts[number][unit] = int(columns.gpus[unit])
    return all(
        sum(each.values()) - max(each.values()) < caps[number] for number, each in parts.items()
    )
