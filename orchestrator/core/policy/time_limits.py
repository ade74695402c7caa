"""Limits on the time of runs: the end of `max_runtime`, and the grace to save before a stop."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable

from jobs.spec import RunSpec
from orchestrator.core.model.entities import Run
from orchestrator.core.model.vocabulary import Timer

GRACE_SECONDS: float = RunSpec.model_fields["grace"].default
"""The grace of a spec that names none."""
SAVE_FACTOR = 1.5
"""The grace is at least this many times the longest save of the run: a save that is cut off loses
all work since the one before, after it has stopped training. A factor of ours."""
MOST_SAVE_SECONDS = 1800.0
"""Limit of the grace that follows from a measured save: one save of a storage that hung for hours
must not make each later stop wait as long."""


def grace_seconds(run: Run) -> float:
    """Seconds that the ranks of a run get to save before they are stopped.

    For a preemption, a drain, growth, a restart or the end that a person asks for; not for a
    failure. The spec's `grace`, or more where saves were seen to take longer.
    """
    measured = min(SAVE_FACTOR * run.longest_save, MOST_SAVE_SECONDS)
    return max(run.spec.grace, measured)


def longest_grace(runs: Iterable[Run]) -> float:
    """The seconds after which all of these runs have left their nodes; without any, the default."""
    return max(map(grace_seconds, runs), default=GRACE_SECONDS)


def ends_at(run: Run) -> dt.datetime | None:
    """When a run has left its nodes for certain; None: it has no limit, or its time stands still.

    The run is stopped at its `max_runtime` and then has the grace to save.
    """
    deadline = run.due(Timer.MAX_RUNTIME)
    return None if deadline is None else deadline + dt.timedelta(seconds=grace_seconds(run))


def ends_within(run: Run, now: dt.datetime) -> float | None:
    """Seconds until a run is over for certain if it has nodes from `now` on; None: no limit."""
    if (ends := ends_at(run)) is not None:
        return max(0.0, (ends - now).total_seconds())
    left = runtime_left(run)
    return None if left is None else left + grace_seconds(run)


def runtime_left(run: Run) -> float | None:
    """Seconds of `max_runtime` that are left while the run has no nodes; None: no limit."""
    return run.spec.max_runtime if run.runtime_left is None else run.runtime_left


PAUSE_FLOOR_SECONDS = 60.0
"""Least silence that ends a run without proof (NVRx: 60 to 90 s; FAILURES.md)."""
PAUSE_FACTOR = 10.0
"""The limit as a multiple of the longest pause that ended by itself."""
PAUSE_CEILING_SECONDS = 1800.0
"""The most: after half an hour people must hear of it, whatever was seen before."""
PRINTED_FACTOR = 3.0
"""The limit of a script whose steps are read from its output, as a multiple of its longest silence:
it may print every hundredth step, and nothing while it evaluates or saves."""


def pause_limit(
    spec: RunSpec,
    *,
    longest: float,
    starting: bool,
    longest_start: float = 0.0,
    printed: bool = False,
) -> float:
    """Seconds of silence after which a run without proof against it is ended.

    Args:
        spec: `monitors.hang.after` overrides the limit of training, `starting` is that of starting.
        longest: The longest silence in training that ended by itself, seconds.
        starting: The attempt has not ended its first steps, or a phase never seen to end runs.
        longest_start: The longest start of an earlier attempt or of another run of the name,
            seconds; 0: none was seen, and `monitors.hang.starting` counts alone. It is the most,
            unless starts that took more than half of it ended by themselves.
        printed: Steps are read from the output. Its silence says little, so it has the ceiling at
            least; only `monitors.hang.after` makes it shorter.
    """
    hang = spec.monitors.hang
    if printed and hang.after == "auto":
        seen = PRINTED_FACTOR * max(longest, longest_start)
        return max(hang.starting, PAUSE_CEILING_SECONDS, seen)
    if starting:
        learned = max(PAUSE_FLOOR_SECONDS, PAUSE_FACTOR * longest_start)
        most = max(hang.starting, min(2 * longest_start, PAUSE_CEILING_SECONDS))
        return min(most, learned) if longest_start else hang.starting
    if hang.after != "auto":
        return hang.after
    return min(max(PAUSE_FLOOR_SECONDS, PAUSE_FACTOR * longest), PAUSE_CEILING_SECONDS)
