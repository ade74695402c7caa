"""A trace under the production scheduler: the same code that places runs in production."""

from __future__ import annotations

import dataclasses
import datetime as dt

from jobs.spec import Resources
from orchestrator.core.scheduling import (
    Claim,
    Demand,
    Holding,
    NodeCapacity,
    NodeTable,
    Snapshot,
    plan,
)
from orchestrator.errors import InvalidError
from orchestrator.simulation.traces.nodes import Grants, Nodes
from orchestrator.simulation.traces.policies import (
    POLICIES,
    PREEMPTION_SECONDS,
    PolicyName,
    ProductRules,
)
from orchestrator.simulation.traces.pool import Pool, Rules, Work

ORIGIN = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
"""Second 0 of a trace as the date that the scheduler needs."""
_LAST_SECONDS = 240_000_000_000.0
"""Limit of trace times in seconds, a little below the last representable date."""


class ProductionRules:
    """Rules by :func:`orchestrator.core.scheduling.plan`; a job's duration is its `max_runtime`.

    A job becomes a gang of equal workers on the fewest nodes on which it divides evenly.

    Args:
        preemption_seconds: Seconds that a preemption costs the stopped job.
    """

    def __init__(self, preemption_seconds: float = PREEMPTION_SECONDS) -> None:
        self.preemption_seconds = preemption_seconds
        self._nodes: Nodes | None = None
        self._table = NodeTable.none()
        self._demands: dict[int, Demand] = {}
        self._holdings: dict[int, Holding] = {}
        self._claims: dict[int, Claim] = {}

    def rank(self, work: Work, now: float) -> float:  # noqa: ARG002 (the plan has its own order)
        """0 for every job: the plan has its own order."""
        return 0.0

    def run_seconds(self, work: Work) -> float:
        """Remaining seconds of the job."""
        return work.remaining

    def kept_seconds(self, work: Work, elapsed: float) -> float:  # noqa: ARG002 (all cost alike)
        """Seconds kept by a preempted job: all its work, as it saves, minus the next start."""
        return elapsed - self.preemption_seconds

    def look_again(self, pool: Pool) -> float | None:  # noqa: ARG002 (nothing is due in between)
        """None: nothing is due between two events."""
        return None

    def holds(self, nodes: Nodes, gpus: int) -> bool:
        """True if a gang of equal workers fits on the empty nodes."""
        return shape(nodes, gpus) is not None

    def schedule(self, pool: Pool) -> None:
        """Run passes until one changes nothing; preempted jobs leave at once here.

        Raises:
            InvalidError: The trace would run beyond the last representable date.
        """
        self._look_at(pool.nodes)
        self._forget(pool)
        waiting = {str(work.index): work for work in pool.waiting()}
        while waiting:
            now = _date(pool.now)
            outcome = plan(
                Snapshot(
                    table=self._table,
                    holdings=[self._holding(work) for work in pool.running.values()],
                    demands=[self._demand(pool, work) for work in waiting.values()],
                ),
                now,
            )
            self._claims = {int(run): claim for run, claim in outcome.claims.items()}
            for run, nodes in outcome.placements.items():
                self._start(pool, waiting.pop(run), nodes)
            for eviction in outcome.evictions:
                work = pool.running[int(eviction.run)]
                pool.stop(work)
                self._holdings.pop(work.index, None)
                waiting[eviction.run] = work
            if not outcome.evictions:
                return

    def _look_at(self, nodes: Nodes) -> None:
        if nodes is not self._nodes:
            self._nodes = nodes
            self._table = NodeTable(
                NodeCapacity(node=f"{i:06}", gpus=gpus, cpus=1e9)
                for i, gpus in enumerate(nodes.sizes)
            )
            self._demands, self._holdings, self._claims = {}, {}, {}

    def _forget(self, pool: Pool) -> None:
        for index in [index for index in self._holdings if index not in pool.running]:
            del self._holdings[index]

    def _start(self, pool: Pool, work: Work, nodes: tuple[str, ...]) -> None:
        gpus = self._demands.pop(work.index).need.gpus_per_node
        grants: Grants = tuple(sorted((int(node), gpus) for node in nodes))
        pool.start(work, grants)

    def _demand(self, pool: Pool, work: Work) -> Demand:
        demand = self._demands.get(work.index)
        if demand is None:
            need = shape(pool.nodes, work.job.gpus)
            if need is None:
                raise RuntimeError(f"job {work.job.id} does not fit the nodes of its pool")
            demand = Demand(
                run=str(work.index),
                name=work.job.id,
                need=need,
                nodes=need.min_nodes,
                priority=work.job.priority,
                submitted_at=_date(work.job.submit_seconds),
                ends_within=max(0.0, work.remaining),
            )
        self._demands[work.index] = dataclasses.replace(demand, claim=self._claims.get(work.index))
        return self._demands[work.index]

    def _holding(self, work: Work) -> Holding:
        holding = self._holdings.get(work.index)
        if holding is None:
            holding = Holding(
                run=str(work.index),
                need=Resources(nodes=len(work.grants), gpus_per_node=work.grants[0][1]),
                nodes=tuple(f"{node:06}" for node, _ in work.grants),
                priority=work.job.priority,
                ends_at=_date(work.since + max(0.0, work.remaining)),
                lost_gpu_seconds=self.preemption_seconds * work.job.gpus,
            )
            self._holdings[work.index] = holding
        return holding


def rules_of(policy: PolicyName, preemption_seconds: float = PREEMPTION_SECONDS) -> Rules:
    """The rules of a policy by its name."""
    if policy is PolicyName.BABYSIT:
        return ProductionRules(preemption_seconds)
    return ProductRules(POLICIES[policy], preemption_seconds)


def shape(nodes: Nodes, gpus: int) -> Resources | None:
    """The fewest equal workers that a job divides into and that fit; None: there are none."""
    for count in range(-(-gpus // nodes.largest), min(gpus, len(nodes.sizes)) + 1):
        each, rest = divmod(gpus, count)
        if rest == 0 and sum(size >= each for size in nodes.sizes) >= count:
            return Resources(nodes=count, gpus_per_node=each)
    return None


def _date(seconds: float) -> dt.datetime:
    if seconds > _LAST_SECONDS:
        years = f"{_LAST_SECONDS / 3.156e7:,.0f} years"
        raise InvalidError(f"the trace takes more than {years} on these nodes: add nodes")
    return ORIGIN + dt.timedelta(seconds=seconds)
