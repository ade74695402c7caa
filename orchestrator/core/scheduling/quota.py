"""Quotas of queues: nominal, borrowed within a cohort, reclaimed (the model of Kueue)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from enum import StrEnum

from orchestrator.core.scheduling.terms import Quota


class Standing(StrEnum):
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
        for quota in self._quotas.values():
            if quota.cohort is not None and quota.gpus is not None:
                self._cohorts[quota.cohort].append(quota)

    def of(self, queue: str) -> Quota:
        """A queue's quota; one that was never set has no limit."""
        return self._quotas.get(queue) or Quota(name=queue)

    def used(self, queue: str) -> int:
        """GPUs its runs have."""
        return self._used[queue]

    def charge(self, queue: str, gpus: int) -> None:
        """Its runs have so many more (or fewer)."""
        self._used[queue] += gpus

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
        lent = sum(
            other.gpus or 0
            if other.lending_limit is None
            else min(other.gpus or 0, other.lending_limit)
            for other in self._mates(quota)
        )
        return quota.gpus + (
            lent if quota.borrowing_limit is None else min(lent, quota.borrowing_limit)
        )

    def standing(self, queue: str, gpus: int) -> Standing:
        """How the queue would stand with `gpus` more."""
        quota = self.of(queue)
        if quota.gpus is None:
            return Standing.WITHIN
        self._used[queue] += gpus
        above, excess = self.borrowed(queue), self._excess(quota)
        self._used[queue] -= gpus
        if above == 0:
            return Standing.RECLAIMING if excess > 0 else Standing.WITHIN
        limit = quota.borrowing_limit
        if excess > 0 or (limit is not None and above > limit):
            return Standing.OVER
        return Standing.BORROWING

    def excess(self, queue: str, gpus: int) -> int:
        """GPUs that borrowers must give back before the queue may use `gpus` more of its own."""
        self._used[queue] += gpus
        excess = self._excess(self.of(queue))
        self._used[queue] -= gpus
        return excess

    def borrowers(self, queue: str) -> set[str]:
        """Other queues of its cohort that use more than their own."""
        return {
            other.name for other in self._mates(self.of(queue)) if self.borrowed(other.name) > 0
        }

    def _mates(self, quota: Quota) -> list[Quota]:
        return [q for q in self._cohorts.get(quota.cohort or "", []) if q.name != quota.name]

    def _excess(self, quota: Quota) -> int:
        """GPUs borrowed within the cohort beyond what is lent."""
        members = [quota, *self._mates(quota)]
        lent = sum(self._lendable(q) for q in members)
        return max(0, sum(self.borrowed(q.name) for q in members) - lent)

    def _lendable(self, quota: Quota) -> int:
        unused = max(0, (quota.gpus or 0) - self._used[quota.name])
        return unused if quota.lending_limit is None else min(unused, quota.lending_limit)
