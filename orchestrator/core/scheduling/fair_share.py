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
Entry = tuple[float, float, str, int, int]
"""Aged score, submission (Unix time) and id of a line's oldest run, the number of the line, and the
GPUs of its project at that time."""


_Aged = tuple[float, str, Demand]
"""Submission (Unix time) and id of a run, and the run."""


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
        claim = demand.claim  # most have none
        newcomer = claim is None or not claim.nodes
        classes[PRIORITY_RANK[demand.priority], not demand.recovers, newcomer].append(demand)
    # A generator, because the order depends on what the caller charges between two demands.
    for key in sorted(classes):
        *_, by_share = key
        yield from (
            _by_share(classes[key], shares, now) if by_share else sorted(classes[key], key=age)
        )


age = operator.attrgetter("submitted_at", "run")
"""Sort key: submission time, then the id of the run."""


def _by_share(demands: Sequence[Demand], shares: Shares, now: dt.datetime) -> Iterator[Demand]:
    """Yield the oldest demand of the project with the lowest score, until none is left."""
    # Numbers sort several times as fast as dates.
    youngest_first = sorted(((d.submitted_at.timestamp(), d.run, d) for d in demands), reverse=True)
    by_project: dict[tuple[str, str], list[_Aged]] = defaultdict(list)
    for each in youngest_first:
        demand = each[2]
        by_project[demand.queue, demand.project].append(each)
    if len(by_project) == 1:  # nobody competes
        yield from [each[2] for each in reversed(youngest_first)]
        return
    lines = [_Line(i, own, shares, now) for i, own in enumerate(by_project.values())]
    heap = [line.entry() for line in lines]
    heapq.heapify(heap)
    while heap:
        *_, number, gpus = heap[0]
        line = lines[number]
        # Scores only grow during a pass, so a stale heap entry is too small and never missed.
        if shares.gpus(line.project) != gpus:
            heapq.heapreplace(heap, line.entry())
            continue
        yield line.pop()
        if line.left:
            heapq.heapreplace(heap, line.entry())
        else:
            heapq.heappop(heap)


class _Line:
    """The waiting runs of one project in one queue, and how its score counts for each.

    Use counts half after each `AGE_HALF_LIFE_SECONDS` of waiting, and the run is credited with the
    GPU time that it would have had meanwhile. So no stream of runs of projects that have used less,
    or nothing yet, can keep it waiting for ever.

    Attributes:
        project: The project.
        left: Number of runs that are left.
    """

    def __init__(self, number: int, own: list[_Aged], shares: Shares, now: dt.datetime) -> None:
        first = own[0][2]
        self._number, self._own, self._shares = number, own, shares
        self._queue, self.project = first.queue, first.project
        self._gpus, self._score = -1, 0.0
        self.left = len(own)
        weight = shares.weight(self._queue, self.project)
        self._ages: list[tuple[float, float]] = []
        """For each run, the factor of the score and the credit."""
        for each in own:
            demand = each[2]
            waited = (now - (demand.waits_since or demand.submitted_at)).total_seconds()
            if waited <= 0.0:
                self._ages.append((1.0, 0.0))
                continue
            waited = min(waited, MAX_AGE_SECONDS)
            gpus = demand.nodes * (demand.need.gpus_per_node or 1)
            factor = math.exp2(-waited / AGE_HALF_LIFE_SECONDS)
            self._ages.append((factor, gpus * waited / weight))

    def pop(self) -> Demand:
        """The oldest run that is left."""
        self.left -= 1
        return self._own[self.left][2]

    def entry(self) -> Entry:
        """The place of the oldest run among those of other lines."""
        gpus = self._shares.gpus(self.project)
        if gpus != self._gpus:  # the score changes only when the pass places a run of the project
            self._gpus, self._score = gpus, self._shares.score(self._queue, self.project)
        last = self.left - 1
        submitted, run, _ = self._own[last]
        factor, credit = self._ages[last]
        return self._score * factor - credit, submitted, run, self._number, gpus
