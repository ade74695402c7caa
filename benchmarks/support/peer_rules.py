"""Rules of two published simulators, where they differ from those of the product.

These rules exist to reproduce published figures digit for digit; the product does not use them. The
two classes `…Costs` are the product's rules with the peer's cost of a preemption.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from orchestrator.simulation.traces.nodes import Grants, Nodes, best_fit, whole_nodes
from orchestrator.simulation.traces.policies import Policy, ProductRules
from orchestrator.simulation.traces.pool import Pool, Work
from orchestrator.simulation.traces.trace_file import Trace, TraceError


def muri_trace(trace: Trace) -> Trace:
    """The trace with the durations that Muri's simulator uses: `service_s`.

    Raises:
        TraceError: A job has no number there, or in `event_overhead_s`.
    """
    jobs = []
    for job in trace.jobs:
        for column in ("service_s", "event_overhead_s"):
            if not re.fullmatch(r"\d+(\.\d*)?(e[+-]?\d+)?", job.extra[column]):
                message = f"expected seconds, 0 or more, got {job.extra[column]!r}"
                raise TraceError(trace.name, job.line, column, message)
        jobs.append(dataclasses.replace(job, duration_seconds=float(job.extra["service_s"])))
    return Trace(trace.name, tuple(jobs))


class MuriCosts(ProductRules):
    """The product's rules; a preemption costs the job's `event_overhead_s`."""

    def cost_seconds(self, work: Work) -> float:
        """The seconds in that column of the trace."""
        return float(work.job.extra["event_overhead_s"])


class MuriRules(MuriCosts):
    """The simulator of Muri (SIGCOMM'22; Rivendile/Muri, `simulator/`).

    At every event the cluster is emptied, and all jobs are placed again in order, skipping jobs
    that do not fit. Jobs that ran since the last event lose the overhead, preempted or not, but no
    more than they ran.
    """

    def kept_seconds(self, work: Work, elapsed: float) -> float:
        """The run time minus the overhead of every event, at least 0 seconds."""
        return max(0.0, elapsed - self.cost_seconds(work))

    def schedule(self, pool: Pool) -> None:
        """Empty the cluster and fill it again."""
        for work in list(pool.running.values()):
            pool.stop(work)
        for work in pool.waiting():
            if grants := first_fit(pool.nodes, work.job.gpus):
                pool.start(work, grants)


class HeliosCosts(ProductRules):
    """The product's rules with the preemption costs of HeliosArtifact (`ckpt_overhead`)."""

    def cost_seconds(self, work: Work) -> float:
        """7, 30 or 60 seconds, depending on the number of GPUs."""
        gpus = work.job.gpus
        return 7.0 if gpus == 1 else 30.0 if gpus <= 8 else 60.0


class HeliosQueueRules(ProductRules):
    """HeliosArtifact (SC'21) without preemption: `policies/fifo.py` and `sjf.py`.

    The first job that does not fit blocks the rest.
    """

    def schedule(self, pool: Pool) -> None:
        """Start jobs in order until one does not fit."""
        for work in pool.waiting():
            grants = consolidate(pool.nodes, work.job.gpus)
            if grants is None:
                return
            pool.start(work, grants)


class HeliosPreemptiveRules(HeliosCosts):
    """HeliosArtifact's SRTF: `policies/srtf.py`.

    Every second, jobs are admitted by remaining time while the sum of their GPUs fits, regardless
    of nodes. Running jobs that are not admitted are stopped; then admitted jobs are placed where
    possible. A run ends in the second after its last.
    """

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy)
        self._stopped_some = False

    def run_seconds(self, work: Work) -> float:
        """One second more than the remaining time."""
        return work.remaining + 1

    def schedule(self, pool: Pool) -> None:
        """Admit, stop and place jobs."""
        everyone = sorted(pool.waiting(), key=lambda work: work.since) + list(pool.running.values())
        everyone.sort(key=lambda work: work.left(pool.now))
        quota = pool.nodes.capacity
        admitted: list[Work] = []
        stopped: list[Work] = []
        for work in everyone:
            if work.job.gpus <= quota:
                quota -= work.job.gpus
                admitted.append(work)
            elif work.grants:
                stopped.append(work)
        for work in stopped:
            pool.stop(work)
        for work in admitted:
            if not work.grants and (grants := consolidate(pool.nodes, work.job.gpus)):
                pool.start(work, grants)
        self._stopped_some = bool(stopped)

    def look_again(self, pool: Pool) -> float | None:
        """The next second at which the order of the jobs differs from the last one."""
        waiting = [work.remaining for work in pool.waiting()]
        if not waiting:
            return None
        if self._stopped_some:
            return pool.now + 1
        lefts = sorted((work.left(pool.now) for work in pool.running.values()), reverse=True)
        gap = smallest_gap(sorted(waiting, reverse=True), lefts)
        return None if gap is None else pool.now + gap + 1


def smallest_gap(floors: Sequence[float], values: Sequence[float]) -> float | None:
    """Smallest distance of a value above a floor; both descend. None: all values are below."""
    best: float | None = None
    at = 0
    for value in values:
        while at < len(floors) and floors[at] > value:
            at += 1
        if at == len(floors):
            break
        gap = value - floors[at]
        best = gap if best is None else min(best, gap)
    return best


def first_fit(nodes: Nodes, gpus: int) -> Grants | None:
    """Muri's placement: idle nodes by index; the rest on the first other node that fits."""
    whole, rest, others = _parts(nodes, gpus)
    if rest == 0:
        return whole
    return None if not others else (*whole, (others[0], rest))


def consolidate(nodes: Nodes, gpus: int) -> Grants | None:
    """HeliosArtifact's (`placer/consolidate.py`): idle nodes, the rest on the emptiest node."""
    if gpus <= nodes.largest:
        return best_fit(nodes, gpus)
    whole, rest, others = _parts(nodes, gpus)
    if rest == 0:
        return whole
    emptiest = max(others, key=lambda node: nodes.free[node], default=None)
    return None if emptiest is None else (*whole, (emptiest, rest))


def _parts(nodes: Nodes, gpus: int) -> tuple[Grants, int, list[int]]:
    """The nodes that a gang fills, its GPUs left over, and other nodes with capacity for those."""
    whole, rest = whole_nodes(nodes, gpus) if gpus > nodes.largest else ((), gpus)
    taken = {node for node, _ in whole}
    others = [n for n, free in enumerate(nodes.free) if free >= rest and n not in taken]
    return whole, rest, others
