"""Runs that wait for quota, and who must not overtake them (backfill by quota).

A run that waits for quota is overtaken only by runs that do not delay it: those that end before its
quota is expected to be free. A run that has to borrow is also overtaken by runs of its queue that
need not, for a limited time; and by everybody for as long as it could not start even if its own
queue and all that is borrowed were given back. Other queues may borrow beside it only what does not
delay it; their own quota is always theirs.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import math
from collections.abc import Sequence
from functools import cached_property

from orchestrator.core.scheduling.quota import Quotas, QuotaStatus
from orchestrator.core.scheduling.types import Demand, Holding, accounted_gpus
from orchestrator.core.scheduling.upper_bounds import continues_on_nodes

BORROWER_SECONDS = 3600.0
"""Seconds for which runs within their queue's own quota overtake one that has to borrow.

The bound on how long they put it off; an estimate of ours, as long as an unknown end is waited for.
"""
UNKNOWN_SECONDS = 3600.0
"""Seconds that a run may take and still overtake one for whose quota no end is known."""


@dataclasses.dataclass(frozen=True)
class Waiting:
    """One run that waits for quota.

    Attributes:
        demand: The run.
        line: The runs that it waits with.
    """

    demand: Demand
    line: QuotaLine

    @cached_property
    def until(self) -> float:
        """Unix time until which others may use its quota; computed when somebody first asks."""
        return self.line.free_at(self.demand)


class QuotaLine:
    """The runs of one pass that wait for quota: the first of each queue, and of each cohort.

    Args:
        quotas: Use by queue; modified during a forecast and restored afterwards.
        holdings: What runs hold, with expected ends; may grow during the pass.
        now: The moment of the pass.
    """

    def __init__(self, quotas: Quotas, holdings: Sequence[Holding], now: dt.datetime) -> None:
        self._quotas, self._holdings, self._now = quotas, holdings, now
        self._of_queue: dict[str, Waiting] = {}
        self._of_cohort: dict[str, Waiting] = {}

    def wait(self, demand: Demand) -> None:
        """Record that a run waits for quota; only the first of a queue or cohort counts."""
        queue, gpus = demand.queue, demand.gang * accounted_gpus(demand.need)
        if gpus > self._quotas.reachable(queue):
            return  # others use their own quota, which nobody takes from them: blocking is in vain
        waiting = Waiting(demand, self)
        cohort = self._quotas.of(queue).cohort
        if gpus > (self._quotas.of(queue).gpus or 0) and cohort is not None:
            self._of_cohort.setdefault(cohort, waiting)
            if self._now - demand.submitted_at < dt.timedelta(seconds=BORROWER_SECONDS):
                return
        self._of_queue.setdefault(queue, waiting)

    def behind(self, demand: Demand) -> str | None:
        """The waiting run that a demand would delay; None: it may be placed."""
        if not (self._of_queue or self._of_cohort) or continues_on_nodes(demand):
            return None
        if (first := self._of_queue.get(demand.queue)) and self._delays(demand, first):
            return first.demand.run
        if not self._of_cohort:
            return None
        cohort = self._quotas.of(demand.queue).cohort
        if cohort is None or (first := self._of_cohort.get(cohort)) is None:
            return None
        limited = self._quotas.limited(demand.queue)
        borrows = limited and not self._quotas.owns(demand.queue, demand.gpus)
        return first.demand.run if borrows and self._delays(demand, first) else None

    def closed(self, queue: str) -> bool:
        """True if a run of the queue waits for the quota that growth would take."""
        return queue in self._of_queue

    def free_at(self, demand: Demand) -> float:
        """Unix time at which the quota for a run is expected to be free, by the known ends."""
        cohort = self._quotas.of(demand.queue).cohort
        ends = sorted(
            (holding.ends_at, holding.queue, holding.gpus)
            for holding in self._holdings
            if holding.ends_at is not None
            and (
                holding.queue == demand.queue
                or (cohort is not None and self._quotas.of(holding.queue).cohort == cohort)
            )
        )
        found, ended = math.inf, []
        for at, queue, gpus in ends:
            self._quotas.charge(queue, -gpus)
            ended.append((queue, gpus))
            status = self._quotas.status(demand.queue, demand.gpus)
            if status in {QuotaStatus.WITHIN, QuotaStatus.BORROWING}:
                found = max(at, self._now).timestamp()
                break
        for queue, gpus in ended:
            self._quotas.charge(queue, gpus)
        return found if math.isfinite(found) else self._now.timestamp() + UNKNOWN_SECONDS

    def _delays(self, demand: Demand, first: Waiting) -> bool:
        if demand.ends_within is None:
            return True
        return self._now.timestamp() + demand.ends_within > first.until
