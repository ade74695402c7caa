"""What runs are promised by the clock."""

from __future__ import annotations

import datetime as dt

from orchestrator.core.model.entities import Run
from orchestrator.core.model.vocabulary import Timer

GRACE_SECONDS = 30.0
"""Time a rank gets to save and leave."""


def ends_at(run: Run) -> dt.datetime | None:
    """When the time of a run that has nodes is over; None: no limit, or its time stands still.

    It is told to stop at its `max_runtime`, and may save then.
    """
    told = run.due(Timer.MAX_RUNTIME)
    return None if told is None else told + dt.timedelta(seconds=GRACE_SECONDS)


def ends_within(run: Run, now: dt.datetime) -> float | None:
    """Seconds after which a run is over for certain if it gets nodes now; None: no limit."""
    if (ends := ends_at(run)) is not None:
        return max(0.0, (ends - now).total_seconds())
    left = runtime_left(run)
    return None if left is None else left + GRACE_SECONDS


def runtime_left(run: Run) -> float | None:
    """Seconds of `max_runtime` that it has not used, while its time stands still."""
    return run.spec.max_runtime if run.runtime_left is None else run.runtime_left
