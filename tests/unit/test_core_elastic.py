"""Elastic runs: started with the nodes there are, grown and shrunk."""

from __future__ import annotations

from orchestrator.core.messages.events import NodeChanged
from orchestrator.core.model.states import RunState
from orchestrator.core.policy import elasticity
from tests.gpu_cluster import cluster, gpu_spec, start


def test_an_elastic_run_starts_with_what_there_is_and_grows() -> None:
    world = cluster(4)
    start(world, "other", nodes=2)
    start(world, "run-1", nodes={"min": 1, "max": 4})
    assert world.attempt("run-1").world_size == 2
    world.end("other")
    world.settle()
    assert world.attempt("run-1").number == 1  # too early for another start
    world.advance(601)
    world.settle()
    assert world.attempt("run-1").world_size == 4
    restart = world.attempt("run-1").restart
    assert restart is not None
    assert restart.reason == "grows from 2 to 4 nodes"


def test_an_elastic_run_goes_on_with_fewer() -> None:
    world = cluster(2)
    start(world, "run-1", nodes={"min": 1, "max": 2})
    world.do(world.event(NodeChanged, node="node-1", state="cordoned", reason="bad"))
    seat = next(seat for seat in world.attempt().seats if seat.node == "node-1")
    world.kill_agent(seat.worker)
    world.settle()
    assert world.attempt().number == 2
    assert world.attempt().world_size == 1


def test_an_elastic_run_shrinks_for_a_higher_priority() -> None:
    world = cluster(3)
    start(world, "wide", nodes={"min": 1, "max": 3}, priority="low")
    world.submit(gpu_spec("high", nodes=1, priority="high"), "high")
    assert "leaves one node and goes on for high" in world.run("wide").reason
    world.settle()
    assert world.attempt("wide").number == 2
    assert world.attempt("wide").world_size == 2
    assert world.run("high").state is not RunState.QUEUED


def test_an_elastic_run_stops_growing_into_what_others_keep_needing() -> None:
    """An urgent run of five minutes every half hour, for two days: it used to restart 139 times."""
    world = cluster(8)
    start(world, "wide", nodes={"min": 1, "max": 8}, priority="low")
    world.reach(50, "wide")
    for number in range(96):
        urgent = f"urgent{number}"
        world.submit(gpu_spec(urgent, nodes=1, priority="high"), urgent)
        world.settle()
        world.advance(60)
        world.settle()
        world.reach(5, urgent)
        assert world.run(urgent).state is RunState.RUNNING, number
        world.advance(300)
        world.end(urgent)
        world.settle()
        world.reach(world.run("wide").best_step + 10, "wide")
        for _ in range(24):
            world.advance(60)
            world.settle()
    assert world.attempt("wide").number <= 24
    assert world.attempt("wide").world_size >= 7


def test_a_preempted_run_trains_for_a_while_before_the_next_eviction() -> None:
    world = cluster(1)
    start(world, "low", nodes=1, priority="low")
    world.submit(gpu_spec("first", nodes=1, priority="high"), "first")
    world.settle()
    world.reach(5, "first")
    world.end("first")
    world.settle()
    world.reach(10, "low")
    world.submit(gpu_spec("second", nodes=1, priority="high"), "second")
    world.settle()
    world.advance(300)
    world.settle()
    assert world.run("low").decision is None
    assert world.run("second").state is RunState.QUEUED
    world.advance(elasticity.SAFE_SECONDS)
    world.submit(gpu_spec("third", nodes=1), "third")  # any change has the scheduler look again
    world.settle()
    assert world.run("low").state is RunState.QUEUED
    assert world.run("second").state is not RunState.QUEUED
