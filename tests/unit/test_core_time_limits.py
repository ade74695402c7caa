"""`max_runtime`: what counts against it, and what others plan by it."""

from __future__ import annotations

import datetime as dt

import pytest

from orchestrator.core.messages.events import NodeChanged, RunCancelled
from orchestrator.core.model.states import RunState
from orchestrator.core.model.vocabulary import Timer
from orchestrator.core.placement import snapshot
from orchestrator.core.policy.time_limits import GRACE_SECONDS
from tests.gpu_cluster import cluster, gpu_spec, holdings, start
from tests.world import trained


def test_time_in_the_queue_is_no_runtime() -> None:
    world = cluster(2)
    start(world, "busy")
    world.submit(gpu_spec("next", max_runtime="1h"), "next")
    world.advance(7200)
    assert world.run("next").state is RunState.QUEUED
    world.end("busy")
    world.settle()
    begun = world.now
    assert world.run("next").timers[Timer.MAX_RUNTIME][""] == begun + dt.timedelta(hours=1)
    world.advance(3600)
    world.settle()
    assert world.run("next").state is RunState.FAILED
    assert "max_runtime of 3600 s has passed" in world.run("next").reason


def test_a_cancelled_run_does_not_fail_of_its_max_runtime() -> None:
    world = trained(5, max_runtime=60)
    world.do(world.event(RunCancelled, run="run-1"))
    world.advance(60)
    world.settle()
    assert world.run().state is RunState.CANCELLED


def test_the_time_of_a_run_stands_still_while_it_waits_for_others() -> None:
    """Preempted after ten minutes of its hour, two hours in the queue: fifty minutes are left."""
    world = cluster(2)
    start(world, "low", priority="low", max_runtime="1h")
    world.advance(588)
    world.submit(gpu_spec("high", priority="high"), "high")
    world.settle()
    assert world.run("low").due(Timer.MAX_RUNTIME) is None
    assert world.run("low").runtime_left == pytest.approx(3000)
    world.trained_to(1, "high")
    world.advance(7200)
    low = snapshot.demand_of(world.state, world.run("low"), world.now)
    assert low.ends_within == pytest.approx(3000 + GRACE_SECONDS)
    world.end("high")
    world.settle()
    assert world.run("low").timers[Timer.MAX_RUNTIME][""] == world.now + dt.timedelta(seconds=3000)
    assert world.run("low").runtime_left is None
    world.advance(3000)
    world.settle()
    assert world.run("low").state is RunState.FAILED


def test_the_time_of_a_run_goes_on_while_it_restarts() -> None:
    """It has its nodes meanwhile; also with a node too few it keeps the other from others."""
    world = cluster(2)
    start(world, "run-1", max_runtime="1h")
    ends = world.run().timers[Timer.MAX_RUNTIME][""]
    world.do(world.event(NodeChanged, node="node-0", state="cordoned", reason="Xid 79"))
    world.kill_agent(next(w.id for w in world.state.workers_of("run-1") if w.node == "node-0"))
    world.settle()
    assert world.run().state is RunState.QUEUED
    assert world.run().timers[Timer.MAX_RUNTIME][""] == ends


def test_nodes_are_promised_for_when_a_run_has_saved() -> None:
    """Whoever ends just before a reservation begins may still save for 30 s."""
    world = cluster(2)
    start(world, "busy", max_runtime="1h")
    told = world.run("busy").timers[Timer.MAX_RUNTIME][""]
    grace = dt.timedelta(seconds=GRACE_SECONDS)
    assert [h.ends_at for h in holdings(world, "busy")] == [told + grace]
