"""Jobs on the nodes of one pool, from event to event in virtual time.

The pool keeps time, places, waits and runs; who starts and who is stopped is decided by its
:class:`Rules`. Events are submissions and completions (completions first at equal times), and the
moments at which the rules ask to look again.
"""

from __future__ import annotations

import dataclasses
import heapq
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from typing import Protocol

from orchestrator.simulation.traces.nodes import Grants, Nodes
from orchestrator.simulation.traces.trace_file import Job

Place = tuple[float, int]
"""A job's place in the order: its rank, then its index."""


@dataclasses.dataclass(slots=True, eq=False)
class Work:
    """A job on its way. Times in seconds."""

    job: Job
    index: int
    """Its place in order of submission: the last tie-breaker."""
    remaining: float
    """What was left to run when it was last started or stopped."""
    since: float
    """When that was, or when it was submitted."""
    grants: Grants = ()
    """Where it runs; empty: it waits."""
    waited: float = 0.0
    held_gpu_seconds: float = 0.0
    starts: int = 0
    preemptions: int = 0
    ended: float | None = None

    def left(self, now: float) -> float:
        """Seconds left to run, if nobody stops it."""
        return self.remaining - (now - self.since) if self.grants else self.remaining


class Rules(Protocol):
    """Who runs when: the hooks that make one scheduler differ from another."""

    def rank(self, work: Work, now: float) -> float:
        """Its place in the order: smaller goes first; then who was submitted first."""

    def schedule(self, pool: Pool) -> None:
        """One pass after the events of a moment: start and stop what should be."""

    def run_seconds(self, work: Work) -> float:
        """How long it takes from a start to its end, undisturbed."""

    def kept_seconds(self, work: Work, elapsed: float) -> float:
        """How much of a run of `elapsed` seconds counts when it is stopped; negative: a loss."""

    def look_again(self, pool: Pool) -> float | None:
        """When to pass again, should no event come before; None: not at all."""

    def holds(self, nodes: Nodes, gpus: int) -> bool:
        """Whether a job of so many GPUs could ever run on these nodes, empty as they are."""


class Pool:
    """Jobs, waiting and running.

    Attributes:
        now: Virtual time.
        nodes: What is free.
        running: By index, in the order of their starts.
    """

    def __init__(self, nodes: Nodes, rules: Rules) -> None:
        self.now = 0.0
        self.nodes = nodes
        self.rules = rules
        self.running: dict[int, Work] = {}
        self._queues: dict[int, list[tuple[Place, Work]]] = {}
        self._ends: list[tuple[float, int, int]] = []

    def run(self, jobs: Sequence[Job]) -> list[Work]:
        """Take jobs in order of submission to their ends.

        Raises:
            RuntimeError: The rules leave jobs waiting for ever.
        """
        works = [
            Work(job, index, job.duration_seconds, job.submit_seconds)
            for index, job in enumerate(jobs)
        ]
        arrived = 0
        while (moment := self._next(works, arrived)) is not None:
            self.now = moment
            self._finish()
            while arrived < len(works) and works[arrived].job.submit_seconds <= moment:
                self._queue(works[arrived])
                arrived += 1
            self.rules.schedule(self)
        if any(self._queues.values()):
            raise RuntimeError("the rules start none of the jobs that wait on idle nodes")
        return works

    def start(self, work: Work, grants: Grants) -> None:
        """Run a waiting job there."""
        self._dequeue(work)
        self.nodes.take(grants)
        work.waited += self.now - work.since
        work.since, work.grants = self.now, grants
        work.starts += 1
        self.running[work.index] = work
        # What is left may be rounded below nothing; time never goes back.
        end = self.now + max(0.0, self.rules.run_seconds(work))
        heapq.heappush(self._ends, (end, work.index, work.starts))

    def stop(self, work: Work) -> None:
        """Preempt a running job: it waits again."""
        work.remaining -= self.rules.kept_seconds(work, self.now - work.since)
        work.preemptions += 1
        self._release(work)
        self._queue(work)

    def waiting(self) -> list[Work]:
        """Every job that waits, in order."""
        return [work for _, work in heapq.merge(*self._queues.values(), key=lambda entry: entry[0])]

    def heads(self) -> Iterator[tuple[Place, Work]]:
        """The first in order among the waiting jobs of each size."""
        return (queue[0] for queue in self._queues.values() if queue)

    def _next(self, works: Sequence[Work], arrived: int) -> float | None:
        while self._ends and not self._is_valid(self._ends[0]):
            heapq.heappop(self._ends)
        moments = [self._ends[0][0]] if self._ends else []
        if arrived < len(works):
            moments.append(works[arrived].job.submit_seconds)
        again = self.rules.look_again(self)
        return min(moments if again is None else [*moments, again], default=None)

    def _is_valid(self, end: tuple[float, int, int]) -> bool:
        work = self.running.get(end[1])
        return work is not None and work.starts == end[2]

    def _finish(self) -> None:
        while self._ends and self._ends[0][0] <= self.now:
            end = heapq.heappop(self._ends)
            if self._is_valid(end):
                work = self.running[end[1]]
                self._release(work)
                work.remaining, work.ended = 0.0, self.now

    def _release(self, work: Work) -> None:
        del self.running[work.index]
        self.nodes.give(work.grants)
        work.held_gpu_seconds += work.job.gpus * (self.now - work.since)
        work.since, work.grants = self.now, ()

    def _queue(self, work: Work) -> None:
        queue = self._queues.setdefault(work.job.gpus, [])
        insort(queue, (self._place(work), work), key=lambda entry: entry[0])

    def _dequeue(self, work: Work) -> None:
        queue = self._queues[work.job.gpus]
        at = bisect_left(queue, self._place(work), key=lambda entry: entry[0])
        if at == len(queue) or queue[at][1] is not work:
            raise RuntimeError(f"job {work.job.id} does not wait")
        del queue[at]

    def _place(self, work: Work) -> Place:
        return (self.rules.rank(work, self.now), work.index)
