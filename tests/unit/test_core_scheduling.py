"""Quotas, topology, estimates and dry runs, carried through the core."""

from __future__ import annotations

import datetime as dt

import pytest

from jobs.spec import Priority
from orchestrator.core.messages.events import QueueChanged
from orchestrator.core.model.states import RunState
from orchestrator.core.model.vocabulary import Timer
from orchestrator.core.policy import usage_history
from orchestrator.core.policy.time_limits import GRACE_SECONDS
from orchestrator.core.scheduling import Quota
from orchestrator.core.views.dry_run import try_out
from orchestrator.core.views.explain import explain
from orchestrator.errors import InvalidError
from tests.gpu_cluster import cluster, gpu_spec, nodes_of, start


def test_a_queue_waits_for_its_quota_and_says_so() -> None:
    world = cluster(4)
    world.do(world.event(QueueChanged, quota=Quota(name="q", gpus=16)))
    start(world, "first", queue="q")
    world.submit(gpu_spec("second", nodes=1, queue="q"), "second")
    said = explain(world.state, "second", world.now)
    assert said.underlying == "quota"
    assert "queue q uses 16 of 16 GPUs" in " ".join(said.sentences)
    assert "babysit queues set q --gpus N" in said.unblock
    world.do(world.event(QueueChanged, quota=Quota(name="q", gpus=24)))
    assert world.run("second").state is RunState.STARTING


def test_a_lent_quota_is_reclaimed() -> None:
    world = cluster(4)
    for name in ("ours", "theirs"):
        world.do(world.event(QueueChanged, quota=Quota(name=name, gpus=16, cohort="all")))
    start(world, "big", nodes=2, queue="theirs")
    start(world, "more", nodes=2, queue="theirs", priority="high")
    world.submit(gpu_spec("back", nodes=2, queue="ours", priority="low"), "back")
    world.settle()
    assert nodes_of(world, "back") == {"node-0", "node-1"}
    assert world.run("big").pending == "quota"
    assert world.run("more").state is RunState.RUNNING


@pytest.mark.parametrize(
    "quota",
    [
        Quota(name="q", gpus=8, borrowing_limit=4),
        Quota(name="q", cohort="all"),
        Quota(name="q", weights={"p": 0.0}),
    ],
)
def test_a_quota_that_makes_no_sense_is_refused(quota: Quota) -> None:
    world = cluster(1)
    with pytest.raises(InvalidError):
        world.do(world.event(QueueChanged, quota=quota))
    assert world.state.queues == {}


def test_usage_is_booked_on_the_project() -> None:
    world = cluster(2)
    start(world, "a", project="vision", priority=Priority.NORMAL.value)
    world.advance(100)
    world.end("a")
    world.settle()
    assert world.state.fleet.usage["vision"].gpu_seconds == pytest.approx(16 * 112, rel=0.1)


def test_the_usage_of_a_project_is_the_same_before_and_after_its_run_ends() -> None:
    """A project that has run for eight weeks is not due more because its run has just ended."""
    world = cluster(2)
    start(world, "long", nodes=1, project="vision")
    world.now += dt.timedelta(weeks=8)
    running = usage_history.usage_by_project(world.state, world.now)["vision"]
    world.end("long")
    world.settle()
    assert usage_history.usage_by_project(world.state, world.now)["vision"] == pytest.approx(
        running
    )
    assert running < 8 * 86400 * 10.1


def test_neighbours_in_rank_are_neighbours_on_the_network() -> None:
    world = cluster(4, rack=lambda i: i % 2)
    world.submit(gpu_spec("run-1", nodes=4), "run-1")
    world.settle()
    racks = [world.state.nodes[seat.node].labels["rack"] for seat in world.attempt().seats]
    assert racks == ["0", "0", "1", "1"]


def test_a_gang_that_no_rack_holds_is_refused() -> None:
    world = cluster(4, rack=lambda i: i // 2)
    with pytest.raises(InvalidError, match=r"placement\.pack: asks for 3 nodes within one rack"):
        world.submit(gpu_spec("run-1", nodes=3, placement={"pack": "rack"}), "run-1")


def test_a_dry_run_changes_nothing() -> None:
    world = cluster(4, rack=lambda i: i // 2)
    start(world, "low", priority="low")
    before = dict(world.state.runs)
    here = try_out(world.state, gpu_spec("new", nodes=2), world.now)
    assert here.starts
    assert here.nodes == ["node-2", "node-3"]
    assert here.domains == {"rack": ["1"]}
    whole = try_out(world.state, gpu_spec("whole", nodes=4, priority="high"), world.now)
    assert not whole.starts
    assert [each.name for each in whole.evicts] == ["low"]
    assert whole.evicts[0].lost_gpu_seconds > 0
    late = try_out(world.state, gpu_spec("late", nodes=4, priority="low"), world.now)
    assert late.underlying == "no_capacity"
    assert "would be number 1 in the queue" in " ".join(late.sentences)
    with pytest.raises(InvalidError):
        try_out(world.state, gpu_spec("huge", nodes=5), world.now)
    assert dict(world.state.runs) == before


def test_an_estimate_from_the_ends_of_others() -> None:
    world = cluster(2)
    start(world, "busy", max_runtime="2h")
    world.submit(gpu_spec("next"), "next")
    said = explain(world.state, "next", world.now)
    grace = dt.timedelta(seconds=GRACE_SECONDS)  # in which it may save
    assert said.starts_at == world.run("busy").timers[Timer.MAX_RUNTIME][""] + grace
    assert "expected to be free in" in " ".join(said.sentences)


def test_an_estimate_from_history() -> None:
    """Three runs of the size have waited ten minutes each: so will this one, likely."""
    world = cluster(2)
    for i in range(4):
        world.submit(gpu_spec(f"r{i}"), f"r{i}")
    for i in range(4):
        world.settle()
        world.now += dt.timedelta(minutes=10)
        world.trained_to(1, f"r{i}")
        world.end(f"r{i}")
    world.submit(gpu_spec("busy"), "busy")
    world.submit(gpu_spec("next"), "next")
    said = " ".join(explain(world.state, "next", world.now).sentences)
    assert "Runs of its size waited" in said
    assert len(world.state.queues["default"].history) == 4
