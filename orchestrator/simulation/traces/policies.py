"""The replayed policies: each is an order of jobs and the rights to enforce it."""

from __future__ import annotations

import dataclasses
import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from types import MappingProxyType

from jobs.spec import Priority
from orchestrator.simulation.traces.nodes import Grants, Nodes, best_fit
from orchestrator.simulation.traces.pool import Place, Pool, Work
from orchestrator.simulation.traces.preemption import by_moving, by_preempting

PREEMPTION_SECONDS = 60.0
"""Seconds that a preemption costs the stopped job: save, next start and load.

HeliosArtifact uses the same value for jobs of more than one node (`policies/policy.py`,
`ckpt_overhead`).
"""


class PolicyName(StrEnum):
    """The name of a policy."""

    FIFO = "fifo"  # first in, first out
    SJF = "sjf"  # shortest job first
    SRTF = "srtf"  # shortest remaining time first
    SRSF = "srsf"  # shortest remaining service (time x GPUs) first
    PRIORITY = "priority"  # the highest first; first in, first out within each
    BABYSIT = "babysit"  # the scheduler used in production


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """An order of jobs, and the rights to enforce it."""

    rank: Callable[[Work, float], float]
    """Rank of a job at a moment: the smaller goes first, then the earlier submitted.

    While a job waits its rank never changes; while it runs its rank never grows.
    """
    preemptive: bool = False
    """Jobs may be stopped or moved for one that does not fit."""
    blocking: bool = False
    """The first job that does not fit blocks the jobs behind it, so that it does not starve."""


_ORDER = (Priority.CRITICAL, Priority.HIGH, Priority.NORMAL, Priority.LOW)
_RANKS = {priority: rank for rank, priority in enumerate(_ORDER)}

POLICIES: Mapping[PolicyName, Policy] = MappingProxyType(
    {
        PolicyName.FIFO: Policy(rank=lambda _work, _now: 0.0, blocking=True),
        PolicyName.SJF: Policy(rank=lambda work, _now: work.job.duration_seconds),
        PolicyName.SRTF: Policy(rank=lambda work, now: work.left(now), preemptive=True),
        PolicyName.SRSF: Policy(
            rank=lambda work, now: work.left(now) * work.job.gpus, preemptive=True
        ),
        PolicyName.PRIORITY: Policy(
            rank=lambda work, _now: _RANKS[work.job.priority], preemptive=True, blocking=True
        ),
    }
)


class ProductRules:
    """Scheduling by a :class:`Policy`.

    Jobs are placed in order by best fit. For a job that does not fit, a preemptive policy stops
    jobs that rank strictly behind it, the last first, and only those in its way. If no job needs to
    stop, it moves jobs to other nodes when that costs less GPU time than it gains. Running jobs are
    not disturbed otherwise.

    Args:
        policy: The order and the rights.
        preemption_seconds: Seconds that a preemption, or a move, costs the job.
    """

    def __init__(self, policy: Policy, preemption_seconds: float = PREEMPTION_SECONDS) -> None:
        self.policy = policy
        self.preemption_seconds = preemption_seconds

    def rank(self, work: Work, now: float) -> float:
        """The rank by the policy."""
        return self.policy.rank(work, now)

    def run_seconds(self, work: Work) -> float:
        """Remaining seconds of the job."""
        return work.remaining

    def kept_seconds(self, work: Work, elapsed: float) -> float:
        """Seconds kept by a stopped job: all its work, as it saves first, minus the next start."""
        return elapsed - self.cost_seconds(work)

    def cost_seconds(self, work: Work) -> float:  # noqa: ARG002 (subclasses look at the job)
        """Seconds that a preemption or a move costs a job."""
        return self.preemption_seconds

    def look_again(self, pool: Pool) -> float | None:  # noqa: ARG002 (subclasses look at it)
        """None: ranks of running jobs only improve, so nothing is due between two events."""
        return None

    def holds(self, nodes: Nodes, gpus: int) -> bool:
        """True if the empty nodes have enough GPUs; a job may use unequal parts of nodes."""
        return gpus <= nodes.capacity

    def schedule(self, pool: Pool) -> None:
        """Start the jobs that fit, in order, and preempt or move others where the policy may.

        When a job does not fit, no later job of its size fits either: it may preempt fewer jobs,
        and free GPUs only shrink in a pass, except by moves. So only the first job of each size is
        tried.
        """
        full: set[int] = set()
        running: list[Place] = []
        while head := min(
            (entry for entry in pool.heads() if entry[1].job.gpus not in full), default=None
        ):
            work = head[1]
            grants = best_fit(pool.nodes, work.job.gpus)
            if grants is None and self.policy.preemptive:
                running = running or self._places(pool)
                grants = self._stop_others(pool, work, running)
            if grants is not None:
                pool.start(work, grants)
                running = []
            elif self.policy.preemptive and self._move_others(pool, work):
                full.clear()
                running = []
            elif self.policy.blocking:
                break
            else:
                full.add(work.job.gpus)

    def _places(self, pool: Pool) -> list[Place]:
        """The ranks and indices of the running jobs, in order."""
        rank, now = self.policy.rank, pool.now
        return sorted((rank(work, now), index) for index, work in pool.running.items())

    def _stop_others(self, pool: Pool, work: Work, running: Sequence[Place]) -> Grants | None:
        """Preempt the jobs in the way, if that suffices; None: it does not."""
        first = bisect_right(running, (self.rank(work, pool.now), math.inf))
        behind = [pool.running[index] for _, index in reversed(running[first:])]
        found = by_preempting(pool.nodes, work.job.gpus, behind)
        if found is None:
            return None
        grants, victims = found
        for victim in victims:
            pool.stop(victim)
        return grants

    def _move_others(self, pool: Pool, work: Work) -> bool:
        """Move jobs to other nodes and start this one, if the gain exceeds the cost. True: done."""
        found = by_moving(pool.nodes, work.job.gpus, list(pool.running.values()))
        if found is None:
            return False
        grants, moves = found
        cost = sum(self.cost_seconds(moved) * moved.job.gpus for moved, _ in moves)
        if cost >= work.remaining * work.job.gpus:
            return False
        for moved, _ in moves:
            pool.stop(moved)
        pool.start(work, grants)
        for moved, to in moves:
            pool.start(moved, to)
        return True
