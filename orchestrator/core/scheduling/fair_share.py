"""Fair share: who goes first among runs of one priority, and what projects have used."""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from orchestrator.core.scheduling.types import PRIORITY_RANK, Demand, Holding

HALF_LIFE_SECONDS = 7 * 86400.0
"""Use counts half after so long (Slurm's default, PriorityDecayHalfLife)."""
HORIZON_SECONDS = 3600.0
"""GPUs a project has now count as if it kept them so much longer: so one pass shares evenly too."""


def decayed(gpu_seconds: float, elapsed: float) -> float:
    """What use counts for, `elapsed` seconds later."""
    return gpu_seconds * math.exp2(-elapsed / HALF_LIFE_SECONDS)


def accrued(gpus: int, seconds: Iterable[float]) -> float:
    """What the use of so many GPUs counts for each time that it began so long ago and goes on.

    Each moment decays: the integral of `gpus` x 2^(-t / half life) over that time. It
    never counts for more than 10.1 days (half life / ln 2), however long it goes on.
    """
    lifetime = HALF_LIFE_SECONDS / math.log(2.0)
    return gpus * lifetime * sum(-math.expm1(-each / lifetime) for each in seconds)


class Shares:
    """What each project has used, has now, and so is due."""

    def __init__(
        self,
        usage: Mapping[str, float],
        holdings: Sequence[Holding],
        weights: Mapping[tuple[str, str], float],
    ) -> None:
        self._usage, self._weights = usage, weights
        self._gpus: dict[str, int] = defaultdict(int)
        for holding in holdings:
            self._gpus[holding.project] += holding.gpus

    def score(self, queue: str, project: str) -> float:
        """GPU seconds for each unit of weight: the lowest goes first."""
        used = self._usage.get(project, 0.0) + self._gpus[project] * HORIZON_SECONDS
        return used / self._weights.get((queue, project), 1.0)

    def charge(self, demand: Demand) -> None:
        """A run of the project was placed."""
        self._gpus[demand.project] += demand.gpus


def in_order(demands: Sequence[Demand], shares: Shares) -> Iterator[Demand]:
    """Demands, one after the other, as the pass charges what it places.

    First recoveries, which must not wait behind newcomers. Then by priority; within one the project
    with the least share; within one who came first.
    """
    classes: dict[tuple[bool, int], list[Demand]] = defaultdict(list)
    for demand in demands:
        classes[not demand.recovers, PRIORITY_RANK[demand.priority]].append(demand)
    for key in sorted(classes):
        yield from _fairly(classes[key], shares)


def age(demand: Demand) -> tuple[object, str]:
    """Who came first."""
    return demand.submitted_at, demand.run


def _fairly(demands: Sequence[Demand], shares: Shares) -> Iterator[Demand]:
    """The oldest of the project that is due most, again and again."""
    lines: dict[tuple[str, str], list[Demand]] = defaultdict(list)
    for demand in sorted(demands, key=age, reverse=True):
        lines[demand.queue, demand.project].append(demand)
    heap = [(shares.score(*key), age(line[-1]), key) for key, line in lines.items()]
    heapq.heapify(heap)
    while heap:
        score, oldest, key = heapq.heappop(heap)
        now = shares.score(*key)
        if now > score:  # something of the project was placed since
            heapq.heappush(heap, (now, oldest, key))
            continue
        line = lines[key]
        yield line.pop()
        if line:
            heapq.heappush(heap, (shares.score(*key), age(line[-1]), key))
