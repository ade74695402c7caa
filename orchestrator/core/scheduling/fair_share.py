"""Fair share: the order of runs within one priority, from the decayed use of their projects."""

from __future__ import annotations

import datetime as dt
import heapq
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from orchestrator.core.scheduling.types import PRIORITY_RANK, Demand, Holding, Quota

HALF_LIFE_SECONDS = 7 * 86400.0
"""Past use counts half after this many seconds (Slurm's default, PriorityDecayHalfLife)."""
HORIZON_SECONDS = 3600.0
"""Seconds of future use charged for GPUs held now, so that a single pass shares evenly as well."""
AGE_HALF_LIFE_SECONDS = 86400.0
"""A project's use counts half for a run that has waited this many seconds."""
MAX_AGE_SECONDS = 7 * 86400.0
"""Seconds of waiting after which a run does not age any more (Slurm's default, PriorityMaxAge)."""
Entry = tuple[float, tuple[dt.datetime, str], tuple[str, str], float]
"""Aged score and age of a project's oldest run, its queue and project, score of the project."""


def decayed(gpu_seconds: float, elapsed: float) -> float:
    """GPU seconds that past use counts for after another `elapsed` seconds."""
    return gpu_seconds * math.exp2(-elapsed / HALF_LIFE_SECONDS)


def accrued(gpus: int, seconds: Iterable[float]) -> float:
    """Decayed GPU seconds of `gpus` GPUs in use since each of the given numbers of seconds.

    Each moment decays on its own: the integral of `gpus` x 2^(-t / half life) over the time. A GPU
    never counts for more than 10.1 days (half life / ln 2), however long it is in use.
    """
    lifetime = HALF_LIFE_SECONDS / math.log(2.0)
    return gpus * lifetime * sum(-math.expm1(-each / lifetime) for each in seconds)


def weights(quotas: Iterable[Quota]) -> dict[tuple[str, str], float]:
    """The weight of each project by queue and project."""
    return {(quota.name, project): w for quota in quotas for project, w in quota.weights.items()}


class Shares:
    """Use and current GPUs of each project, and the order that follows from them.

    Args:
        usage: Decayed GPU seconds by project; absent: none.
        holdings: Nodes that every run holds now.
        weights: Weight by queue and project; absent: 1.
    """

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
        """GPU seconds per unit of weight; the project with the lowest score goes first."""
        used = self._usage.get(project, 0.0) + self._gpus[project] * HORIZON_SECONDS
        return used / self._weights.get((queue, project), 1.0)

    def aged(self, demand: Demand, score: float, now: dt.datetime) -> float:
        """The score of a run's project as it counts for this run, which may have waited for long.

        Use counts half after each `AGE_HALF_LIFE_SECONDS` of waiting, and the run is credited with
        the GPU time that it would have had meanwhile. So no stream of runs of projects that have
        used less, or nothing yet, can keep it waiting for ever.
        """
        since = demand.submitted_at if demand.waits_since is None else demand.waits_since
        waited = min(MAX_AGE_SECONDS, max(0.0, (now - since).total_seconds()))
        credit = demand.gpus * waited / self._weights.get((demand.queue, demand.project), 1.0)
        return score * math.exp2(-waited / AGE_HALF_LIFE_SECONDS) - credit

    def charge(self, demand: Demand) -> None:
        """Count the GPUs of a run that this pass has placed."""
        self._gpus[demand.project] += demand.gpus


def in_order(demands: Sequence[Demand], shares: Shares, now: dt.datetime) -> Iterator[Demand]:
    """Yield the demands in scheduling order, adapting to what the pass charges meanwhile.

    The order is by priority. Within a priority, recoveries come before newcomers, then runs with a
    claim from an earlier pass, the oldest first; then by fair share of the project
    (:meth:`Shares.aged`), within a project by submission time.
    """
    classes: dict[tuple[int, bool, bool], list[Demand]] = defaultdict(list)
    for demand in demands:
        key = PRIORITY_RANK[demand.priority], not demand.recovers, not demand.reserved
        classes[key].append(demand)
    # A generator, because the order depends on what the caller charges between two demands.
    for key in sorted(classes):
        *_, by_share = key
        yield from (
            _by_share(classes[key], shares, now) if by_share else sorted(classes[key], key=age)
        )


def age(demand: Demand) -> tuple[dt.datetime, str]:
    """Sort key: submission time, then the id of the run."""
    return demand.submitted_at, demand.run


def _by_share(demands: Sequence[Demand], shares: Shares, now: dt.datetime) -> Iterator[Demand]:
    """Yield the oldest demand of the project with the lowest score, until none is left."""
    queues: dict[tuple[str, str], list[Demand]] = defaultdict(list)
    for demand in sorted(demands, key=age, reverse=True):
        queues[demand.queue, demand.project].append(demand)

    def entry(key: tuple[str, str]) -> Entry:
        oldest, score = queues[key][-1], shares.score(*key)
        return shares.aged(oldest, score, now), age(oldest), key, score

    # An entry holds the score of the project as well: only a pass that has placed a run of the
    # project since makes the entry stale.
    heap = [entry(key) for key in queues]
    heapq.heapify(heap)
    while heap:
        *_, key, score = heap[0]
        # Scores only grow during a pass, so a stale heap entry is too small and never missed.
        if shares.score(*key) > score:
            heapq.heapreplace(heap, entry(key))
            continue
        yield queues[key].pop()
        if queues[key]:
            heapq.heapreplace(heap, entry(key))
        else:
            heapq.heappop(heap)
