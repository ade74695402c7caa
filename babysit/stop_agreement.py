"""All ranks stop after the same step, without an all-reduce in each step.

The problem: a rank learns from its agent that it must stop, each at another moment, and a rank that
leaves alone has the others wait for it. An all-reduce in each step would settle that; it takes
milliseconds where ranks share a network, and with NCCL each one has the host wait for its GPU.

The design: the ranks combine their answers about once a second, and with them the number of
calls until the next time, by the pace of the slowest rank. All ranks count the same calls, so they
meet at the same one.

Limits: between two meetings a request waits: :data:`SECONDS`, or :data:`MOST_CALLS` steps where
they have become slower since. Ranks must ask equally often, as for any collective.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from babysit import collective

SECONDS = 1.0
"""Seconds between two meetings, at the pace of the calls since the last one."""
MOST_CALLS = 10
"""Calls from one meeting to the next, at most: steps may become slow all of a sudden."""


class StopAgreement:
    """Says if all ranks must stop now.

    Args:
        requested: True if this rank has been asked to stop.
        alone: True if there is one rank only.
        clock: Gives seconds, of any origin.
    """

    def __init__(
        self,
        requested: Callable[[], bool],
        *,
        alone: bool,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._requested, self._alone, self._clock = requested, alone, clock
        self._calls = 0
        """Calls since the last meeting."""
        self._every = 1
        """Calls from the last meeting to the next one, as agreed."""
        self._met: float | None = None

    def ask(self) -> bool:
        """True if all ranks must stop now; a collective at some calls, the same for all ranks."""
        if self._alone or collective.process_group() is None:
            return self._requested()
        self._calls += 1
        if self._calls < self._every:
            return False
        stop, self._every = collective.minimum(-int(self._requested()), self._calls_until_next())
        self._calls, self._met = 0, self._clock()
        if stop:
            self._every = 1  # the script may go on, and ask again
        return stop < 0

    def _calls_until_next(self) -> int:
        if self._met is None:
            return 1
        pace = (self._clock() - self._met) / self._calls
        return max(1, min(MOST_CALLS, int(SECONDS / max(pace, 1e-6))))
