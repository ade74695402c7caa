"""Standbys of a run, and the idle nodes that are kept for recoveries."""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import Any

import pytest

from jobs.commands import StartAttempt
from jobs.events import WorkerJoined
from monitors.failures import FailureClass
from orchestrator.core.messages.events import (
    CapacityChanged,
    NodeChanged,
    NodeInfo,
    RunHeld,
    RunReleased,
    SparesChanged,
)
from orchestrator.core.messages.instructions import (
    LaunchWorker,
)
from orchestrator.core.model.machine_record import Fault
from orchestrator.core.model.states import IncidentState, RunState, WorkerState
from orchestrator.core.model.vocabulary import Timer
from orchestrator.core.placement import snapshot
from orchestrator.core.policy.spare_pool import sized
from orchestrator.core.views.remedy_text import incident_remedy
from tests.gpu_cluster import cluster, gpu_spec, holdings, nodes_of, start
from tests.matching import command, match
from tests.world import World


def test_a_standby_takes_over_at_once() -> None:
    """No launch between the death of a node and the next attempt."""
    world = cluster(4)
    start(world, "run-1", placement={"standbys": 1})
    assert len(nodes_of(world, "run-1")) == 3
    assert len(world.attempt().seats) == 2
    lost = world.attempt().seats[0]
    before = len(world.carried)
    world.kill_agent(lost.worker)
    world.settle()
    assert world.attempt().number == 2
    orders = world.carried[before:]
    first = orders.index(command(StartAttempt, attempt=2))
    assert match(LaunchWorker) not in orders[:first]
    world.advance(30)
    assert len(nodes_of(world, "run-1")) == 3  # and another standby has come


def with_standby(nodes: int, **fields: Any) -> tuple[World, str]:
    """A run of two nodes that trains, and the node of its standby."""
    world = cluster(nodes)
    start(world, "run-1", placement={"standbys": 1}, **fields)
    (standby,) = nodes_of(world, "run-1") - {seat.node for seat in world.attempt().seats}
    return world, standby


def test_a_standby_leaves_for_others_without_a_restart() -> None:
    world, standby = with_standby(3, priority="low")
    world.submit(gpu_spec("high", nodes=1, priority="high"), "high")
    world.settle()
    assert nodes_of(world, "high") == {standby}
    assert (world.attempt().number, world.run().state) == (1, RunState.RUNNING)


def test_a_drain_takes_a_standby_without_a_restart() -> None:
    """And another one comes up elsewhere."""
    world, standby = with_standby(4)
    world.do(world.event(NodeChanged, node=standby, state="draining", reason="dust"))
    world.settle()
    assert (world.attempt().number, world.run().state) == (1, RunState.RUNNING)
    assert nodes_of(world, "run-1") == {"node-0", "node-1", "node-3"}


def test_a_hold_keeps_a_standby_on_a_drained_node() -> None:
    world, standby = with_standby(4)
    world.do(world.event(RunHeld, run="run-1"))
    world.do(world.event(NodeChanged, node=standby, state="draining", reason="dust"))
    world.settle()
    assert standby in nodes_of(world, "run-1")
    world.do(world.event(RunReleased, run="run-1"))
    world.settle()
    assert standby not in nodes_of(world, "run-1")
    assert world.attempt().number == 1


def test_standbys_shrink_before_seats() -> None:
    """The standby that was launched first has a seat by now, and the newest agent has none."""
    world = cluster(5)
    start(world, "run-1", nodes={"min": 1, "max": 2}, placement={"standbys": 1})
    world.kill_agent(world.attempt().seats[0].worker)
    world.settle()
    world.advance(40)
    world.settle()
    seats = [seat.node for seat in world.attempt().seats]
    (standby,) = nodes_of(world, "run-1") - set(seats)
    assert [h.surplus for h in holdings(world, "run-1")] == [(standby, seats[1])]


@pytest.mark.parametrize("joins", [True, False])
def test_standbys_that_do_not_last_do_not_end_a_run(joins: bool) -> None:
    """Ten in a row die while waiting, or never come up; the run trains all the time."""
    world, _ = with_standby(100)  # so many that the breaker stays calm
    pauses = []
    for _ in range(10):
        seats = {seat.worker for seat in world.attempt().seats}
        (standby,) = [
            w
            for w in world.state.workers_of("run-1")
            if w.id not in seats and w.state in {WorkerState.READY, WorkerState.LAUNCHING}
        ]
        world.kill_agent(standby.id)
        died = world.now
        world.settle()
        assert standby.node in world.run().avoid
        while world.run().due(Timer.STANDBY):
            world.advance(10)
        pauses.append((world.now - died).total_seconds())
        if not joins:
            world.messages = [m for m in world.messages if not isinstance(m, WorkerJoined)]
        world.settle()
    assert pauses == [30, 60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]
    assert (world.attempt().number, world.run().state) == (1, RunState.RUNNING)
    assert world.run().budgets == {}
    assert world.run().best_step == 12
    (incident, *_) = [i for i in world.state.incidents.values() if i.run == "run-1"]
    assert incident_remedy(incident) == "another agent in 30 s"
    assert incident.state is IncidentState.RESOLVED


def test_a_standby_that_lasted_is_replaced_soon() -> None:
    """It died after a day: the pause is short again."""
    world, _ = with_standby(8)
    for expected, lasted in ((30, 0), (60, 0), (30, 86400)):
        world.advance(lasted)
        seats = {seat.worker for seat in world.attempt().seats}
        (lost,) = [
            w
            for w in world.state.workers_of("run-1")
            if w.id not in seats and w.state is WorkerState.READY
        ]
        world.kill_agent(lost.id)
        world.settle()
        due = world.run().timers[Timer.STANDBY][""]
        assert due == world.now + dt.timedelta(seconds=expected)
        world.advance(expected)
        world.settle()


def test_the_pool_of_spares_is_for_recoveries() -> None:
    world = cluster(4)
    world.do(world.event(SparesChanged, spares=1))
    start(world, "run-1", nodes=3)
    world.submit(gpu_spec("new", nodes=1), "new")
    assert world.run("new").pending == "spares"
    world.kill_agent(world.attempt().seats[0].worker)
    world.settle()
    assert world.attempt().number == 2
    assert "node-3" in nodes_of(world, "run-1")


def test_the_size_of_the_pool_follows_the_failures() -> None:
    """P99 of a binomial: with the published rate 2 nodes of 100, more as nodes fail."""
    world = cluster(100)
    world.do(world.event(SparesChanged, spares="auto"))
    few = snapshot.spare_pool(world.state, world.now)
    assert few == 3
    start(world, "run-1", nodes=2)
    for _ in range(20):
        world.now += dt.timedelta(minutes=10)
        world.kill_agent(world.attempt().seats[0].worker)
        world.settle()
        world.trained_to(world.attempt().start_step + 1)
    assert snapshot.spare_pool(world.state, world.now) > few


def test_a_lemon_counts_for_the_pool_at_its_own_rate_and_is_named() -> None:
    world = cluster(100)
    world.advance(30 * 86400.0)
    usual = sized(world.state.nodes.values(), world.now)
    assert usual.why == (
        "0 failures in 3000 node-days, and the published rate while these are few, make 1.6 per"
        " 1,000 node-days for 100 nodes; a repair takes 24 h, in 99 of 100 of which at most"
        f" {usual.nodes} nodes fail"
    )
    node = world.state.nodes["node-7"]
    faults = [
        Fault(
            at=world.now - dt.timedelta(days=day),
            run="",
            failure_class=FailureClass.GPU_HARDWARE,
        )
        for day in range(20, 0, -1)
    ]
    world.state.put(dataclasses.replace(node, faults=tuple(faults)))
    pool = sized(world.state.nodes.values(), world.now)
    assert "0 failures in 2970 node-days" in pool.why, "the others are as good as before"
    assert "for 99 nodes; lemons at their own rate: node-7 (0.67 a day)" in pool.why
    for name in ("node-1", "node-2", "node-3", "node-4"):
        other = world.state.nodes[name]
        world.state.put(dataclasses.replace(other, faults=tuple(faults)))
    assert sized(world.state.nodes.values(), world.now).nodes > usual.nodes
    acquitted = tuple(dataclasses.replace(fault, acquitted=True) for fault in faults)
    for name in ("node-1", "node-2", "node-3", "node-4", "node-7"):
        other = world.state.nodes[name]
        world.state.put(dataclasses.replace(other, faults=acquitted))
    assert sized(world.state.nodes.values(), world.now) == usual


def test_the_pool_of_spares_is_sized_for_the_nodes_there_are() -> None:
    """90 of 100 nodes have left the cluster for good: ten need fewer spares."""
    world = cluster(100)
    world.do(world.event(SparesChanged, spares="auto"))
    assert snapshot.spare_pool(world.state, world.now) == 3
    left = tuple(NodeInfo(id=f"node-{i}", gpus=8, cpus=8) for i in range(10))
    world.do(world.event(CapacityChanged, nodes=left))
    assert snapshot.spare_pool(world.state, world.now) == 1
