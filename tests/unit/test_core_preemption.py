"""Preemption: a run saves and leaves its nodes to another."""

from __future__ import annotations

from jobs.commands import StopAttempt
from jobs.events import WorkerJoined
from monitors.failures import Cause, Failure, FailureClass
from orchestrator.core.messages.events import NodeChanged, RunCancelled, RunHeld
from orchestrator.core.messages.instructions import (
    SendCommand,
)
from orchestrator.core.model.decisions import Vacate
from orchestrator.core.model.states import RunState, WorkerState
from orchestrator.core.placement import snapshot
<<<<<<< HEAD
from orchestrator.core.views.explain import explain
from tests.gpu_cluster import cluster, gpu_spec, holdings, nodes_of, start
from tests.matching import command, match
=======
from orchestrator.core.policy import usage_history
from orchestrator.core.policy.time_limits import GRACE_SECONDS
from orchestrator.core.scheduling import Holding
from orchestrator.core.views.remedy_text import incident_remedy
from tests.unit.test_core_scheduling import cluster, gpu_spec, nodes_of, start
from tests.world import World
>>>>>>> 27cb79a (Say in one table what is done about each finding and failure)


def test_a_lower_priority_saves_and_leaves_and_comes_back() -> None:
    """The whole life of a preemption: asked, left, the other placed, and back when that ends."""
    world = cluster(2)
    start(world, "low", priority="low")
    world.submit(gpu_spec("high", priority="high"), "high")
    stops = [i for i in world.carried if i == command(StopAttempt)]
    assert stops == [command(StopAttempt, grace_seconds=30.0)] * 2
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


def test_a_run_is_preempted_once_for_the_same_request() -> None:
    world = cluster(2)
    start(world, "low", priority="low")
    world.submit(gpu_spec("high", priority="high"), "high")
    before = len(world.carried)
    world.submit(gpu_spec("other", nodes=1, priority="low"), "other")
    assert match(SendCommand) not in world.carried[before:]
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


LINK_DOWN = Failure(
    failure_class=FailureClass.NETWORK, reason="the link is down", signature="link down"
)


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


def test_a_preempted_run_that_is_held_does_not_block_the_run_that_preempts() -> None:
    """Asked to leave, then held by an operator: it keeps its nodes, so another must leave."""
    world = cluster(4)
    start(world, "one", priority="low")
    start(world, "two", priority="low")
    world.slow = True
    world.submit(gpu_spec("high", priority="high"), "high")
    victim = next(run for run in ("one", "two") if world.run(run).decision is not None)
    world.do(world.event(RunHeld, run=victim))
    world.slow = False
    world.settle()
    world.advance(60)
    world.settle()
    assert world.run(victim).state is RunState.HELD
    assert [h.leaving for h in holdings(world, victim)] == [False]
    assert world.run("high").state is not RunState.QUEUED
    assert world.run({"one": "two", "two": "one"}[victim]).state is RunState.QUEUED


def test_a_preempted_run_that_got_its_nodes_back_is_not_leaving() -> None:
    """It left node-0 and node-1 for another, got them again, and one agent does not come up."""
    world = cluster(2)
    start(world, "low", priority="low")
    world.submit(gpu_spec("high", priority="high"), "high")
    world.settle()
    world.trained_to(3, "high")
    world.end("high")
    while not any(w.state is WorkerState.LAUNCHING for w in world.state.workers_of("low")):
        world.do(world.messages.pop(0))
    world.messages = [m for m in world.messages if not isinstance(m, WorkerJoined)]
    decision = world.run("low").decision
    assert isinstance(decision, Vacate)
    assert decision.nodes == ("node-0", "node-1")
    assert [(h.nodes, h.leaving) for h in holdings(world, "low")] == [(("node-0", "node-1"), False)]


def test_a_held_run_has_no_nodes_reserved() -> None:
    """Others left for it, but it is held: a third may use what they left."""
    world = cluster(2)
    start(world, "low", priority="low")
    world.slow = True
    world.submit(gpu_spec("high", priority="high"), "high")
    assert world.run("high").claim is not None
    world.do(world.event(RunHeld, run="high"))
    assert (world.run("high").claim, world.run("high").pending) == (None, None)
    world.slow = False
    world.settle()
    assert world.attempt("low").number == 2


def test_a_run_that_is_loading_is_not_the_cheapest_for_ever() -> None:
    """Ten minutes of coming up are work too: the run that has just saved leaves instead."""
    world = cluster(4)
    start(world, "loading", priority="low")
    world.die(0, run="loading", last_step=12)
    world.settle()
    world.advance(600)
    start(world, "training", priority="low")
    assert world.attempt("loading").first_step_at is None
    world.submit(gpu_spec("high", priority="high"), "high")
    world.settle()
    assert world.attempt("loading").number == 2
    assert world.run("training").state is RunState.QUEUED
    assert nodes_of(world, "high") == {"node-2", "node-3"}
<<<<<<< HEAD
=======


def test_the_pool_of_spares_is_sized_for_the_nodes_there_are() -> None:
    """90 of 100 nodes have left the cluster for good: ten need fewer spares."""
    world = cluster(100)
    world.do(world.event(SparesChanged, spares="auto"))
    assert snapshot.spare_pool(world.state, world.now) == 3
    left = tuple(NodeInfo(id=f"node-{i}", gpus=8, cpus=8) for i in range(10))
    world.do(world.event(CapacityChanged, nodes=left))
    assert snapshot.spare_pool(world.state, world.now) == 1


def test_use_counts_the_same_before_and_after_it_ends() -> None:
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


# the time of a run


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


# standbys


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
>>>>>>> 27cb79a (Say in one table what is done about each finding and failure)
