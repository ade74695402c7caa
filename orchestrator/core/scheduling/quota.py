"""Quotas of queues: nominal, borrowed within a cohort, reclaimed (the model of Kueue)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from enum import StrEnum

from orchestrator.core.scheduling.types import Quota


class QuotaStatus(StrEnum):
    """How a queue would stand with so many more GPUs."""

    WITHIN = "within"  # within its nominal quota, or without a limit
    BORROWING = "borrowing"  # above it, with what others do not use
    RECLAIMING = "reclaiming"  # within it, but others have borrowed what is its own
    OVER = "over"  # more than it may use now


class Quotas:
    """What queues use, and may use."""

    def __init__(self, quotas: Iterable[Quota]) -> None:
        self._quotas = {quota.name: quota for quota in quotas}
        self._used: dict[str, int] = defaultdict(int)
        self._cohorts: dict[str, list[Quota]] = defaultdict(list)
        self._excess: dict[str, int] = defaultdict(int)
        """Cohort → GPUs that are borrowed in it, less those that are lent at most."""
        self._borrowers: dict[str, set[str]] = defaultdict(set)
        self._most: dict[str, int] = {}
        for quota in self._quotas.values():
            if quota.cohort is not None and quota.gpus is not None:
                self._cohorts[quota.cohort].append(quota)
                self._excess[quota.cohort] += self._balance(quota)

    def of(self, queue: str) -> Quota:
        """A queue's quota; one that was never set has no limit."""
        return self._quotas.get(queue) or Quota(name=queue)

    def used(self, queue: str) -> int:
        """GPUs its runs have."""
        return self._used[queue]

    def charge(self, queue: str, gpus: int) -> None:
        """Its runs have so many more (or fewer)."""
        quota = self.of(queue)
        before = self._balance(quota)
        self._used[queue] += gpus
        if quota.cohort is not None and quota.gpus is not None:
            self._excess[quota.cohort] += self._balance(quota) - before
            borrowers = self._borrowers[quota.cohort]
            (borrowers.add if self.borrowed(queue) else borrowers.discard)(queue)

    def limited(self, queue: str) -> bool:
        """Whether it has a quota."""
        return self.of(queue).gpus is not None

    def borrowed(self, queue: str) -> int:
        """GPUs it uses above its nominal quota."""
        nominal = self.of(queue).gpus
        return 0 if nominal is None else max(0, self._used[queue] - nominal)

    def most(self, queue: str) -> int | None:
        """GPUs it could ever use, with all others idle; None: no limit."""
        quota = self.of(queue)
        if quota.gpus is None:
            return None
        if queue not in self._most:
            mates = self._cohorts.get(quota.cohort or "", [])
            lent = sum(_lendable(other, 0) for other in mates if other.name != queue)
            limit = quota.borrowing_limit
            self._most[queue] = quota.gpus + (lent if limit is None else min(lent, limit))
        return self._most[queue]

    def standing(self, queue: str, gpus: int) -> QuotaStatus:
        """How the queue would stand with `gpus` more."""
        quota = self.of(queue)
        if quota.gpus is None:
            return QuotaStatus.WITHIN
        self.charge(queue, gpus)
        above, excess = self.borrowed(queue), self._beyond(quota)
        self.charge(queue, -gpus)
        if above == 0:
            return QuotaStatus.RECLAIMING if excess > 0 else QuotaStatus.WITHIN
        limit = quota.borrowing_limit
        if excess > 0 or (limit is not None and above > limit):
            return QuotaStatus.OVER
        return QuotaStatus.BORROWING

    def borrowers(self, queue: str) -> set[str]:
        """Other queues of its cohort that use more than their own."""
        return self._borrowers.get(self.of(queue).cohort or "", set()) - {queue}

    def _beyond(self, quota: Quota) -> int:
        """GPUs borrowed within the cohort beyond what is lent."""
        return self.borrowed(quota.name) if quota.cohort is None else self._excess[quota.cohort]

    def _balance(self, quota: Quota) -> int:
        """GPUs a queue has borrowed, less those that it has to lend."""
        return self.borrowed(quota.name) - _lendable(quota, self._used[quota.name])


def _lendable(quota: Quota, used: int) -> int:
    unused = max(0, (quota.gpus or 0) - used)
    return unused if quota.lending_limit is None else min(unused, quota.lending_limit)
