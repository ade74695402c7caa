"""Jobs on the nodes of one pool, from event to event in virtual time.

The pool keeps time, places, waits and runs; its :class:`Rules` decide which jobs start and stop.
Events are submissions and completions (completions first at equal times), and the moments at which
the rules ask for another pass.
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
"""The position of a job in the order: its rank, then its index."""


@dataclasses.dataclass(slots=True, eq=False)
class Work:
    """A submitted job. Times are seconds."""

    job: Job
    index: int
    """Position in order of submission: the last tie-breaker."""
    remaining: float
    """Seconds of work left at its last start or stop."""
    since: float
    """Second of that start or stop, or of its submission."""
    grants: Grants = ()
    """The GPUs it runs on; empty: it waits."""
    waited: float = 0.0
    held_gpu_seconds: float = 0.0
    starts: int = 0
    preemptions: int = 0
    ended: float | None = None

    def left(self, now: float) -> float:
        """Seconds of work left at second `now`, if it is not stopped."""
        return self.remaining - (now - self.since) if self.grants else self.remaining


class Rules(Protocol):
    """The hooks by which one scheduler differs from another."""

    def rank(self, work: Work, now: float) -> float:
        """Position in the order: the smaller goes first, then the earlier submitted."""

    def schedule(self, pool: Pool) -> None:
        """Run one pass after the events of a moment: start and stop jobs."""

    def run_seconds(self, work: Work) -> float:
        """Seconds from a start to the end, undisturbed."""

    def kept_seconds(self, work: Work, elapsed: float) -> float:
        """Seconds of work that remain of `elapsed` seconds when a job stops; negative: a loss."""

    def look_again(self, pool: Pool) -> float | None:
        """Second of the next pass if no event comes before it; None: no pass."""

    def holds(self, nodes: Nodes, gpus: int) -> bool:
        """True if a job of `gpus` GPUs could run on these nodes when they are empty."""


class Pool:
    """Waiting and running jobs.

    Attributes:
        now: Virtual time in seconds.
        nodes: Free GPUs by node.
        rules: The scheduler.
        running: Running jobs by index, in the order of their starts.
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
        """Start a waiting job on these GPUs.

        Raises:
            RuntimeError: The job does not wait.
            ValueError: The GPUs are not free.
        """
        self._dequeue(work)
        self.nodes.take(grants)
        work.waited += self.now - work.since
        work.since, work.grants = self.now, grants
        work.starts += 1
        self.running[work.index] = work
        # Rounding may leave less than 0 seconds; time must not run backwards.
        end = self.now + max(0.0, self.rules.run_seconds(work))
        heapq.heappush(self._ends, (end, work.index, work.starts))

    def stop(self, work: Work) -> None:
        """Preempt a running job, which then waits again."""
        work.remaining -= self.rules.kept_seconds(work, self.now - work.since)
        work.preemptions += 1
        self._release(work)
        self._queue(work)

    def waiting(self) -> list[Work]:
        """All waiting jobs, in order."""
        return [work for _, work in heapq.merge(*self._queues.values(), key=lambda entry: entry[0])]

    def heads(self) -> Iterator[tuple[Place, Work]]:
        """The first waiting job of each size."""
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
