"""What the cluster says of workers that are not gone yet, and of its nodes."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable

import pytest

from orchestrator.core.attempts.lifecycle import FENCE_SECONDS
from orchestrator.core.messages.cluster_events import LaunchRefused, WorkerLeaving, WorkerStuck
from orchestrator.core.messages.events import (
    CapacityChanged,
    NodeChanged,
    NodeInfo,
    RunHeld,
    WorkerLost,
)
from orchestrator.core.messages.instructions import Instruction, ProbeWorker, StopWorker
from orchestrator.core.model.states import AttemptState, NodeState, RunState, WorkerState
from orchestrator.core.supervision.agent_contact import CONTACT_SECONDS
from orchestrator.core.supervision.cluster_notices import STUCK_SECONDS
from tests.world import World, spec

NOTICE = "taint karpenter.sh/disrupted:NoSchedule"


def inventory(world: World, *changed: NodeInfo) -> None:
    """The cluster's inventory, with these nodes changed."""
    of = {
        node.id: NodeInfo(id=node.id, gpus=node.gpus, cpus=node.cpus, memory=node.memory)
        for node in world.state.nodes.values()
    }
    of |= {info.id: info.model_copy(update={"cpus": of[info.id].cpus}) for info in changed}
    world.do(world.event(CapacityChanged, nodes=tuple(of.values())))


def training(nodes: int = 3) -> World:
    world = World(nodes=nodes)
    world.submit()
    world.trained_to(15)
    return world


def leave(world: World, worker: str) -> None:
    world.do(world.event(WorkerLeaving, run="run-1", worker=worker, reason="EvictionByEvictionAPI"))


def test_a_run_whose_worker_is_evicted_saves_and_goes_on_at_no_cost() -> None:
    world = training()
    seat = world.attempt().seats[1]
    leave(world, seat.worker)
    assert world.attempt().state is AttemptState.STOPPING
    assert world.told("stop_attempt")[-1].command.grace_seconds > 0
    world.settle()
    assert world.run().attempt == 2
    assert seat.worker not in {each.worker for each in world.attempt().seats}
    assert not world.run().budgets
    assert not world.state.nodes[seat.node].faults
    assert world.run().avoid == ()


def about_to_go(world: World, worker: str) -> None:
    node = world.state.workers[worker].node
    inventory(world, NodeInfo(id=node, state="draining", reason=NOTICE))


def switched_off(world: World, worker: str) -> None:
    drain = {"node": world.state.workers[worker].node, "state": "draining", "reason": "new fan"}
    world.do(world.event(NodeChanged, **drain, actor="ada"))


@pytest.mark.parametrize("notice", [leave, about_to_go, switched_off])
def test_a_worker_that_had_to_leave_and_dies_before_it_has_saved_is_no_failure_of_its_node(
    notice: Callable[[World, str], None],
) -> None:
    """Else a provider that takes a tenth of the nodes back would trip the breaker."""
    world = training()
    seat = world.attempt().seats[1]
    notice(world, seat.worker)
    lost = {"run": "run-1", "worker": seat.worker, "confirmed": True, "reason": "SIGKILL"}
    world.do(world.event(WorkerLost, **lost))
    world.settle()
    assert world.run().attempt == 2
    assert not world.state.nodes[seat.node].faults
    assert not world.run().budgets


def test_a_standby_that_is_evicted_ends_and_the_run_trains_on() -> None:
    world = World(nodes=4)
    world.submit(spec(placement={"standbys": 1}))
    world.trained_to(15)
    seated = {seat.worker for seat in world.attempt().seats}
    standby = next(w for w in world.state.workers.values() if w.id not in seated)
    leave(world, standby.id)
    assert world.attempt().state is AttemptState.RUNNING
    assert world.state.workers[standby.id].state is WorkerState.STOPPING


def test_a_worker_that_does_not_start_is_seen_with_the_clusters_words_and_tried_elsewhere() -> None:
    world = World(nodes=3)
    world.submit()
    worker = next(iter(world.state.workers.values()))
    words = "unschedulable: 0/3 nodes are available: insufficient nvidia.com/gpu"
    stuck = {"run": "run-1", "worker": worker.id, "reason": words, "elsewhere": True}
    world.do(world.event(WorkerStuck, **stuck))
    assert words in world.run().reason
    world.advance(STUCK_SECONDS - 1)
    assert world.state.workers[worker.id].state is WorkerState.LAUNCHING
    world.advance(1)
    assert worker.node in world.run().avoid
    assert words in world.state.workers[worker.id].reason


def test_a_hold_keeps_its_reason_while_a_worker_does_not_start() -> None:
    world = World(nodes=3)
    world.submit()
    worker = next(iter(world.state.workers.values()))
    world.do(world.event(RunHeld, run="run-1", reason="a look", actor="operator:ada"))
    reason = world.run().reason
    for words in ("ImagePullBackOff: no such host", ""):
        world.do(world.event(WorkerStuck, run="run-1", worker=worker.id, reason=words))
        assert (world.run().state, world.run().reason) == (RunState.HELD, reason)


def test_an_image_that_does_not_exist_fails_the_run_at_once() -> None:
    world = World(nodes=2)
    world.submit()
    worker = next(iter(world.state.workers))
    words = "ErrImagePull: manifest unknown"
    world.do(world.event(LaunchRefused, run="run-1", worker=worker, reason=words))
    assert world.run().state is RunState.FAILED
    assert words in world.run().reason


def test_a_node_about_to_go_is_drained_and_its_run_moves_with_a_save() -> None:
    world = training()
    seat = world.attempt().seats[0]
    inventory(world, NodeInfo(id=seat.node, state="draining", reason=NOTICE))
    assert world.state.nodes[seat.node].state is NodeState.DRAINING
    assert world.attempt().state is AttemptState.STOPPING
    world.settle()
    assert seat.node not in {each.node for each in world.attempt().seats}
    assert not world.run().budgets


def test_a_node_that_is_not_ready_takes_no_work_keeps_its_run_and_comes_back_by_itself() -> None:
    world = training()
    node = world.attempt().seats[0].node
    inventory(world, NodeInfo(id=node, state="cordoned", reason="NotReady: KubeletStopped"))
    assert world.state.nodes[node].state is NodeState.CORDONED
    assert world.attempt().state is AttemptState.RUNNING
    inventory(world)
    assert world.state.nodes[node].state is NodeState.READY


def test_the_cluster_takes_back_only_what_it_said_itself() -> None:
    world = training()
    by_hand = {"node": "node-3", "state": "cordoned", "reason": "fan"}
    world.do(world.event(NodeChanged, **by_hand, actor="ada"))
    inventory(world, NodeInfo(id="node-3", state="cordoned", reason="NotReady: x"))
    inventory(world)
    found = world.state.nodes["node-3"]
    assert (found.state, found.by, found.reason) == (NodeState.CORDONED, "ada", "fan")
    inventory(world, NodeInfo(id="node-3", state="draining", reason=NOTICE))
    assert world.state.nodes["node-3"].state is NodeState.DRAINING
    inventory(world)
    found = world.state.nodes["node-3"]
    assert (found.state, found.by, found.reason) == (NodeState.CORDONED, "ada", "fan")


@pytest.mark.parametrize("by_all", [False, True])
def test_a_node_that_flaps_stays_away_until_a_person_says_so(by_all: bool) -> None:
    """Unless all nodes went together: then it was the cluster, and no node is to blame."""
    world = World(nodes=8)
    world.do(world.event(CapacityChanged, nodes=tuple(NodeInfo(id=f"node-{i}") for i in range(8))))
    names = [f"node-{i}" for i in range(8)] if by_all else ["node-1"]
    for _ in range(4):
        away = [NodeInfo(id=name, state="cordoned", reason="NotReady: x") for name in names]
        inventory(world, *away)
        inventory(world)
        world.now += dt.timedelta(minutes=10)
    node = world.state.nodes["node-1"]
    assert node.state is (NodeState.READY if by_all else NodeState.CORDONED)
    if not by_all:
        assert "flapping" in node.reason
        ready = {"node": "node-1", "state": "ready", "reason": "new cable"}
        world.do(world.event(NodeChanged, **ready, actor="ada"))
        assert world.state.nodes["node-1"].absences == ()


def test_nodes_that_go_one_after_the_other_within_a_minute_are_not_to_blame() -> None:
    """As the cluster tells it when all of them are cut off: it misses one heartbeat at a time."""
    world = World(nodes=0)
    names = [f"node-{i}" for i in range(3)]
    world.do(world.event(CapacityChanged, nodes=tuple(NodeInfo(id=name) for name in names)))
    for _ in range(5):
        away: list[NodeInfo] = []
        for name in names:
            away.append(NodeInfo(id=name, state="cordoned", reason="NotReady: x"))
            inventory(world, *away)
            world.now += dt.timedelta(seconds=15)
        inventory(world)
        world.now += dt.timedelta(minutes=10)
    assert {node.state for node in world.state.nodes.values()} == {NodeState.READY}


# --- a node that is lost, and of which the cluster cannot tell ------------------------------------


class Unreachable(World):
    """The cluster takes every order for the first node of the gang, and never says that one is
    done: its Node is NotReady, and stays. Of its agents it cannot tell (`alive` is None).
    """

    def cut_off(self) -> str:
        """The first node of the gang; its agent is not heard of any more."""
        seat = self.attempt().seats[0]
        self.agents[seat.worker].alive = False
        self.silent = seat.node
        self.lose_contact(seat.worker)
        reason = "NotReady: its kubelet has not reported"
        inventory(self, NodeInfo(id=seat.node, state="cordoned", reason=reason))
        return seat.node

    silent = ""

    def carry_out(self, instruction: Instruction) -> None:
        asked = isinstance(instruction, StopWorker | ProbeWorker)
        if not (asked and getattr(instruction, "node", "") == self.silent):
            super().carry_out(instruction)


def goes_on_elsewhere(world: World, lost: str) -> None:
    world.settle()
    assert world.state.attempts["run-1"].number == 2
    assert lost not in {seat.node for seat in world.attempt().seats}
    world.reach(20)
    assert world.run().state is RunState.RUNNING


@pytest.mark.parametrize("asked_to_leave", [False, True])
def test_a_lost_node_that_nobody_confirms_is_fenced_after_the_stated_time(
    *, asked_to_leave: bool
) -> None:
    """120 s after the others fail; where Kubernetes deletes its Pod first, after the grace too."""
    world = Unreachable(nodes=3)
    world.submit()
    world.trained_to(15)
    lost, worker = world.attempt().seats[0].node, world.attempt().seats[0].worker
    assert world.cut_off() == lost
    if asked_to_leave:
        leave(world, worker)
    else:
        world.die(rank=1)
    world.settle()
    wait = FENCE_SECONDS + (world.run().spec.grace if asked_to_leave else 0)
    world.advance(wait - 1)
    world.settle()
    assert world.attempt().state is AttemptState.STOPPING
    world.advance(1)
    goes_on_elsewhere(world, lost)


def test_a_lost_node_whose_loss_no_rank_notices_is_given_up_and_then_fenced() -> None:
    """The ranks may train on out of sight, so that this takes ten minutes longer."""
    world = Unreachable(nodes=3)
    world.submit()
    world.trained_to(15)
    lost = world.cut_off()
    world.advance(CONTACT_SECONDS - 1)
    assert world.attempt().state is AttemptState.RUNNING
    world.advance(1)
    world.settle()
    assert world.attempt().state is AttemptState.STOPPING
    world.advance(FENCE_SECONDS)
    goes_on_elsewhere(world, lost)
