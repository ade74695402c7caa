"""How long a run stays as it is before it grows, and before it is preempted again.

Each change costs a restart. A run that has been preempted trains for a while before the next
eviction, and one that lost what it had grown by waits longer each time before it grows again.
"""

from __future__ import annotations

import datetime as dt

from orchestrator.core.model.decisions import Restart
from orchestrator.core.model.entities import Attempt
from orchestrator.core.model.states import AttemptState
from orchestrator.core.model.vocabulary import Remedy

GROW_SECONDS = 600.0
"""Seconds that an elastic run must train before it grows, because growth costs a restart."""
MAX_GROW_SECONDS = 86400.0
"""The most that it waits, however often others took back what it had grown by."""
SAFE_SECONDS = 600.0
"""Seconds that a preempted run trains before the next eviction (Slurm: PreemptExemptTime).

The cost of the eviction before is a minute of restart and what was not saved; ten minutes keep it
within a tenth. An estimate of ours."""


def grow_after(before: Attempt | None, restart: Restart | None, now: dt.datetime) -> float:
    """Seconds that the next attempt of a run must train before it grows.

    Twice as long as before after each shrink, at most a day; after a day without one it is
    forgotten. So a run that grows into nodes that others need now and then stops to do so.

    Args:
        before: The attempt before; None: there is none.
        restart: Why it ends; None: for no known reason.
        now: The moment of the start.
    """
    if before is None:
        return GROW_SECONDS
    lasted = (now - before.started_at).total_seconds()
    if lasted >= MAX_GROW_SECONDS:
        return GROW_SECONDS
    if restart is not None and restart.remedy is Remedy.SHRINK:
        return min(MAX_GROW_SECONDS, 2.0 * before.grow_after)
    return before.grow_after


def may_grow(attempt: Attempt, now: dt.datetime) -> bool:
    """True if an attempt has run for its `grow_after`, so that growth is worth a restart."""
    ran = (now - attempt.started_at).total_seconds()
    return attempt.state is AttemptState.RUNNING and ran >= attempt.grow_after


def safe_until(attempt: Attempt | None) -> dt.datetime | None:
    """Until when a run is not evicted again, after an eviction; None: it may be evicted now."""
    if attempt is None or attempt.restart is None:
        return None
    if attempt.restart.remedy not in {Remedy.PREEMPTED, Remedy.SHRINK}:
        return None
    return attempt.started_at + dt.timedelta(seconds=SAFE_SECONDS)
