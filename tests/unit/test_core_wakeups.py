"""Nobody is forgotten: whatever changes what a scheduling pass decides wants a pass.

The world runs a pass only when one is wanted: there is no periodic one that would hide a change
that wants none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from orchestrator.core.messages.events import NodeChanged, RunHeld, RunReleased
from orchestrator.core.model.states import RunState
from orchestrator.fuzz.wakeups import FORGOTTEN_SECONDS, ForgottenDecisions
from tests.gpu_cluster import cluster, gpu_spec, nodes_of, start
from tests.world import World


def test_a_victim_that_restarts_when_the_urgent_run_comes_is_preempted_once_it_has_started() -> (
    None
):
    """kubernetes-sigs/kueue#10181. Its decision ends inside a pass, after the plan was made."""
    world = cluster(2)
    start(world, "low", priority="low")
    world.die(0, run="low", last_step=12)
    world.submit(gpu_spec("high", nodes=1, priority="high"), "high")
    assert world.run("high").pending == "no_capacity"  # no victim can be asked while it restarts
    world.settle()
    assert nodes_of(world, "high")


def _release(world: World) -> None:
    world.do(world.event(RunReleased, run="low"))


def _crash(world: World) -> None:
    world.do(world.event(RunReleased, run="low"))
    world.die(0, run="low", last_step=12)


@pytest.mark.parametrize("freed", [_release, _crash])
def test_a_held_victim_is_preempted_after_the_release(freed: Callable[[World], None]) -> None:
    world = cluster(2)
    start(world, "low", priority="low")
    world.do(world.event(RunHeld, run="low", reason="look at it"))
    world.submit(gpu_spec("high", nodes=1, priority="high"), "high")
    world.settle()
    assert not nodes_of(world, "high")
    freed(world)
    world.settle()
    assert nodes_of(world, "high")


def test_a_node_that_takes_work_again_is_given_to_whoever_waits() -> None:
    world = cluster(2)
    world.do(world.event(NodeChanged, node="node-1", state="cordoned", reason="look", actor="ann"))
    world.submit(gpu_spec("both"), "both")
    world.do(world.event(NodeChanged, node="node-1", state="ready", reason="well", actor="ann"))
    assert world.run("both").state is RunState.STARTING


def test_a_pass_that_changes_nothing_wants_no_further_one() -> None:
    world = cluster(2)
    start(world, "low")
    world.submit(gpu_spec("wait"), "wait")
    assert world.state.pass_wanted is None
    passes = sum(event.kind == "scheduling_pass_due" for event, _, _ in world.journal)
    world.submit(gpu_spec("wait-too"), "wait-too")
    now = sum(event.kind == "scheduling_pass_due" for event, _, _ in world.journal)
    assert now == passes + 1


def test_the_fuzzer_finds_a_decision_that_nobody_has_wanted() -> None:
    world = cluster(2)
    world.state.put(dataclasses.replace(world.state.fleet, hold="stop"))
    world.submit(gpu_spec("late"), "late")
    forgotten = ForgottenDecisions()
    assert not list(forgotten.check(world.state, world.now, 0.0))
    world.state.put(dataclasses.replace(world.state.fleet, hold=None))  # past the turn: no pass
    assert not list(forgotten.check(world.state, world.now, 10.0))
    (sentence,) = forgotten.check(world.state, world.now, 11.0 + FORGOTTEN_SECONDS)
    assert "place late on node-0, node-1" in sentence
