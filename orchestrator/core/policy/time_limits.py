"""Limits on the time of runs: the end of `max_runtime`, and the grace to save before a stop."""

from __future__ import annotations

import datetime as dt

from orchestrator.core.model.entities import Run
from orchestrator.core.model.vocabulary import Timer

GRACE_SECONDS = 30.0
"""Seconds that ranks get to save before they are stopped (preemption, a drain, a request)."""


def ends_at(run: Run) -> dt.datetime | None:
    """When a run has left its nodes for certain; None: it has no limit, or its time stands still.

    The run is stopped at its `max_runtime` and then has the grace to save.
    """
    told = run.due(Timer.MAX_RUNTIME)
    return None if told is None else told + dt.timedelta(seconds=GRACE_SECONDS)


def ends_within(run: Run, now: dt.datetime) -> float | None:
    """Seconds until a run is over for certain if it has nodes from `now` on; None: no limit."""
    if (ends := ends_at(run)) is not None:
        return max(0.0, (ends - now).total_seconds())
    left = runtime_left(run)
    return None if left is None else left + GRACE_SECONDS


def runtime_left(run: Run) -> float | None:
    """Seconds of `max_runtime` that are left while the run has no nodes; None: no limit."""
    return run.spec.max_runtime if run.runtime_left is None else run.runtime_left
