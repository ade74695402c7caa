"""Usage adds up: by any key, over any period, whatever the runs did."""

from __future__ import annotations

import dataclasses
import datetime as dt
import itertools

from hypothesis import given
from hypothesis import strategies as st

from jobs.spec import RunSpec
from monitors.failures import Cause, FailureClass
from orchestrator.core.model.decisions import Restart
from orchestrator.core.model.entities import Attempt, Run, Seat, Worker
from orchestrator.core.model.states import WorkerState
from orchestrator.core.model.time_ledger import Bucket, Ledger
from orchestrator.core.views.usage import By, RunRecord, RunUsage, Sum, Use, summed, usage_of

START = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
HOUR = 3_600_000_000


def at(seconds: float) -> dt.datetime:
    return START + dt.timedelta(seconds=seconds)


TIMES = st.one_of(st.none(), st.floats(0, 5000, allow_nan=False).map(at))


@st.composite
def records(draw: st.DrawFn) -> RunRecord:
    """A run with times in any order, as late reports and lost ones may leave them."""
    some = st.integers(0, 4000)
    name = draw(st.sampled_from("abc"))
    spec = RunSpec.model_validate(
        {
            "name": f"run-{name}",
            "command": ["true"],
            "project": draw(st.sampled_from(["llm", "vision"])),
            "queue": draw(st.sampled_from(["default", "research"])),
            "resources": {"nodes": 1, "gpus_per_node": draw(st.integers(0, 8))},
        }
    )
    unknown = {Bucket.UNKNOWN: 1.0} if draw(st.booleans()) else {}
    run = Run(
        id=draw(st.uuids()).hex,
        name=spec.name,
        spec=spec,
        owner=draw(st.sampled_from(["ann", "mia"])),
        submitted_at=at(draw(some)),
        ledger=Ledger(since=START, seconds=unknown),
    )
    workers = [
        Worker(
            id=f"w{number}",
            run=run.id,
            node=f"n{number}",
            launched_at=at(draw(some)),
            ended_at=draw(TIMES),
            state=draw(st.sampled_from([WorkerState.READY, WorkerState.ENDED])),
        )
        for number in range(draw(st.integers(0, 4)))
    ]
    attempts = []
    for number in range(1, draw(st.integers(0, 3)) + 1):
        restart = None
        if number > 1:
            restart = Restart(
                attempt=number,
                cause=draw(st.sampled_from(Cause)),
                failure_class=draw(st.sampled_from(FailureClass)),
                reason="",
                failed_at=at(draw(some)),
                detected_at=at(draw(some)),
                stopped_at=draw(TIMES),
                placed_at=draw(TIMES),
                recovered_at=draw(TIMES),
            )
        attempts.append(
            Attempt(
                run=run.id,
                number=number,
                seats=tuple(Seat(worker=w.id, node=w.node, ranks=(0,)) for w in workers[:2]),
                world_size=1,
                restart=restart,
                first_step_at=draw(TIMES),
                started_at=at(draw(some)),
                ended_at=draw(TIMES),
                blocked_seconds=draw(st.floats(0, 3000)),
            )
        )
    return RunRecord(run=run, attempts=attempts, workers=workers)


def held(record: RunRecord, since: dt.datetime, until: dt.datetime) -> int:
    """Microseconds in which workers with a known end held nodes."""
    total = dt.timedelta()
    for worker in record.workers:
        if worker.state is WorkerState.ENDED and worker.ended_at is None:
            continue
        end = worker.ended_at or until
        total += max(min(end, until) - max(worker.launched_at, since), dt.timedelta())
    return total // dt.timedelta(microseconds=1)


@given(st.lists(records(), max_size=6), st.integers(0, 5000), st.integers(0, 5000))
def test_sums_by_any_key_are_equal_to_the_last_microsecond(
    found: list[RunRecord], first: int, second: int
) -> None:
    since, until = at(min(first, second)), at(max(first, second))
    usages = [usage_of(each, since, until, now=at(6000)) for each in found]
    total = Sum()
    for each in usages:
        total.add(each.node_time, each.gpus_per_node)
    for by in By:
        rows = summed(usages, by)
        assert sum(row.gpu_time.total() for row in rows.values()) == total.gpu_time.total()
        assert sum(row.node_time.total() for row in rows.values()) == total.node_time.total()
    assert all(time > 0 for each in usages for time in each.node_time.values())


@given(records(), st.lists(st.integers(0, 6000), min_size=1, max_size=5))
def test_parts_of_a_period_add_up_to_the_whole(record: RunRecord, cuts: list[int]) -> None:
    edges = sorted({0, 6000, *cuts})
    now = at(6000)
    parts = [usage_of(record, at(a), at(b), now) for a, b in itertools.pairwise(edges)]
    whole = usage_of(record, at(0), at(6000), now)
    assert sum(sum(part.node_time.values()) for part in parts) == sum(whole.node_time.values())


@given(records(), st.integers(0, 5000), st.integers(0, 5000))
def test_usage_is_the_time_for_which_workers_held_nodes(
    record: RunRecord, first: int, second: int
) -> None:
    since, until = at(min(first, second)), at(max(first, second))
    known = dataclasses.replace(
        record,
        workers=[w for w in record.workers if w.ended_at or w.state is not WorkerState.ENDED],
    )
    found = usage_of(known, since, until, now=at(6000))
    assert sum(found.node_time.values()) == held(known, since, until)


def story() -> RunRecord:
    """Two nodes of four GPUs; a hang of one hour in the middle, and ten minutes of saves."""
    spec = RunSpec.model_validate(
        {"name": "a", "command": ["x"], "resources": {"nodes": 2, "gpus_per_node": 4}}
    )
    run = Run(id="r", name="a", spec=spec, submitted_at=START, ledger=Ledger(since=START))
    seats = tuple(Seat(worker=f"w{i}", node=f"n{i}", ranks=(i,)) for i in (0, 1))
    workers = [
        Worker(id=f"w{i}", run="r", node=f"n{i}", launched_at=at(0), ended_at=at(6 * 3600))
        for i in (0, 1)
    ]
    hang = Restart(
        attempt=2,
        cause=Cause.INFRASTRUCTURE,
        failure_class=FailureClass.HANG,
        reason="",
        failed_at=at(3 * 3600),
        detected_at=at(3.1 * 3600),
        stopped_at=at(3.2 * 3600),
        placed_at=at(3.7 * 3600),
        recovered_at=at(4 * 3600),
    )
    first = Attempt(
        run="r",
        number=1,
        seats=seats,
        world_size=2,
        started_at=at(60),
        first_step_at=at(3600),
        ended_at=at(3.2 * 3600),
        blocked_seconds=600,
    )
    second = Attempt(
        run="r",
        number=2,
        seats=seats,
        world_size=2,
        restart=hang,
        started_at=at(3.7 * 3600),
        ended_at=at(5.5 * 3600),
    )
    return RunRecord(run=run, attempts=[first, second], workers=workers)


def hours(usage: RunUsage) -> dict[str, float]:
    return {use: round(time / HOUR, 6) for use, time in usage.node_time.items()}


def test_time_goes_to_what_it_was_spent_on() -> None:
    found = hours(usage_of(story(), START, at(10**6), now=at(10**6)))
    assert found == {
        Use.STARTING: 2.0,
        Use.PRODUCTIVE: 6.666667,
        Use.CHECKPOINTING: 0.333333,
        "lost: hang": 1.0,
        Use.WAITING: 1.0,
        Use.STOPPING: 1.0,
    }


def test_a_period_cuts_a_run() -> None:
    found = hours(usage_of(story(), at(3.1 * 3600), at(3.9 * 3600), now=at(10**6)))
    assert found == {"lost: hang": 0.6, Use.WAITING: 1.0}


def test_a_run_that_is_not_over_is_counted_up_to_now() -> None:
    record = story()
    workers = [dataclasses.replace(each, ended_at=None) for each in record.workers]
    alive = dataclasses.replace(record, attempts=record.attempts[:1], workers=workers)
    ongoing = dataclasses.replace(record.attempts[0], ended_at=None, blocked_seconds=0)
    alive = dataclasses.replace(alive, attempts=[ongoing])
    found = hours(usage_of(alive, START, at(10**6), now=at(2 * 3600)))
    assert found == {Use.STARTING: 2.0, Use.PRODUCTIVE: 2.0}
