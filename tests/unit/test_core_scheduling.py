"""What the scheduler decides, carried through the core: who leaves, who grows, who waits."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from jobs.commands import StartAttempt, StopAttempt
from jobs.spec import Priority
from monitors.failures import Cause, Failure, FailureClass
from orchestrator.core.messages.events import (
    CapacityChanged,
    MaintenanceCancelled,
    MaintenanceDue,
    MaintenancePlanned,
    NodeChanged,
    NodeInfo,
    QueueChanged,
    RunCancelled,
    SparesChanged,
)
from orchestrator.core.messages.instructions import LaunchWorker, SendCommand
from orchestrator.core.model.states import NodeState, RunState, WorkerState
from orchestrator.core.model.vocabulary import Timer
from orchestrator.core.placement import snapshot
from orchestrator.core.policy.time_limits import GRACE_SECONDS
from orchestrator.core.scheduling import Quota
from orchestrator.core.views.dry_run import try_out
from orchestrator.core.views.explain import explain
from orchestrator.errors import InvalidError, NotFoundError
from tests.world import World, each_for_itself, spec

LINK_DOWN = Failure(
    failure_class=FailureClass.NETWORK, reason="the link is down", signature="link down"
)


def cluster(nodes: int, gpus: int = 8, **labels: Any) -> World:
    """A world of GPU nodes, labelled by functions of their number."""
    world = World(nodes=0)
    infos = tuple(
        NodeInfo(
            id=f"node-{i}",
            gpus=gpus,
            cpus=8,
            labels={level: str(of(i)) for level, of in labels.items()},
        )
        for i in range(nodes)
    )
    world.do(world.event(CapacityChanged, nodes=infos))
    return world


def gpu_spec(name: str, nodes: Any = 2, **fields: Any) -> Any:
    return spec(name, resources={"nodes": nodes, "gpus_per_node": 8}, **fields)


def start(world: World, run: str, **fields: Any) -> None:
    """Submit a run and let it train to step 12, with a checkpoint at 10."""
    world.submit(gpu_spec(run, **fields), run)
    world.settle()
    if world.state.runs[run].attempt:
        world.trained_to(12, run)


def nodes_of(world: World, run: str) -> set[str]:
    return {w.node for w in world.state.workers_of(run) if w.state is not WorkerState.ENDED}


# preemption


def test_a_lower_priority_saves_and_leaves_and_comes_back() -> None:
    """The whole life of a preemption: asked, left, the other placed, and back when that ends."""
    world = cluster(2)
    start(world, "low", priority="low")
    world.submit(gpu_spec("high", priority="high"), "high")
    stops = [
        i.command
        for i in each_for_itself(world.journal[-1][2])
        if isinstance(i, SendCommand) and isinstance(i.command, StopAttempt)
    ]
    assert [stop.grace_seconds for stop in stops] == [30.0, 30.0]
    assert "leaves its nodes for high, which has a higher priority" in world.run("low").reason
    assert world.run("high").pending == "preempting"
    assert "low saves and leaves for it." in " ".join(
        explain(world.state, "high", world.now).sentences
    )

    world.settle()
    assert world.run("high").state is RunState.STARTING
    assert nodes_of(world, "high") == {"node-0", "node-1"}
    low = world.run("low")
    assert (low.state, low.pending) == (RunState.QUEUED, "no_capacity")
    assert not low.budgets.get(Cause.INFRASTRUCTURE.value)

    world.end("high")
    world.settle()
    assert world.run("low").attempt == 2
    restart = world.attempt("low").restart
    assert restart is not None
    assert (restart.cause, restart.remedy) == (Cause.PREEMPTION, "preempted")
    assert world.attempt("low").start_step == 10


def test_nobody_else_gets_the_nodes_in_between() -> None:
    world = cluster(2)
    start(world, "low", priority="low")
    world.submit(gpu_spec("high", priority="high"), "high")
    world.submit(gpu_spec("later", nodes=1, priority="high"), "later")
    world.settle()
    assert nodes_of(world, "high") == {"node-0", "node-1"}
    assert nodes_of(world, "later") == set()


def test_it_is_asked_once() -> None:
    world = cluster(2)
    start(world, "low", priority="low")
    world.submit(gpu_spec("high", priority="high"), "high")
    before = len(world.carried)
    world.submit(gpu_spec("other", nodes=1, priority="low"), "other")
    stops = [i for i in world.carried[before:] if isinstance(i, SendCommand)]
    assert stops == []
    assert world.run("high").pending == "preempting"


def test_a_run_that_is_cancelled_while_others_leave_for_it() -> None:
    """Who was asked to leave takes its nodes again."""
    world = cluster(2)
    start(world, "low", priority="low")
    world.submit(gpu_spec("high", priority="high"), "high")
    world.do(world.event(RunCancelled, run="high"))
    world.settle()
    assert world.run("high").state is RunState.CANCELLED
    assert world.attempt("low").number == 2


def test_a_crash_loop_evicts_nobody() -> None:
    """A high priority, but it failed again and again, and lost its node: it waits its turn."""
    world = cluster(3)
    start(world, "loop", nodes=2, priority="critical")
    start(world, "calm", nodes=1, priority="low")
    for _ in range(2):
        world.die(0, LINK_DOWN, run="loop", last_step=world.attempt("loop").step)
        world.settle()
        world.advance(10)
        world.settle()
    assert snapshot.demand_of(world.state, world.run("loop"), world.now).may_preempt is False
    world.do(world.event(NodeChanged, node="node-0", state="cordoned", reason="Xid 79"))
    victim = next(w for w in world.state.workers_of("loop") if w.node == "node-0")
    world.kill_agent(victim.id)
    world.settle()
    assert world.run("calm").state is RunState.RUNNING
    assert world.run("loop").pending == "no_capacity"


# quotas


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


def test_what_is_lent_comes_back() -> None:
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


# topology


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


# standbys and spares


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
    kinds = [type(i) for i in world.carried[before:] if isinstance(i, (LaunchWorker, SendCommand))]
    first = next(
        i
        for i, each in enumerate(world.carried[before:])
        if isinstance(each, SendCommand) and isinstance(each.command, StartAttempt)
    )
    launches = [i for i, k in enumerate(world.carried[before:]) if isinstance(k, LaunchWorker)]
    assert kinds
    assert all(i > first for i in launches)
    world.advance(30)
    assert len(nodes_of(world, "run-1")) == 3  # and another standby has come


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


# elastic runs


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
    assert "leaves 2 nodes and goes on for high" in world.run("wide").reason
    world.settle()
    assert world.attempt("wide").number == 2
    assert world.attempt("wide").world_size == 1
    assert world.run("high").state is not RunState.QUEUED


# maintenance


def plan_maintenance(world: World, hours: float = 1.0, node: str = "node-0") -> None:
    begins = world.now + dt.timedelta(hours=hours)
    ends = begins + dt.timedelta(hours=2)
    world.do(
        world.event(MaintenancePlanned, nodes=(node,), begins=begins, ends=ends, reason="switch")
    )


def test_a_window_drains_its_node_and_gives_it_back() -> None:
    world = cluster(3)
    start(world, "run-1", nodes=2)
    node = world.attempt().seats[0].node
    plan_maintenance(world, node=node)
    assert world.state.due_maintenance(world.now) == []
    world.advance(3600)
    assert world.state.due_maintenance(world.now) == [node]
    world.do(world.event(MaintenanceDue, node=node))
    world.settle()
    assert world.state.nodes[node].state is NodeState.DRAINING
    assert node not in nodes_of(world, "run-1")
    assert world.attempt().number == 2
    world.advance(7200)
    world.do(world.event(MaintenanceDue, node=node))
    assert world.state.nodes[node].state is NodeState.READY
    assert world.state.due_maintenance(world.now) == []


def test_what_would_not_end_before_a_window_starts_elsewhere() -> None:
    world = cluster(2)
    plan_maintenance(world, hours=2)
    world.submit(gpu_spec("long", nodes=1, max_runtime="5h"), "long")
    world.submit(gpu_spec("short", nodes=1, max_runtime="1h"), "short")
    assert nodes_of(world, "long") == {"node-1"}
    assert nodes_of(world, "short") == {"node-0"}


def test_maintenance_can_be_called_off() -> None:
    world = cluster(1)
    plan_maintenance(world)
    world.do(world.event(MaintenanceCancelled, nodes=("node-0",)))
    assert world.state.nodes["node-0"].maintenance == ()
    with pytest.raises(NotFoundError, match="no such node: node-9"):
        plan_maintenance(world, node="node-9")
    with pytest.raises(InvalidError, match="expected an end after the begin"):
        plan_maintenance(world, hours=-4)


def test_who_takes_a_node_back_calls_its_maintenance_off() -> None:
    world = cluster(1)
    plan_maintenance(world, hours=0)
    world.do(world.event(MaintenanceDue, node="node-0"))
    assert world.state.nodes["node-0"].state is NodeState.DRAINING
    world.do(world.event(NodeChanged, node="node-0", state="ready", reason="done early"))
    assert world.state.due_maintenance(world.now) == []


# looking ahead


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


def test_use_is_booked_on_the_project() -> None:
    world = cluster(2)
    start(world, "a", project="vision", priority=Priority.NORMAL.value)
    world.advance(100)
    world.end("a")
    world.settle()
    assert world.state.fleet.usage["vision"].gpu_seconds == pytest.approx(16 * 112, rel=0.1)


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
