"""The status of one queue once other runs have left, for many sets of such runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from orchestrator.core.scheduling.quota import Quotas, QuotaStatus

Gpus = NDArray[np.int64]
"""GPUs by number of a queue."""
_UNLIMITED = 1 << 60


class WhatIf:
    """Answers as :meth:`.quota.Quotas.status`, from one sum over columns for each question.

    Hundreds of queues may have borrowed what one of them takes back. The use of the queues must not
    change between the questions.

    Args:
        quotas: Use by queue.
        queue: The queue that wants more.
        gpus: Further GPUs that it wants.
        queues: The queues whose runs may leave.
        left: GPUs by queue that leave in any case.
    """

    def __init__(
        self,
        quotas: Quotas,
        queue: str,
        gpus: int,
        queues: Sequence[str],
        left: Mapping[str, int],
    ) -> None:
        self._quotas, self._queue, self._gpus = quotas, queue, gpus
        self._left = dict(left)
        self._own = queues.index(queue) if queue in queues else -1
        cohort = quotas.of(queue).cohort
        of = [quotas.of(name) for name in queues]
        # Only queues with a quota in the same cohort have an effect on this one.
        self._others = np.array(
            [
                quota.gpus is not None and cohort is not None and quota.cohort == cohort
                for quota in of
            ],
            dtype=np.bool_,
        )
        if self._own >= 0:
            self._others[self._own] = False
        self._nominal = np.array([quota.gpus or 0 for quota in of], dtype=np.int64)
        self._lending = np.array(
            [_UNLIMITED if q.lending_limit is None else q.lending_limit for q in of],
            dtype=np.int64,
        )
        self._used = np.array([quotas.used(name) for name in queues], dtype=np.int64)
        self._used -= np.array([left.get(name, 0) for name in queues], dtype=np.int64)
        self._before = self._excess(self._used)

    def allowed(self, freed: Gpus) -> bool:
        """True if the queue may use the GPUs once runs of each queue have left the given GPUs."""
        own = self._left.get(self._queue, 0)
        if self._own >= 0:
            own += int(freed[self._own])
        change = self._excess(self._used - freed) - self._before
        status = self._quotas.status(
            self._queue, self._gpus, {**self._left, self._queue: own}, change
        )
        return status is QuotaStatus.WITHIN or status is QuotaStatus.BORROWING

    def _excess(self, used: Gpus) -> int:
        """The GPUs that the other queues have borrowed, less those that they can lend."""
        borrowed = np.maximum(used - self._nominal, 0)
        unused = np.minimum(np.maximum(self._nominal - used, 0), self._lending)
        return int((borrowed - unused)[self._others].sum())
