"""Fair share: the order of runs within one priority, from the decayed use of their projects."""

from __future__ import annotations

import datetime as dt
import heapq
import math
import operator
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from orchestrator.core.scheduling.types import PRIORITY_RANK, Demand, Quota

HALF_LIFE_SECONDS = 7 * 86400.0
"""Past use counts half after this many seconds (Slurm's default, PriorityDecayHalfLife)."""
HORIZON_SECONDS = 3600.0
"""Seconds of future use charged for GPUs held now, so that a single pass shares evenly as well."""
AGE_HALF_LIFE_SECONDS = 86400.0
"""A project's use counts half for a run that has waited this many seconds."""
MAX_AGE_SECONDS = 7 * 86400.0
"""Seconds of waiting after which a run does not age any more (Slurm's default, PriorityMaxAge)."""
Entry = tuple[float, dt.datetime, str, int, int]
"""Aged score, submission and id of a project's oldest run, the number of its line, and the GPUs of
the project at that time."""


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
        gpus: Accounted GPUs that the runs of each project hold now.
        weights: Weight by queue and project; absent: 1.
    """

    def __init__(
        self,
        usage: Mapping[str, float],
        gpus: Mapping[str, int],
        weights: Mapping[tuple[str, str], float],
    ) -> None:
        self._usage, self._weights = usage, weights
        self._gpus: dict[str, int] = defaultdict(int, gpus)

    def score(self, queue: str, project: str) -> float:
        """GPU seconds per unit of weight; the project with the lowest score goes first."""
        used = self._usage.get(project, 0.0) + self._gpus[project] * HORIZON_SECONDS
        return used / self.weight(queue, project)

    def gpus(self, project: str) -> int:
        """Accounted GPUs that the project's runs hold."""
        return self._gpus[project]

    def weight(self, queue: str, project: str) -> float:
        """Weight of a project within a queue."""
        return self._weights.get((queue, project), 1.0)

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


age = operator.attrgetter("submitted_at", "run")
"""Sort key: submission time, then the id of the run."""


class _Line:
    """The waiting runs of one project in one queue, and how its score counts for the oldest.

    Use counts half after each `AGE_HALF_LIFE_SECONDS` of waiting, and the run is credited with the
    GPU time that it would have had meanwhile. So no stream of runs of projects that have used less,
    or nothing yet, can keep it waiting for ever.

    Args:
        number: Number of the line.
        demands: The runs, the youngest first.
        shares: Use and current GPUs of each project.
        now: The moment of the pass.

    Attributes:
        project: The project.
        demands: The runs that are left; the last is the oldest.
    """

    def __init__(
        self, number: int, demands: list[Demand], shares: Shares, now: dt.datetime
    ) -> None:
        self._number, self.demands = number, demands
        self._queue, self.project = demands[0].queue, demands[0].project
        self._shares, self._now = shares, now
        self._weight = shares.weight(self._queue, self.project)
        self._gpus, self._score = -1, 0.0

    def entry(self) -> Entry:
        """The place of the oldest run among those of other lines."""
        gpus = self._shares.gpus(self.project)
        if gpus != self._gpus:  # the score changes only when the pass places a run of the project
            self._gpus, self._score = gpus, self._shares.score(self._queue, self.project)
        oldest = self.demands[-1]
        waited = (self._now - (oldest.waits_since or oldest.submitted_at)).total_seconds()
        if waited <= 0.0:
            waited = 0.0
        elif waited > MAX_AGE_SECONDS:
            waited = MAX_AGE_SECONDS
        aged = self._score * math.exp2(-waited / AGE_HALF_LIFE_SECONDS)
        aged -= oldest.gpus * waited / self._weight
        return aged, oldest.submitted_at, oldest.run, self._number, gpus


def _by_share(demands: Sequence[Demand], shares: Shares, now: dt.datetime) -> Iterator[Demand]:
    """Yield the oldest demand of the project with the lowest score, until none is left."""
    queues: dict[tuple[str, str], list[Demand]] = defaultdict(list)
    for demand in sorted(demands, key=age, reverse=True):
        queues[demand.queue, demand.project].append(demand)
    lines = [_Line(i, each, shares, now) for i, each in enumerate(queues.values())]
    heap = [line.entry() for line in lines] if len(lines) > 1 else []
    heapq.heapify(heap)
    while len(heap) > 1:
        *_, number, gpus = heap[0]
        line = lines[number]
        # Scores only grow during a pass, so a stale heap entry is too small and never missed.
        if shares.gpus(line.project) != gpus:
            heapq.heapreplace(heap, line.entry())
            continue
        yield line.demands.pop()
        if line.demands:
            heapq.heapreplace(heap, line.entry())
        else:
            heapq.heappop(heap)
    last = lines[heap[0][3] if heap else 0]
    yield from reversed(last.demands)  # nobody competes with them
