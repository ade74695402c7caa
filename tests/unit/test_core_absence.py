"""Minutes are not never: nodes that are away for a while, runs that hang, and what is promised."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from orchestrator.core.messages.events import CapacityChanged, NodeChanged, NodeInfo
from orchestrator.core.model.away import AWAY_SECONDS
from orchestrator.core.model.states import NodeState, RunState
from orchestrator.core.placement.snapshot import OVERDUE_SECONDS
from tests.gpu_cluster import cluster, gpu_spec, nodes_of, start
from tests.world import World


def _infos(count: int) -> tuple[NodeInfo, ...]:
    return tuple(NodeInfo(id=f"node-{i}", gpus=8, cpus=8) for i in range(count))


def _drained(world: World) -> None:
    world.do(world.event(NodeChanged, node="node-3", state="draining", reason="bios", actor="ann"))


def _cordoned(world: World) -> None:
    world.do(world.event(NodeChanged, node="node-3", state="cordoned", reason="look", actor="ann"))


def _rebooting(world: World) -> None:
    world.do(world.event(CapacityChanged, nodes=_infos(3)))


def _back(world: World) -> None:
    world.do(world.event(CapacityChanged, nodes=_infos(4)))
    if world.state.nodes["node-3"].state is not NodeState.READY:
        world.do(world.event(NodeChanged, node="node-3", state="ready", reason="done", actor="ann"))


@pytest.mark.parametrize("leaves", [_drained, _cordoned, _rebooting])
def test_a_node_away_for_minutes_costs_nobody_its_reservation(
    leaves: Callable[[World], None],
) -> None:
    """flux-framework/flux-sched#670."""
    world = cluster(4)
    start(world, "busy", nodes=1)
    world.submit(gpu_spec("gang", nodes=4), "gang")
    for i in range(3):
        world.submit(gpu_spec(f"small-{i}", nodes=1), f"small-{i}")
    leaves(world)
    world.advance(300)
    assert not nodes_of(world, "small-0")
    _back(world)
    world.settle()
    world.end("busy")
    world.settle()
    assert len(nodes_of(world, "gang")) == 4


@pytest.mark.parametrize("leaves", [_drained, _rebooting])
def test_a_gang_keeps_its_nodes_while_one_of_them_reboots(leaves: Callable[[World], None]) -> None:
    """A notebook may not take nodes of a gang of the whole cluster while one of them reboots."""
    world = cluster(4)
    start(world, "gang", nodes=4)
    leaves(world)
    for worker in world.state.workers_on("node-3") if leaves is _rebooting else ():
        world.kill_agent(worker.id, "its node reboots")
    world.settle()
    world.submit(gpu_spec("notebook", nodes=1), "notebook")
    world.settle()
    world.advance(300)
    assert len(nodes_of(world, "gang")) == 3
    assert not nodes_of(world, "notebook")
    _back(world)
    world.settle()
    world.advance(60)
    world.settle()
    assert world.run("gang").state in {RunState.RUNNING, RunState.RECOVERING}
    assert len(nodes_of(world, "gang")) == 4


def test_after_an_hour_a_node_that_is_away_counts_as_lost() -> None:
    world = cluster(4)
    start(world, "busy", nodes=1)
    world.submit(gpu_spec("gang", nodes=4), "gang")
    world.submit(gpu_spec("small", nodes=1), "small")
    _drained(world)
    world.settle()
    world.advance(AWAY_SECONDS - 60)
    assert world.run("gang").pending == "no_capacity"
    world.advance(120)  # a timer of its own looks again: nothing else happens here
    assert world.run("gang").pending == "too_large"
    assert nodes_of(world, "small")


def test_a_gang_is_submitted_while_one_of_its_nodes_reboots() -> None:
    world = cluster(4)
    _rebooting(world)
    world.submit(gpu_spec("gang", nodes=4), "gang")
    assert world.run("gang").pending == "no_capacity"


class Hung(World):
    """The agents of one run cannot be ended: their host hangs."""

    victim = "low"

    def kill_agent(self, worker: str, reason: str = "killed by SIGKILL") -> None:
        if not worker.startswith(f"{self.victim}-"):
            super().kill_agent(worker, reason)


def _hung(nodes: int) -> Hung:
    world = Hung(nodes=0)
    world.do(world.event(CapacityChanged, nodes=_infos(nodes)))
    return world


def test_another_node_is_taken_when_a_victim_hangs() -> None:
    """kubernetes/kubernetes#95752."""
    world = _hung(2)
    start(world, "low", nodes=1, priority="low")
    start(world, "other", nodes=1, priority="critical")
    world.submit(gpu_spec("high", nodes=1, priority="high"), "high")
    world.settle()
    world.advance(40)
    world.end("other")
    world.settle()
    assert nodes_of(world, "high") == {"node-1"}


def test_another_victim_is_chosen_when_the_first_hangs() -> None:
    world = _hung(2)
    start(world, "low", nodes=1, priority="low")
    start(world, "second", nodes=1, priority="normal")
    world.submit(gpu_spec("high", nodes=1, priority="high"), "high")
    world.settle()
    assert not nodes_of(world, "high")
    world.advance(OVERDUE_SECONDS + 60)
    world.settle()
    assert nodes_of(world, "high") == {"node-1"}


def test_a_recovery_holds_idle_nodes_for_an_hour_against_its_own_priority() -> None:
    """volcano-sh/volcano#748."""
    world = cluster(4)
    start(world, "gang", nodes=4)
    _drained(world)
    world.settle()
    world.submit(gpu_spec("peer", nodes=2), "peer")
    world.advance(3000)
    world.settle()
    assert not nodes_of(world, "peer")
    world.advance(1000)
    world.settle()
    assert len(nodes_of(world, "peer")) == 2


def test_a_recovery_gives_idle_nodes_to_a_higher_priority_at_once() -> None:
    world = cluster(4)
    start(world, "gang", nodes=4, priority="low")
    _drained(world)
    world.settle()
    world.submit(gpu_spec("urgent", nodes=2), "urgent")
    world.settle()
    assert len(nodes_of(world, "urgent")) == 2
