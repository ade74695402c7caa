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
from orchestrator.core.views.explain import explain
from tests.gpu_cluster import cluster, gpu_spec, holdings, nodes_of, start
from tests.matching import command, match


def test_a_lower_priority_saves_and_leaves_and_comes_back() -> None:
    """The whole life of a preemption: asked, left, the other placed, and back when that ends."""
    world = cluster(2)
    start(world, "low", priority="low")
    world.submit(gpu_spec("high", priority="high"), "high")
    stops = [i for i in world.carried if i == command(StopAttempt)]
    assert stops == [command(StopAttempt, grace_seconds=30.0)] * 2
    assert "leaves its nodes for high, which has a higher priority" in world.run("low").reason
    assert world.run("high").pending == "preempting"
    assert "low saves and leaves its nodes to it." in " ".join(
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


def test_a_run_that_recovers_keeps_its_share_of_the_quota_meanwhile() -> None:
    """A peer's agents are out of contact and are stopped; one of their nodes it will want again."""
    world = cluster(3)
    start(world, "back", nodes={"min": 2, "max": 3})
    first, second = (w for w in world.state.workers_of("back") if w.node != "node-0")
    for worker in (first, second):
        world.lose_contact(worker.id, "back")
    world.die(run="back")
    assert [(len(h.nodes), h.leaving, h.missing) for h in holdings(world, "back")] == [
        (2, True, -1),
        (1, False, 1),
    ]
