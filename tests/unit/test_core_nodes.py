"""Nodes: cordoned, drained, gone and back, and the circuit breaker."""

from __future__ import annotations

import pytest

from monitors.failures import Advice, Evidence, Failure, FailureClass, Proof
from monitors.types import FindingKind
from orchestrator.core.messages.events import CapacityChanged, NodeChanged, NodeInfo, RunReleased
from orchestrator.core.model.states import NodeState, RunState
from orchestrator.errors import NotFoundError
from tests.world import World, spec


def hardware(source: Evidence, **more: object) -> Failure:
    return Failure.model_validate(
        {
            "failure_class": FailureClass.GPU_HARDWARE,
            "reason": "Xid 79",
            "signature": "xid 79",
            "source": source,
            **more,
        }
    )


def dies_of(failure: Failure, rank: int = 1) -> tuple[World, str]:
    world = World(nodes=3)
    world.submit()
    world.trained_to(5)
    bad = world.attempt().seats[rank].node
    world.die(rank=rank, failure=failure, last_step=5)
    world.settle()
    return world, bad


@pytest.mark.parametrize("source", [Evidence.KERNEL, Evidence.DRIVER, Evidence.CLUSTER])
def test_a_machines_word_cordons_the_node(source: Evidence) -> None:
    world, bad = dies_of(hardware(source))
    assert world.state.nodes[bad].state is NodeState.CORDONED
    assert f"says the {source}" in world.state.nodes[bad].reason
    assert bad not in {seat.node for seat in world.attempt().seats}


@pytest.mark.parametrize("source", [Evidence.LOG, Evidence.EXIT, Evidence.BABYSIT])
def test_the_words_of_a_process_send_only_its_own_run_elsewhere(source: Evidence) -> None:
    world, bad = dies_of(hardware(source))
    assert world.state.nodes[bad].state is NodeState.READY
    assert bad in world.run().avoid
    assert bad not in {seat.node for seat in world.attempt().seats}
    with pytest.raises(ValueError, match="proves nothing about a node"):
        Proof(source, "ECC errors: 0 uncorrectable")


def test_a_rule_for_logs_says_whether_the_node_is_avoided() -> None:
    world, bad = dies_of(hardware(Evidence.LOG, advice=Advice.RETRY))
    assert world.run().avoid == ()
    moved = {"failure_class": FailureClass.NETWORK, "advice": Advice.REPLACE_NODE}
    world, bad = dies_of(hardware(Evidence.KERNEL, **moved))
    assert bad in world.run().avoid


def test_a_drain_moves_the_run_away() -> None:
    world = World(nodes=3)
    world.submit()
    world.trained_to(5)
    node = world.attempt().seats[0].node
    world.do(
        world.event(
            NodeChanged, node=node, state="draining", reason="firmware", actor="operator:ada"
        )
    )
    world.settle()
    assert world.attempt().number == 2
    assert node not in {seat.node for seat in world.attempt().seats}
    with pytest.raises(NotFoundError, match="no such node: node-9"):
        world.do(world.event(NodeChanged, node="node-9", state="ready", reason="x"))


def test_a_cordon_outlives_the_nodes_absence() -> None:
    world = World(nodes=2)
    world.do(world.event(NodeChanged, node="node-2", state="cordoned", reason="Xid 79"))
    both = tuple(NodeInfo(id=f"node-{i}", cpus=1) for i in (1, 2))
    world.do(world.event(CapacityChanged, nodes=both[:1]))
    assert world.state.nodes["node-2"].state is NodeState.GONE
    world.do(world.event(CapacityChanged, nodes=both))
    assert world.state.nodes["node-2"].state is NodeState.CORDONED
    assert "Xid 79" in world.state.nodes["node-2"].reason
    world.do(world.event(NodeChanged, node="node-2", state="ready", reason="replaced"))
    world.do(world.event(CapacityChanged, nodes=both[:1]))
    world.do(world.event(CapacityChanged, nodes=both))
    assert world.state.nodes["node-2"].state is NodeState.READY


def test_what_others_use_of_a_node_is_kept_with_it() -> None:
    world = World(nodes=1)
    busy, free = (NodeInfo(id=name, used_by_others="3 GPUs") for name in ("node-1", "node-2"))
    world.do(world.event(CapacityChanged, nodes=(busy, free)))
    assert [world.state.nodes[n].used_by_others for n in ("node-1", "node-2")] == ["3 GPUs"] * 2
    free = free.model_copy(update={"used_by_others": ""})
    world.do(world.event(CapacityChanged, nodes=(busy, free)))
    assert world.state.nodes["node-2"].used_by_others == ""


def test_three_faulty_nodes_in_five_minutes_freeze_automation() -> None:
    world = World(nodes=6)
    world.submit(spec(nodes=2))
    world.submit(spec(name="other", nodes=1), "run-2")
    world.settle()
    seats = [*world.attempt().seats, *world.attempt("run-2").seats]
    for seat in seats:
        world.kill_agent(seat.worker)
    world.settle()
    assert "circuit breaker: 3 of 6 nodes" in str(world.state.fleet.hold)
    number = world.attempt("run-2").number
    world.do(world.event(RunReleased, run=None))
    world.settle()
    assert world.attempt("run-2").number == number + 1


def test_the_failures_of_one_run_never_freeze_the_others() -> None:
    world = World(nodes=6)
    world.submit(spec(nodes=5))
    world.settle()
    for seat in world.attempt().seats:
        world.kill_agent(seat.worker)
    world.settle()
    assert world.state.fleet.hold is None
    world.submit(spec(name="innocent", nodes=1), "run-2")
    world.settle()
    assert world.attempt("run-2").number == 1


def test_the_nodes_of_one_machine_are_one_suspect() -> None:
    """Nodes of the local cluster fail together when their machine is full: that is no network."""
    world = World(nodes=4)
    shared = tuple(NodeInfo(id=f"node-{i}", cpus=1, host="laptop") for i in range(1, 5))
    world.do(world.event(CapacityChanged, nodes=shared))
    world.submit(spec(nodes=2))
    world.submit(spec(name="other", nodes=2), "run-2")
    world.settle()
    for seat in [*world.attempt().seats, *world.attempt("run-2").seats]:
        world.kill_agent(seat.worker)
    world.settle()
    assert world.state.fleet.hold is None


def killed(name: str) -> Failure:
    return Failure(
        failure_class=FailureClass.SIGNAL, reason=f"ended by {name}", signature=f"signal:{name}"
    )


def struck(world: World) -> set[str]:
    return {node.id for node in world.state.nodes.values() for f in node.faults if not f.acquitted}


def test_a_failure_that_follows_the_run_acquits_the_nodes() -> None:
    world = World(nodes=4)
    world.submit(spec(nodes=1))
    world.trained_to(5)
    seen = set()
    for _ in range(5):
        seen.add(world.attempt().seats[0].node)
        world.die(failure=killed("SIGKILL"), last_step=5)
        world.settle()
        world.advance(61)
        world.settle()
    assert len(seen) == 2, "the first was tried again, then another one"
    assert world.run().avoid == ()
    assert struck(world) == set()
    restart = world.attempt().restart
    assert restart is not None
    assert "no node is to blame" in restart.reason


@pytest.mark.parametrize(
    "words",
    ["SIGSEGV", "Fatal Python error: Segmentation fault", "a.sh: line 3:  7 Aborted  python"],
)
def test_a_program_that_faults_on_two_machines_is_its_owners(words: str) -> None:
    """Faulthandler and shells have words of their own for the signal."""
    world = World(nodes=4)
    world.submit(spec(nodes=1))
    world.trained_to(5)
    attempts = 0
    while world.run().state is not RunState.FAILED:
        attempts += 1
        assert attempts < 6
        world.die(failure=killed("SIGSEGV").model_copy(update={"reason": words}), last_step=5)
        world.settle()
        world.advance(61)
        world.settle()
    assert attempts == 4, "here, here again, elsewhere, and once more to confirm"
    assert not any(node.faults for node in world.state.nodes.values())


def test_a_program_that_faults_after_the_same_step_is_its_owners_on_one_machine_too() -> None:
    """An outage may kill attempts before their first step; none of them ends the run."""
    world = World(nodes=1)
    world.submit(spec(nodes=1))
    world.trained_to(5)
    for last_step in (5, 0, 0, 0, 0, 0, 5, 5):
        world.die(failure=killed("SIGSEGV"), last_step=last_step)
        world.settle()
        world.advance(61)
        world.settle()
        assert world.run().state is not RunState.FAILED
    restart = world.attempt().restart
    assert restart is not None
    assert "to confirm that the code is the cause" not in restart.reason
    deaths = 2
    while world.run().state is not RunState.FAILED:
        deaths += 1
        assert deaths < 6
        world.die(failure=killed("SIGSEGV"), last_step=5)
        world.settle()
        world.advance(61)
        world.settle()
    assert deaths == 4, "three after one step, and once more to confirm"


def test_a_hang_is_held_against_no_node() -> None:
    world = World(nodes=3)
    world.submit()
    world.trained_to(5)
    world.find(FindingKind.HANG, onset=5, rank=1)
    world.settle()
    assert world.attempt().number == 2
    assert not any(node.faults for node in world.state.nodes.values())
