"""Runs in the queue: refused, waiting, started in order, cancelled."""

from __future__ import annotations

import pytest

from jobs.commands import StopAttempt
from orchestrator.core.messages.events import (
    CapacityChanged,
    NodeChanged,
    NodeInfo,
    RunCancelled,
    RunSubmitted,
)
from orchestrator.core.messages.instructions import (
    BroadcastCommand,
)
from orchestrator.core.model.away import AWAY_SECONDS
from orchestrator.core.model.states import RunState
from orchestrator.core.policy.time_limits import GRACE_SECONDS
from orchestrator.core.views.explain import explain
from orchestrator.errors import ConflictError, InvalidError
from tests.matching import match
from tests.world import World, spec, trained


def test_more_than_the_cluster_has_is_refused_with_what_it_has() -> None:
    world = World(nodes=2)
    with pytest.raises(InvalidError, match="cluster has 2 nodes"):
        world.submit(spec(nodes=3))
    assert world.state.runs == {}


def test_a_run_may_not_save_where_a_live_one_does() -> None:
    world = World()
    world.submit()
    shared = world.run().spec
    with pytest.raises(ConflictError, match=r"checkpoints of tiny \(run-1\), which is .*cancel it"):
        world.do(world.event(RunSubmitted, run="run-2", spec=shared))
    assert "run-2" not in world.state.runs
    world.trained_to(30)
    world.end()
    world.settle()
    world.do(world.event(RunSubmitted, run="run-2", spec=shared))
    assert world.run("run-2").spec.checkpoint.directory == shared.checkpoint.directory


def test_the_second_run_waits_says_for_what_and_starts_when_the_first_ends() -> None:
    world = World(nodes=2)
    world.submit(spec("first"), "run-1")
    world.trained_to(5)
    world.submit(spec("second"), "run-2")
    world.submit(spec("third", nodes=1), "run-3")
    why = explain(world.state, "run-2", world.now)
    assert (why.underlying, why.place, why.ahead) == ("no_capacity", 1, [])
    assert "first" in why.unblock
    assert explain(world.state, "run-3", world.now).ahead == ["second"]
    world.end("run-1")
    world.settle()
    assert world.attempt("run-2").number == 1
    assert "run-3" not in world.state.attempts


def test_memory_that_is_used_up_is_not_taken_for_memory_without_limit() -> None:
    world = World(nodes=0)
    node = NodeInfo(id="node-1", cpus=8, memory=2**30)
    world.do(world.event(CapacityChanged, nodes=(node,)))
    need = {"nodes": 1, "cpus_per_node": 1, "memory_per_node": "1Gi"}
    for run in ("run-1", "run-2"):
        world.submit(spec(run, resources=need), run)
    assert world.run("run-2").pending == "no_capacity"


def test_a_run_that_no_longer_fits_the_cluster_does_not_block_the_queue() -> None:
    world = World(nodes=2)
    world.do(world.event(NodeChanged, node="node-2", state="cordoned", reason="Xid 79"))
    world.submit(spec("large", nodes=2), "run-1")
    assert world.run("run-1").pending == "no_capacity"  # the node may be back in minutes
    world.advance(AWAY_SECONDS + 1)
    world.submit(spec("small", nodes=1), "run-2")
    assert world.run("run-1").pending == "too_large"
    assert "uncordoned" in explain(world.state, "run-1", world.now).unblock
    assert world.run("run-2").state is RunState.STARTING
    world.submit(spec("next", nodes=1), "run-3")
    assert explain(world.state, "run-3", world.now).ahead == []
    world.do(world.event(NodeChanged, node="node-2", state="ready", reason="replaced"))
    assert world.run("run-1").pending == "no_capacity"
    assert world.run("run-3").state is RunState.STARTING  # by its claim, which puts nobody off


def test_a_cancelled_run_saves_and_ends() -> None:
    world = trained(5)
    stops = world.do(world.event(RunCancelled, run="run-1", actor="operator:ada"))
    broadcast = match(BroadcastCommand, command=match(StopAttempt, grace_seconds=GRACE_SECONDS))
    assert broadcast in stops
    world.settle()
    assert world.run().state is RunState.CANCELLED
    with pytest.raises(ConflictError, match="it was cancelled by operator:ada"):
        world.do(world.event(RunCancelled, run="run-1", actor="operator:ada"))
