"""The past of runs: usage of projects for fair share, and estimates of waits and ends."""

from __future__ import annotations

import dataclasses
import datetime as dt
import statistics
from collections.abc import Iterable, Sequence

from monitors.types import Pace
from orchestrator.core.model.entities import Fleet, Queue, Run, Worker
from orchestrator.core.model.records import Past, Usage
from orchestrator.core.model.state import State
from orchestrator.core.policy import time_limits
from orchestrator.core.policy.siblings import program_of
from orchestrator.core.scheduling.fair_share import accrued, decayed
from orchestrator.core.scheduling.types import accounted_gpus

KEPT = 200
"""Most runs that a queue remembers."""
SAMPLES = 3
"""Fewest runs from which an estimate is made."""


def booked(fleet: Fleet, run: Run, worker: Worker, now: dt.datetime) -> Fleet:
    """Add the usage of a worker that has ended to its project; returns the new fleet."""
    project, gpus = run.spec.project, accounted_gpus(run.spec.resources)
    used = settled(fleet.usage.get(project), now) + _used(gpus, [worker], now)
    usage = {**fleet.usage, project: Usage(gpu_seconds=used, at=now)}
    return dataclasses.replace(fleet, usage=usage)


def settled(usage: Usage | None, now: dt.datetime) -> float:
    """GPU seconds of a project as they count at `now`, decayed; 0 without usage."""
    if usage is None:
        return 0.0
    return decayed(usage.gpu_seconds, max(0.0, (now - usage.at).total_seconds()))


def usage_by_project(
    state: State, now: dt.datetime, tenants: Iterable[tuple[Run, Sequence[Worker]]] | None = None
) -> dict[str, float]:
    """GPU seconds of each project as they count at `now`: decayed past, and live runs so far.

    Args:
        state: The state of the core.
        now: The current time, UTC.
        tenants: Its runs that have workers, if they are known; None: find them.
    """
    found = {project: settled(usage, now) for project, usage in state.fleet.usage.items()}
    for run, workers in state.tenants() if tenants is None else tenants:
        gpus, project = accounted_gpus(run.spec.resources), run.spec.project
        found[project] = found.get(project, 0.0) + _used(gpus, workers, now)
    return found


def _used(gpus: int, workers: Iterable[Worker], now: dt.datetime) -> float:
    return max(0.0, accrued(gpus, ((now - w.launched_at).total_seconds() for w in workers)))


def remembered(queue: Queue, run: Run, now: dt.datetime, died_of: str = "") -> Queue:
    """Add a run that has ended to the history of its queue; returns the new queue.

    `died_of` is the signature of the error of its own that ended it.
    """
    started = run.started_at or now
    past = Past(
        name=run.name,
        project=run.spec.project,
        nodes=run.spec.resources.min_nodes,
        waited_seconds=(started - run.submitted_at).total_seconds(),
        ran_seconds=(now - started).total_seconds(),
        pace=run.pace,
        run=run.id,
        program=program_of(run.spec),
        died_of=died_of,
        skip_batches=run.skip_batches,
    )
    return dataclasses.replace(queue, history=(*queue.history, past)[-KEPT:])


def expected_end(state: State, run: Run, now: dt.datetime) -> dt.datetime | None:
    """When a run is expected to end, by its limit or by earlier runs of its name; None: unknown."""
    if (certain := time_limits.ends_at(run)) is not None:
        return certain
    queue = state.queues.get(run.spec.queue)
    if queue is None or run.started_at is None:
        return None
    ends = usual_end(queue, run)
    return ends if ends is not None and ends > now else None


def usual_end(queue: Queue, run: Run) -> dt.datetime | None:
    """When the run has lasted as long as earlier runs of its name; None: they are too few."""
    name, project = run.name, run.spec.project
    took = [p.ran_seconds for p in queue.history if p.name == name and p.project == project]
    median = _median(took)
    if median is None or run.started_at is None:
        return None
    return run.started_at + dt.timedelta(seconds=median)


def known_paces(state: State) -> dict[tuple[str, str], Pace]:
    """Name and project to the pauses of their runs, live or remembered by their queue."""
    found: dict[tuple[str, str], Pace] = {}
    for queue in state.queues.values():
        for past in queue.history:
            _join(found, (past.name, past.project), past.pace)
    for run in state.runs.values():
        _join(found, (run.name, run.spec.project), run.pace)
    return found


def _join(found: dict[tuple[str, str], Pace], name: tuple[str, str], pace: Pace) -> None:
    if pace != _NOTHING:
        found[name] = found.get(name, _NOTHING).joined(pace)


_NOTHING = Pace()


def usual_wait(queue: Queue | None, nodes: int) -> tuple[float, int] | None:
    """Median wait in seconds of runs of half to twice that size, and how many; None: too few."""
    history = queue.history if queue is not None else ()
    waits = [past.waited_seconds for past in history if nodes / 2 <= past.nodes <= nodes * 2]
    median = _median(waits)
    return None if median is None else (median, len(waits))


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if len(values) >= SAMPLES else None
