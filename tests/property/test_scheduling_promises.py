"""The promises of docs/scheduling.md, over passes on a cluster of several kinds of nodes.

Runs of several priorities, projects and queues come, some of them elastic; nodes go away and come
back; victims hang. Time is virtual, and a pass follows every change.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Mapping, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.spec import Priority
from orchestrator.core.scheduling import (
    Claim,
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
from orchestrator.core.scheduling.backfill import UNKNOWN_SECONDS
from orchestrator.core.scheduling.types import PRIORITY_RANK
from tests.unit.test_scheduling_plan import NOW, demand, holding

GRACE = 30.0
OVERDUE = 90.0
"""Seconds after which a victim that hangs is no longer counted on (`snapshot.OVERDUE_SECONDS`)."""
KINDS = {"s": (4, 8), "m": (2, 16)}
"""Kind of node → number, GPUs."""
NODES = {f"{kind}{i}": gpus for kind, (count, gpus) in KINDS.items() for i in range(count)}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A run that somebody submits."""

    nodes: int
    gpus: int
    seconds: float
    limited: bool
    priority: Priority = Priority.NORMAL
    project: str = "p"
    queue: str = "default"
    surplus: int = 0
    """Nodes above the minimum that it takes when they are idle."""


@dataclasses.dataclass(slots=True)
class Holder:
    """A run with nodes."""

    job: Job
    nodes: tuple[str, ...]
    ends: dt.datetime
    base: tuple[str, ...]
    """The nodes of its minimum."""


class Cluster:
    """Six nodes of two kinds, and what happens on them."""

    def __init__(
        self,
        quotas: Sequence[Quota] = (),
        *,
        hang: bool = False,
        usage: Mapping[str, float] | None = None,
    ) -> None:
        self.now, self.quotas, self.hang, self.usage = NOW, quotas, hang, usage or {}
        self.away: dict[str, dt.datetime] = {}
        self.waiting: dict[str, tuple[Job, dt.datetime, Claim | None]] = {}
        self.running: dict[str, Holder] = {}
        self.leaving: list[tuple[dt.datetime, str, Job, tuple[str, ...], dt.datetime]] = []
        """When each has left (never, if it hangs), who, what, where, and since when."""
        self.started: dict[str, dt.datetime] = {}
        self.outcome = Plan()
        self.victims = 0

    def submit(self, run: str, job: Job) -> None:
        self.waiting[run] = job, self.now, None
        self.schedule()

    def leave(self, node: str, seconds: float) -> None:
        """A node takes no work for a while; what runs on it stays until it ends."""
        self.away[node] = self.now + dt.timedelta(seconds=seconds)
        self.schedule()

    def advance(self, seconds: float) -> None:
        """Let time pass, with a pass whenever something happens or one is wanted."""
        end = self.now + dt.timedelta(seconds=seconds)
        while (at := self._next(end)) is not None:
            self.now = at
            for run in [r for r, h in self.running.items() if h.ends <= at]:
                del self.running[run]
            self.away = {node: back for node, back in self.away.items() if back > at}
            self.leaving = [each for each in self.leaving if each[0] > at]
            self.schedule()
        self.now = end

    def _next(self, end: dt.datetime) -> dt.datetime | None:
        times = [holder.ends for holder in self.running.values()]
        times += [each[0] for each in self.leaving] + list(self.away.values())
        times += [w.recheck_at for w in self.outcome.waits.values() if w.recheck_at is not None]
        return min((at for at in times if self.now < at <= end), default=None)

    def schedule(self) -> None:
        """Passes until nothing more is decided: the last one must decide nothing."""
        for _ in range(20):
            self.outcome = plan(self.snapshot(), self.now)
            if not self._carry_out(self.outcome):
                return
        raise AssertionError("each pass decides something new")

    def _carry_out(self, outcome: Plan) -> bool:
        for eviction in outcome.evictions:
            self._evict(eviction.run, eviction.nodes)
        for run, nodes in outcome.placements.items():
            job, _, _ = self.waiting.pop(run)
            ends = self.now + dt.timedelta(seconds=job.seconds)
            self.running[run] = Holder(job, nodes, ends, nodes)
            self.started.setdefault(run, self.now)
        for run, nodes in outcome.growth.items():
            self.running[run].nodes += nodes
        self.waiting = {
            run: (job, at, outcome.claims.get(run)) for run, (job, at, _) in self.waiting.items()
        }
        self._nothing_is_used_twice()
        return bool(outcome.evictions or outcome.placements or outcome.growth)

    def _evict(self, run: str, nodes: tuple[str, ...]) -> None:
        holder = self.running[run]
        self.victims += 1
        hangs = self.hang and self.victims % 3 == 0
        gone = dt.timedelta(days=999) if hangs else dt.timedelta(seconds=GRACE)
        self.leaving.append((self.now + gone, run, holder.job, nodes, self.now))
        if set(nodes) == set(holder.nodes):
            del self.running[run]
            self.waiting[run] = holder.job, self.now, None
        else:
            holder.nodes = tuple(node for node in holder.nodes if node not in nodes)

    def _nothing_is_used_twice(self) -> None:
        used = dict.fromkeys(NODES, 0)
        for holder in self.running.values():
            for node in holder.nodes:
                used[node] += holder.job.gpus
        for _, _, job, nodes, _ in self.leaving:
            for node in nodes:
                used[node] += job.gpus
        assert all(used[node] <= gpus for node, gpus in NODES.items())

    def snapshot(self) -> Snapshot:
        holdings = []
        for run, holder in self.running.items():
            job = holder.job
            surplus = tuple(node for node in holder.nodes if node not in holder.base)
            holdings.append(
                self._holding(
                    run,
                    job,
                    holder.nodes,
                    ends_at=holder.ends if job.limited else None,
                    surplus=surplus,
                    wants=job.surplus - len(surplus),
                )
            )
        for _, run, job, nodes, since in self.leaving:
            hung = (self.now - since).total_seconds() >= OVERDUE
            ends = None if hung else self.now
            holdings.append(
                self._holding(run, job, nodes, ends_at=ends, leaving=not hung, movable=False)
            )
        return Snapshot(
            table=NodeTable(
                NodeCapacity(node=node, gpus=gpus, cpus=64, away=node in self.away)
                for node, gpus in NODES.items()
            ),
            holdings=holdings,
            demands=[self._demand(run, *each) for run, each in self.waiting.items()],
            quotas=self.quotas,
            usage=self.usage,
            grace_seconds=GRACE,
        )

    def _holding(self, run: str, job: Job, nodes: tuple[str, ...], **fields: object) -> Holding:
        return holding(
            run,
            *nodes,
            gpus=job.gpus,
            queue=job.queue,
            project=job.project,
            priority=job.priority,
            lost_gpu_seconds=60.0,
            **fields,
        )

    def _demand(self, run: str, job: Job, at: dt.datetime, claim: Claim | None) -> Demand:
        return demand(
            run,
            job.nodes,
            job.gpus,
            queue=job.queue,
            project=job.project,
            priority=job.priority,
            submitted_at=at,
            ends_within=job.seconds if job.limited else None,
            claim=claim,
        )


@st.composite
def jobs(draw: st.DrawFn, *, priority: Priority | None = None, elastic: bool = True) -> Job:
    gpus = draw(st.sampled_from([4, 8, 8, 16]))
    most = 2 if gpus == 16 else 6
    return Job(
        nodes=draw(st.integers(1, most)),
        gpus=gpus,
        seconds=float(draw(st.integers(1, 900))),
        limited=draw(st.booleans()),
        priority=priority or draw(st.sampled_from(list(Priority))),
        project=draw(st.sampled_from("pqr")),
        queue=draw(st.sampled_from(["a", "b", "default"])),
        surplus=draw(st.integers(0, 2)) if elastic else 0,
    )


Happening = tuple[int, Job | tuple[str, int]]
happenings = st.lists(
    st.tuples(
        st.integers(0, 300),
        st.one_of(jobs(), jobs(), st.tuples(st.sampled_from(sorted(NODES)), st.integers(1, 900))),
    ),
    max_size=15,
)


@settings(max_examples=150, deadline=None)
@given(
    stream=happenings,
    quotas=st.sampled_from(
        [
            (),
            (Quota(name="a", gpus=32, cohort="c"), Quota(name="b", gpus=32, cohort="c")),
            (Quota(name="a", gpus=48),),
        ]
    ),
    hang=st.booleans(),
)
def test_everybody_has_a_turn_and_the_last_pass_decides_nothing(
    stream: Sequence[Happening], quotas: Sequence[Quota], hang: bool
) -> None:
    """Whatever comes: no node is used twice, passes settle, and in the end nobody waits.

    Runs that could never start, and runs that only the nodes of a hung victim could take, may wait.
    """
    cluster = Cluster(quotas, hang=hang)
    for i, (pause, what) in enumerate(stream):
        cluster.advance(pause)
        if isinstance(what, Job):
            cluster.submit(f"r{i}", what)
        else:
            cluster.leave(*what)
    cluster.advance(2_000_000)
    assert not cluster.running
    waits = plan(cluster.snapshot(), cluster.now).waits
    if not any(each[0] > cluster.now for each in cluster.leaving):
        assert {wait.why for wait in waits.values()} <= {Pending.TOO_LARGE}


def _crowd(stream: Sequence[Happening]) -> list[Happening]:
    """The same within minutes, and of projects that have used nothing."""
    found: list[Happening] = []
    for pause, what in stream:
        new = dataclasses.replace(what, project="q") if isinstance(what, Job) else what
        found.append((pause // 10, new))
    return found


@settings(max_examples=150, deadline=None)
@given(
    first=st.lists(jobs(priority=Priority.NORMAL, elastic=False), min_size=1, max_size=5),
    gang=st.sampled_from([(8, 6), (8, 6), (16, 2), (8, 4), (4, 6)]),
    stream=happenings.map(_crowd),
    known=st.booleans(),
)
def test_a_promised_start_is_kept_against_all_that_come_later(
    first: Sequence[Job], gang: tuple[int, int], stream: Sequence[Happening], known: bool
) -> None:
    """A run with a reservation starts when what ran then has ended, and lent nodes are back.

    Newcomers of its priority or a lower one, of any project and for any kind of node, do not put it
    off; nor does a node that is away for some minutes, by more than these. Where an end is unknown,
    nodes are lent for an hour at most. With known ends and no absences the promise is exact.
    """
    if known:
        first = [dataclasses.replace(job, limited=True) for job in first]
        stream = [(pause, what) for pause, what in stream if isinstance(what, Job)]
    cluster = Cluster(usage={"g": 1e7})  # its project has used more than all others
    for i, job in enumerate(first):
        cluster.submit(f"first-{i}", dataclasses.replace(job, queue="default"))
    gpus, nodes = gang
    cluster.submit("gang", Job(nodes=nodes, gpus=gpus, seconds=100.0, limited=True, project="g"))
    due: dt.datetime | None = None
    slack = dt.timedelta()
    for i, (pause, what) in enumerate([*stream, (100_000, None)]):
        if due is None and (promise := _promise(cluster)) is not None:
            due, unknown = promise
            slack += unknown
        cluster.advance(pause)
        if isinstance(what, Job):
            later = max(PRIORITY_RANK[what.priority], PRIORITY_RANK[Priority.NORMAL])
            priority = next(p for p, rank in PRIORITY_RANK.items() if rank == later)
            job = dataclasses.replace(what, priority=priority, queue="default", surplus=0)
            cluster.submit(f"r{i}", job)
        elif what is not None:
            node, seconds = what
            cluster.leave(node, seconds)
            slack += dt.timedelta(seconds=seconds + UNKNOWN_SECONDS)
    assert "gang" in cluster.started
    if due is not None:
        assert cluster.started["gang"] <= due + slack


def _promise(cluster: Cluster) -> tuple[dt.datetime, dt.timedelta] | None:
    """When all has ended that runs or waits ahead of the gang, and the slack for unknown ends.

    None: the gang has no reservation.
    """
    _, _, claim = cluster.waiting.get("gang", (None, None, None))
    if claim is None or not claim.nodes:
        return None
    ends = max((holder.ends for holder in cluster.running.values()), default=cluster.now)
    waiting = [cluster.waiting[run][0] for run in cluster.outcome.ahead("gang")]
    ends += dt.timedelta(seconds=sum(job.seconds for job in waiting))
    known = all(job.limited for job in waiting) and claim.until is not None
    return ends, dt.timedelta(seconds=0 if known else UNKNOWN_SECONDS * (1 + len(waiting)))
