"""Replay of a trace on nodes, and its figures."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence

from orchestrator.simulation.traces.nodes import Nodes
from orchestrator.simulation.traces.pool import Pool, Rules, Work
from orchestrator.simulation.traces.trace_file import Job, Pools, Trace, by_pool


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """The result for every job.

    Attributes:
        works: Jobs that ran, in order of submission within each pool.
        refused: Jobs that do not fit their pool even when it is empty.
        gpus: GPUs of all pools.
    """

    works: tuple[Work, ...]
    refused: tuple[Job, ...]
    gpus: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The figures of a replay. Refused jobs count in `refused` only; without jobs all are 0."""

    jobs: int
    refused: int
    preemptions: int
    avg_jct_seconds: float
    """Mean job completion time: from submission to end."""
    p99_jct_seconds: float
    avg_queue_seconds: float
    """Mean time not running, including time after a preemption."""
    p999_queue_seconds: float
    makespan_seconds: float
    """Time from the first submission to the last end."""
    utilisation_ratio: float
    """Useful GPU time over all GPU time of the makespan; work lost by preemption is not useful."""


def replay(trace: Trace, pools: Pools, rules: Rules) -> Outcome:
    """Take every job of a trace to its end. Virtual clusters are independent of each other.

    Raises:
        TraceError: A job belongs to a virtual cluster that has no nodes.
        RuntimeError: The rules leave jobs waiting for ever.
    """
    works: list[Work] = []
    refused: list[Job] = []
    for vc, jobs in by_pool(trace, pools).items():
        nodes = Nodes(pools[vc])
        refused += (job for job in jobs if not rules.holds(nodes, job.gpus))
        works += Pool(nodes, rules).run([job for job in jobs if rules.holds(nodes, job.gpus)])
    return Outcome(tuple(works), tuple(refused), sum(map(sum, pools.values())))


def summarise(outcome: Outcome) -> Summary:
    """Compute the figures of a replay."""
    works = outcome.works
    ends = [work.ended for work in works if work.ended is not None]
    times = [end - work.job.submit_seconds for work, end in zip(works, ends, strict=True)]
    waits = [work.waited for work in works]
    begin = min((work.job.submit_seconds for work in works), default=0.0)
    makespan = max(ends, default=begin) - begin
    useful = sum(work.job.gpus * work.job.duration_seconds for work in works)
    return Summary(
        jobs=len(works),
        refused=len(outcome.refused),
        preemptions=sum(work.preemptions for work in works),
        avg_jct_seconds=statistics.fmean(times) if times else 0.0,
        p99_jct_seconds=quantile(times, 0.99),
        avg_queue_seconds=statistics.fmean(waits) if waits else 0.0,
        p999_queue_seconds=quantile(waits, 0.999),
        makespan_seconds=makespan,
        utilisation_ratio=useful / (outcome.gpus * makespan) if makespan else 0.0,
    )


def quantile(values: Sequence[float], share: float) -> float:
    """The value at `share` (0 to 1) of the values in ascending order; 0 without values."""
    return sorted(values)[int(share * len(values))] if values else 0.0
