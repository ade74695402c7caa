"""Quotas of queues: nominal, borrowed within a cohort, reclaimed (the model of Kueue).

All amounts are GPUs; a worker without GPUs counts as one (`accounted_gpus`).
"""

from __future__ import annotations

import heapq
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from enum import StrEnum

from orchestrator.core.scheduling.types import Quota


class QuotaStatus(StrEnum):
    """The quota status of a queue if it used a given number of further GPUs."""

    WITHIN = "within"  # within its nominal quota, or the queue has no limit
    BORROWING = "borrowing"  # above it, covered by unused quota of the cohort
    RECLAIMING = "reclaiming"  # within it, but other queues have borrowed that quota
    OVER = "over"  # above the quota that it may use now


class Quotas:
    """GPUs that each queue uses and may use."""

    def __init__(self, quotas: Iterable[Quota]) -> None:
        self._quotas = {quota.name: quota for quota in quotas}
        self._used: dict[str, int] = defaultdict(int)
        self._lendable: dict[str, int] = defaultdict(int)
        """Cohort → GPUs that its queues could lend if all were idle."""
        self._excess: dict[str, int] = defaultdict(int)
        """Cohort → borrowed GPUs minus lendable GPUs; positive: a queue must give GPUs back."""
        self._lendable_now: dict[str, int] = defaultdict(int)
        """Cohort → GPUs that its queues could lend beside what they use themselves."""
        self._borrowers: dict[str, dict[str, int]] = defaultdict(dict)
        """Cohort → queue that borrows → GPUs."""
        self._ceilings: dict[str, int] = {}
        self._largest: dict[tuple[str, int], tuple[int, list[tuple[str, int]], int]] = {}
        """Cohort and count → charges so far, the largest borrowers, number of the others."""
        self.changes = 0
        """Number of charges so far; what depends on use holds until the next one."""
        for quota in self._quotas.values():
            if quota.cohort is not None and quota.gpus is not None:
                self._lendable[quota.cohort] += _lendable(quota, 0)
                self._excess[quota.cohort] -= _lendable(quota, 0)
                self._lendable_now[quota.cohort] += _lendable(quota, 0)

    def of(self, queue: str) -> Quota:
        """The quota of a queue; a queue that was never configured has no limit."""
        if (quota := self._quotas.get(queue)) is None:
            quota = self._quotas[queue] = Quota(name=queue)
        return quota

    def used(self, queue: str) -> int:
        """GPUs that the queue's runs hold."""
        return self._used[queue]

    def charge(self, queue: str, gpus: int) -> None:
        """Add `gpus` (negative: subtract) to what the queue's runs hold."""
        quota, before = self.of(queue), self._used[queue]
        used = self._used[queue] = before + gpus
        self.changes += 1
        if quota.cohort is None or quota.gpus is None:
            return
        # Kept as running sums: a check must not visit every queue of the cohort.
        self._excess[quota.cohort] += _excess(quota, used) - _excess(quota, before)
        self._lendable_now[quota.cohort] += _lendable(quota, used) - _lendable(quota, before)
        if used > quota.gpus:
            self._borrowers[quota.cohort][queue] = used - quota.gpus
        else:
            self._borrowers[quota.cohort].pop(queue, None)

    def limited(self, queue: str) -> bool:
        """True if the queue has a nominal quota."""
        return self.of(queue).gpus is not None

    def borrowed(self, queue: str) -> int:
        """GPUs that the queue uses above its nominal quota; 0 without a limit."""
        nominal = self.of(queue).gpus
        return 0 if nominal is None else max(0, self._used[queue] - nominal)

    def ceiling(self, queue: str) -> int | None:
        """GPUs that the queue could use with all other queues idle; None: no limit."""
        quota = self.of(queue)
        if quota.gpus is None:
            return None
        if queue not in self._ceilings:
            lent = self._lendable.get(quota.cohort or "", 0) - _lendable(quota, 0)
            limit = quota.borrowing_limit
            if quota.cohort is None:
                lent = 0
            self._ceilings[queue] = quota.gpus + (lent if limit is None else min(lent, limit))
        return self._ceilings[queue]

    def reachable(self, queue: str) -> int:
        """GPUs that the queue could use if its own runs and all that is borrowed had ended."""
        quota = self.of(queue)
        if quota.gpus is None:
            return sys.maxsize
        if quota.cohort is None:
            return quota.gpus
        lent = self._lendable_now[quota.cohort] - _lendable(quota, self._used[queue])
        limit = quota.borrowing_limit
        return quota.gpus + (lent if limit is None else min(lent, limit))

    def status(
        self, queue: str, gpus: int, freed: Mapping[str, int] | None = None, change: int = 0
    ) -> QuotaStatus:
        """The status of the queue if it used `gpus` more. The quotas are unchanged.

        Args:
            queue: The queue.
            gpus: Further GPUs that its runs would hold.
            freed: GPUs by queue that other runs would have left before; None: none.
            change: A further change of the excess of its cohort (:mod:`.quota_what_if`).
        """
        quota = self.of(queue)
        if quota.gpus is None:
            return QuotaStatus.WITHIN
        used = self._used[queue]
        after, excess = used + gpus, change
        if freed:
            after -= freed.get(queue, 0)
            if quota.cohort is not None:
                excess += sum(
                    self._excess_without(other, less)
                    for other, less in freed.items()
                    if other != queue and self.of(other).cohort == quota.cohort
                )
        above = max(0, after - quota.gpus)
        if quota.cohort is None:
            excess = above
        else:
            excess += self._excess[quota.cohort] + _excess(quota, after) - _excess(quota, used)
        if above == 0:
            return QuotaStatus.RECLAIMING if excess > 0 else QuotaStatus.WITHIN
        limit = quota.borrowing_limit
        if excess > 0 or (limit is not None and above > limit):
            return QuotaStatus.OVER
        return QuotaStatus.BORROWING

    def largest_borrowers(self, queue: str, count: int) -> tuple[list[tuple[str, int]], int]:
        """The queues of its cohort that have borrowed the most, and how many more there are."""
        cohort = self.of(queue).cohort or ""
        key = cohort, count
        if (known := self._largest.get(key)) is None or known[0] != self.changes:
            lent = self._borrowers.get(cohort, {})
            most = heapq.nsmallest(count, lent.items(), key=lambda each: (-each[1], each[0]))
            known = self._largest[key] = self.changes, most, len(lent) - len(most)
        return known[1], known[2]

    def _excess_without(self, queue: str, gpus: int) -> int:
        """The change of its cohort's excess if runs of the queue leave this many GPUs."""
        quota, used = self._quotas[queue], self._used[queue]
        if quota.gpus is None:
            return 0
        return _excess(quota, used - gpus) - _excess(quota, used)

    def owns(self, queue: str, gpus: int) -> bool:
        """True if `gpus` more are within the nominal quota of the queue; False without a quota."""
        nominal = self.of(queue).gpus
        return nominal is not None and self._used[queue] + gpus <= nominal

    def borrowers(self, queue: str) -> Mapping[str, int]:
        """The queues of its cohort that use more than their nominal quota, and how many GPUs more.

        A view: the next charge may change it. The queue itself is among them if it borrows.
        """
        return self._borrowers.get(self.of(queue).cohort or "", {})


def _excess(quota: Quota, used: int) -> int:
    """The contribution of a queue to the excess of its cohort."""
    return max(0, used - (quota.gpus or 0)) - _lendable(quota, used)


def _lendable(quota: Quota, used: int) -> int:
    unused = max(0, (quota.gpus or 0) - used)
    return unused if quota.lending_limit is None else min(unused, quota.lending_limit)
