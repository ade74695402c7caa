"""Consecutive passes on a cluster that carries their plans out: no run starves.

Runs start, end, are preempted and start again. Time is virtual.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import heapq
from collections import Counter
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.spec import Priority
from orchestrator.core.scheduling import (
    Demand,
    Holding,
    NodeCapacity,
    NodeTable,
    Pending,
    Plan,
    Quota,
    Snapshot,
    plan,
)
from orchestrator.core.scheduling.types import PRIORITY_RANK
from tests.unit.test_scheduling_plan import NOW, demand, holding

GRACE = 30.0
"""Seconds that a preempted run takes to leave."""
NODES = [
    NodeCapacity(node=f"n{i}", gpus=8, cpus=64, labels={"rack": str(i // 4)}) for i in range(8)
]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A run that somebody submits."""

    nodes: int
    gpus: int = 8
    seconds: float
    """How long it runs in all, over all its attempts."""
    limited: bool = True
    """True if its max_runtime says how long."""
    priority: Priority = Priority.NORMAL
    queue: str = "default"
    project: str = "p"
    pack: str = "any"
    surplus: int = 0
    """Nodes above its minimum, of those that it requests."""


@dataclasses.dataclass(slots=True)
class Running:
    """A run that has its nodes."""

    holding: Holding
    since: dt.datetime
    turn: int
    """Tells its events from those of an earlier attempt."""


class Cluster:
    """Eight nodes in two racks."""

    def __init__(self, quotas: Sequence[Quota] = (), spares: int = 0) -> None:
        self.now, self.table = NOW, NodeTable(NODES)
        self.quotas, self.spares = quotas, spares
        self.jobs: dict[str, Job] = {}
        self.left: dict[str, float] = {}
        self.waiting: dict[str, Demand] = {}
        self.running: dict[str, Running] = {}
        self.leaving: list[tuple[dt.datetime, str, Holding, bool]] = []
        self.started: dict[str, dt.datetime] = {}
        self.promised: dict[str, dt.datetime] = {}
        """Run → when all has ended that ran when it came to be the first in the queue, or what it
        was first told, if that is later: a known end is preferred to unknown ones."""
        self.told: set[str] = set()
        self.asked: Counter[tuple[str, str]] = Counter()
        self.expecting: dict[str, set[str]] = {}
        """Run → nodes that others leave for it."""
        self._events: list[tuple[dt.datetime, int, str]] = []
        self._turns = 0

    # what happens

    def submit(self, run: str, job: Job) -> None:
        self.jobs[run], self.left[run] = job, job.seconds
        self.waiting[run] = self._demand(run, self.now)
        self.schedule()

    def advance(self, seconds: float) -> None:
        """Runs end, and preempted runs leave; a pass follows each."""
        end = self.now + dt.timedelta(seconds=seconds)
        while self._events and self._events[0][0] <= end:
            self.now, turn, run = heapq.heappop(self._events)
            if turn < 0:
                self._gone(-turn)
            elif run in self.running and self.running[run].turn == turn:
                del self.running[run]
            self.schedule()
        self.now = end

    def _gone(self, turn: int) -> None:
        """A preempted run has saved and left; it waits again, unless it only shrank."""
        for entry in [e for e in self.leaving if e[0] <= self.now]:
            self.leaving.remove(entry)
            _, run, _, whole = entry
            if whole:
                self.waiting[run] = self._demand(run, NOW + dt.timedelta(seconds=turn))

    # passes

    def schedule(self) -> None:
        outcome = plan(self.snapshot(), self.now)
        self._check(outcome)
        for run, nodes in outcome.placements.items():
            self._start(run, nodes)
        for eviction in outcome.evictions:
            self.asked[eviction.run, eviction.by] += 1
            self._leave(eviction.run, eviction.nodes)
        self.expecting = {
            run: set(claim.nodes) for run, claim in outcome.claims.items() if claim.preempting
        }
        for run in outcome.claims.keys() - self.expecting.keys() - self.promised.keys():
            self.promised[run] = max((at for at, _, _ in self._events), default=self.now)
        for run in self.promised.keys() & outcome.claims.keys() - self.told:
            if (until := outcome.claims[run].until) is not None:
                self.promised[run] = max(self.promised[run], until)
                self.told.add(run)
        for run, waits in self.waiting.items():
            self.waiting[run] = dataclasses.replace(waits, claim=outcome.claims.get(run))

    def snapshot(self) -> Snapshot:
        return Snapshot(
            table=self.table,
            holdings=[
                *(each.holding for each in self.running.values()),
                *(held for _, _, held, _ in self.leaving),
            ],
            demands=list(self.waiting.values()),
            quotas=self.quotas,
            spares=self.spares,
        )

    def _check(self, outcome: Plan) -> None:
        """No node is overcommitted, and the run that preempted others gets their nodes."""
        used: Counter[str] = Counter()
        for held in self.snapshot().holdings:
            used.update(dict.fromkeys(held.nodes, held.need.gpus_per_node))
        for run, nodes in outcome.placements.items():
            used.update(dict.fromkeys(nodes, self.jobs[run].gpus))
        assert all(gpus <= 8 for gpus in used.values())
        away = {node for _, _, held, _ in self.leaving for node in held.nodes}
        for run, nodes_ in self.expecting.items():
            limited = any(quota.name == self.jobs[run].queue for quota in self.quotas)
            if not (away if limited else nodes_ & away) and run in self.waiting:
                assert set(outcome.placements.get(run, ())) == nodes_
        for eviction in outcome.evictions:  # what leaves already does not suffice
            placed = {node for nodes in outcome.placements.values() for node in nodes}
            free = set(self.table.names) - self._busy() - placed
            by = self.waiting[eviction.by]
            if by.pack == "any" and self.spares == 0 and not self.quotas:
                kept = {n for r, c in outcome.claims.items() if r != by.run for n in c.nodes}
                # A node that one tenant leaves may still have another, which stays.
                stays: Counter[str] = Counter()
                for run, each in self.running.items():
                    stays.update(dict.fromkeys(each.holding.nodes, self.jobs[run].gpus))
                room = {n for n in free | away if stays[n] + self.jobs[by.run].gpus <= 8}
                assert len(room - kept) < by.nodes

    def _busy(self) -> set[str]:
        return {node for each in self.running.values() for node in each.holding.nodes} | {
            node for _, _, held, _ in self.leaving for node in held.nodes
        }

    def _start(self, run: str, nodes: tuple[str, ...]) -> None:
        job = self.jobs[run]
        del self.waiting[run]
        ends = self.now + dt.timedelta(seconds=self.left[run])
        self._turns += 1
        self.running[run] = Running(
            holding(
                run,
                *nodes,
                gpus=job.gpus,
                queue=job.queue,
                project=job.project,
                priority=job.priority,
                ends_at=ends if job.limited else None,
                lost_gpu_seconds=60.0 * len(nodes),
                surplus=nodes[len(nodes) - job.surplus :] if job.surplus else (),
                pack=job.pack,
            ),
            self.now,
            self._turns,
        )
        self.started.setdefault(run, self.now)
        heapq.heappush(self._events, (ends, self._turns, run))

    def _leave(self, run: str, nodes: tuple[str, ...]) -> None:
        """Preempt a run; one that only shrinks continues on its other nodes."""
        running = self.running[run]
        whole = set(nodes) == set(running.holding.nodes)
        gone = self.now + dt.timedelta(seconds=GRACE)
        left = dataclasses.replace(
            running.holding, nodes=nodes, leaving=True, movable=False, ends_at=gone, surplus=()
        )
        self.leaving.append((gone, run, left, whole))
        self._turns += 1
        heapq.heappush(self._events, (gone, -self._turns, run))
        if whole:
            del self.running[run]
            self.left[run] -= (self.now - running.since).total_seconds()
        else:
            stays = tuple(node for node in running.holding.nodes if node not in nodes)
            running.holding = dataclasses.replace(running.holding, nodes=stays, surplus=())

    def _demand(self, run: str, at: dt.datetime) -> Demand:
        job = self.jobs[run]
        return demand(
            run,
            job.nodes,
            job.gpus,
            queue=job.queue,
            project=job.project,
            priority=job.priority,
            submitted_at=at,
            pack=job.pack,
            ends_within=self.left[run] if job.limited else None,
        )


def jobs(most: int = 8, **fixed: object) -> st.SearchStrategy[Job]:
    """Jobs of all kinds, but for what is fixed."""
    fields: dict[str, st.SearchStrategy[object]] = {
        "nodes": st.integers(1, most),
        "gpus": st.sampled_from([8, 8, 4]),
        "seconds": st.floats(1, 900),
        "limited": st.booleans(),
        "priority": st.sampled_from(list(Priority)),
        "queue": st.sampled_from(["a", "b", "default"]),
        "project": st.sampled_from("pq"),
        "pack": st.just("any") if most > 4 else st.sampled_from(["any", "rack"]),
    }
    fields.update({name: st.just(value) for name, value in fixed.items()})
    return st.builds(Job, **fields)


@settings(max_examples=300, deadline=None)
@given(
    first=st.lists(jobs(priority=Priority.NORMAL, queue="default"), min_size=1, max_size=6),
    whole=st.tuples(st.integers(1, 8), st.sampled_from(["any", "rack"])),
    small=st.lists(
        st.tuples(st.integers(1, 60), jobs(3, priority=Priority.NORMAL, queue="default")),
        max_size=50,
    ),
    spares=st.integers(0, 2),
)
def test_nobody_starves(
    first: Sequence[Job],
    whole: tuple[int, str],
    small: Sequence[tuple[int, Job]],
    spares: int,
) -> None:
    """A large run starts, however many small ones come after it, whether or not they have an end.

    Once a run is the first in the queue, it starts when what runs at that moment has ended, or by
    the first end that it is told: those behind it may only use what does not delay it. An end that
    nobody knew may come while a short run with an end of its own is let in: by so much it is late.
    """
    cluster = Cluster(spares=spares)
    for i, job in enumerate(first):
        cluster.submit(f"first-{i}", dataclasses.replace(job, project="p"))
    nodes, pack = whole
    nodes = min(nodes, 8 - spares, 4 if pack == "rack" else 8)
    cluster.submit("whole", Job(nodes=nodes, seconds=100.0, pack=pack))
    for i, (pause, job) in enumerate(small):
        cluster.advance(pause)
        cluster.submit(f"small-{i}", dataclasses.replace(job, project="p"))
    cluster.advance(100_000)
    behind = [job for job in (*first, *(job for _, job in small)) if job.limited]
    let_in = dt.timedelta(seconds=max((job.seconds for job in behind), default=0.0))
    for run, at in cluster.promised.items():
        late = dt.timedelta() if run in cluster.told else let_in
        assert cluster.started[run] <= at + late
    _everybody_had_a_turn(cluster)


@settings(max_examples=300, deadline=None)
@given(
    stream=st.lists(st.tuples(st.integers(0, 200), jobs()), min_size=1, max_size=25),
    quotas=st.sampled_from(
        [
            (),
            (Quota(name="a", gpus=32, cohort="c"), Quota(name="b", gpus=32, cohort="c")),
            (
                Quota(name="a", gpus=24, cohort="c", lending_limit=8),
                Quota(name="b", gpus=32, cohort="c", borrowing_limit=8),
            ),
            (Quota(name="a", gpus=16),),
        ]
    ),
    spares=st.integers(0, 2),
)
def test_whoever_had_others_leave_starts_and_all_have_their_turn(
    stream: Sequence[tuple[int, Job]], quotas: Sequence[Quota], spares: int
) -> None:
    """Priorities, quotas and spares together: nobody leaves in vain, and nothing stands still."""
    cluster = Cluster(quotas, spares)
    for i, (pause, job) in enumerate(stream):
        cluster.advance(pause)
        surplus = (job.nodes - 1) * (i % 2)
        cluster.submit(f"r{i}", dataclasses.replace(job, surplus=surplus))
    cluster.advance(100_000)
    _everybody_had_a_turn(cluster)
    for (run, by), times in cluster.asked.items():
        assert times <= 2, f"{by} has had {run} leave {times} times"  # its surplus, then the rest
        victim, other = cluster.jobs[run], cluster.jobs[by]
        lower = PRIORITY_RANK[victim.priority] > PRIORITY_RANK[other.priority]
        peer = PRIORITY_RANK[victim.priority] == PRIORITY_RANK[other.priority]
        assert lower or victim.queue != other.queue or (peer and victim.surplus)


def _everybody_had_a_turn(cluster: Cluster) -> None:
    """Nothing runs any more, and only what could never run waits."""
    assert not cluster.running
    waits = plan(cluster.snapshot(), cluster.now).waits
    assert {wait.why for wait in waits.values()} <= {Pending.TOO_LARGE}
    assert cluster.waiting.keys() == waits.keys()
