"""The word of a machine about itself: its incident, its drain, its return; faults of many."""

from __future__ import annotations

import pytest

from jobs.spec import Action
from monitors.failures import Failure, FailureClass
from monitors.hardware.types import REBOOT, NodeAction, NodeFinding
from monitors.types import Severity
from orchestrator.core.messages.events import (
    CapacityChanged,
    IncidentChanged,
    MaintenanceDue,
    NodeChanged,
    NodeInfo,
    RunHeld,
    RunReleased,
)
from orchestrator.core.messages.instructions import IncidentUpdate, Instruction, Notify
from orchestrator.core.messages.node_events import NodeFindingRaised
from orchestrator.core.model.entities import Incident
from orchestrator.core.model.records import HARDWARE
from orchestrator.core.model.states import IncidentState, NodeState
from orchestrator.core.model.vocabulary import NodeTrouble, Response
from tests.world import World, on_its_own, reloaded, spec

A, S, C = NodeAction, NodeState, FailureClass


def finding(
    world: World,
    node: str,
    action: NodeAction = A.DRAIN_NOW,
    how: Action = Action.ACT,
    **more: object,
) -> None:
    """The machine of a node says something."""
    fields: dict[str, object] = {
        "node": node,
        "rule": "xid-79",
        "severity": Severity.CRITICAL,
        "action": action,
        "device": "0000:1b:00",
        "reason": "the GPU has fallen off the bus: NVRM: Xid",
        "time": world.now.timestamp(),
        "evidence": ("NVRM: Xid",),
    }
    said = NodeFinding.model_validate({**fields, **more})
    world.do(world.event(NodeFindingRaised, finding=said, action=how, ask_seconds=600))


def training(nodes: int = 2, of: int = 4) -> tuple[World, str]:
    """A run that trains, and one of its nodes."""
    world = World(nodes=of)
    world.submit(spec(nodes=nodes))
    world.trained_to(5)
    return world, world.attempt().seats[0].node


def about_nodes(world: World) -> list[Incident]:
    found = [each for each in world.state.incidents.values() if not each.run]
    return [each for each in found if each.state is not IncidentState.RESOLVED]


def all_told(world: World) -> list[Instruction]:
    return [each for _, _, instructions in world.journal for each in instructions]


def of_runs(world: World) -> list[Incident]:
    """Incidents of runs, as people saw them last."""
    seen = [i for i in all_told(world) if isinstance(i, IncidentUpdate) and i.run]
    return list({update.incident.id: update.incident for update in seen}.values())


def notices(world: World, kind: str = "node_fault") -> list[Notify]:
    return [i for i in all_told(world) if isinstance(i, Notify) and i.incident_kind == kind]


def test_a_machines_word_drains_its_node_and_its_run_goes_elsewhere() -> None:
    world, bad = training()
    finding(world, bad, A.REBOOT)
    world.settle()
    node = world.state.nodes[bad]
    assert (node.state, node.by) == (S.DRAINING, HARDWARE)
    assert bad not in {seat.node for seat in world.attempt().seats}
    assert world.run().budgets == {}, "nothing failed"
    (incident,) = about_nodes(world)
    assert (incident.kind, incident.subject) == (NodeTrouble.NODE_FAULT, bad)
    assert incident.state is IncidentState.MITIGATING
    (notice,) = notices(world)
    assert f"reboot {bad}" in notice.text
    assert notice.dedup_key == f"node/{bad}/node_fault"
    updates = [i for i in all_told(world) if isinstance(i, IncidentUpdate) and not i.run]
    assert {(u.node, u.dedup_key) for u in updates} == {(bad, notice.dedup_key)}


@pytest.mark.parametrize(
    ("action", "state", "moves"),
    [
        (A.RECORD, S.READY, False),
        (A.PAGE, S.READY, False),
        (A.DRAIN_AFTER_JOB, S.CORDONED, False),
        (A.DRAIN_NOW, S.DRAINING, True),
        (A.RESET, S.DRAINING, True),
        (A.NEVER_USE, S.DRAINING, True),
    ],
)
def test_each_action_does_what_it_says(action: A, state: S, *, moves: bool) -> None:
    world, bad = training()
    finding(world, bad, action)
    world.settle()
    assert world.state.nodes[bad].state is state
    assert (bad not in {seat.node for seat in world.attempt().seats}) is moves
    assert len(about_nodes(world)) == (action is not A.RECORD)
    assert world.state.nodes[bad].health.sightings[-1].rule == "xid-79"


def test_what_is_said_again_is_one_incident_and_one_notice() -> None:
    world, bad = training()
    for _ in range(3):
        finding(world, bad, A.DRAIN_AFTER_JOB)
    assert len(about_nodes(world)) == len(notices(world)) == 1
    finding(world, bad, A.RESET, rule="xid-48")
    (incident,) = about_nodes(world)
    assert incident.remedy == "drain the node, then reset the device"
    assert set(incident.evidence["live"]) == {"xid-79 0000:1b:00", "xid-48 0000:1b:00"}
    assert world.state.nodes[bad].state is S.DRAINING
    assert len(notices(world)) == 2
    assert reloaded(world.state).incidents.keys() >= {incident.id}


def test_a_node_comes_back_when_all_that_was_found_is_over() -> None:
    world, bad = training()
    finding(world, bad, A.DRAIN_NOW, rule="port-drop", device="mlx5_0/1")
    finding(world, bad, A.DRAIN_NOW, rule="port-drop", device="mlx5_1/1")
    finding(world, bad, A.RECORD, rule="port-drop", device="mlx5_0/1", over=True)
    assert world.state.nodes[bad].state is S.DRAINING
    finding(world, bad, A.RECORD, rule="port-drop", device="mlx5_1/1", over=True)
    assert world.state.nodes[bad].state is S.READY
    assert about_nodes(world) == []
    finding(world, bad, A.RECORD, rule="port-drop", device="mlx5_1/1", over=True)


def test_a_reboot_cures_what_wanted_one_and_nothing_else() -> None:
    world, bad = training()
    finding(world, bad, A.REBOOT)
    finding(world, bad, A.RECORD, rule=REBOOT, device="", boot="b")
    assert world.state.nodes[bad].state is S.READY
    finding(world, bad, A.DRAIN_NOW, rule="read-only", device="sda1")
    finding(world, bad, A.RECORD, rule=REBOOT, device="", boot="c")
    assert world.state.nodes[bad].state is S.DRAINING


def test_the_third_time_within_a_month_is_for_good_and_an_operator_takes_back() -> None:
    world = World(nodes=4)
    for boot in "abc":
        finding(world, "node-1", A.REBOOT)
        finding(world, "node-1", A.RECORD, rule=REBOOT, device="", boot=boot)
        world.advance(86400)
    node = world.state.nodes["node-1"]
    assert node.health.never_use
    assert node.state is S.DRAINING
    assert "have node-1 repaired" in notices(world)[-1].text
    world.do(world.event(NodeChanged, node="node-1", state="ready", reason="new", actor="ann"))
    node = world.state.nodes["node-1"]
    assert (node.state, node.health.never_use, node.health.taken) == (S.READY, False, ())
    assert about_nodes(world) == []


def test_a_sign_of_programs_needs_two_runs_on_the_device() -> None:
    world = World(nodes=4)
    world.submit(spec(nodes=1))
    world.settle()
    bad = world.attempt().seats[0].node
    app = {"rule": "xid-13", "runs": 2, "failure_class": C.CUDA_USER_BUG}
    for _ in range(3):  # the same run, again and again
        finding(world, bad, A.DRAIN_AFTER_JOB, **app)
        world.advance(3600)
    assert world.state.nodes[bad].state is S.READY
    assert about_nodes(world) == []
    world.end()
    world.settle()
    others = {node for node in world.state.nodes if node != bad}
    for node in others:
        world.do(world.event(NodeChanged, node=node, state="cordoned", reason="x", actor="ann"))
    world.submit(spec(name="second", nodes=1), "run-2")
    world.settle()
    assert world.attempt("run-2").seats[0].node == bad
    finding(world, bad, A.DRAIN_AFTER_JOB, device="0000:44:00", **app)
    assert world.state.nodes[bad].state is S.READY, "another GPU"
    finding(world, bad, A.DRAIN_AFTER_JOB, **app)
    assert world.state.nodes[bad].state is S.CORDONED


def test_a_bug_that_shows_on_many_gpus_is_no_nodes_fault() -> None:
    world = World(nodes=4)
    app = {"rule": "xid-31", "runs": 2, "failure_class": C.CUDA_USER_BUG}
    for number, name in enumerate(("buggy", "buggy-again"), 1):
        world.submit(on_its_own(spec(name=name, nodes=3), f"run-{number}"), f"run-{number}")
        world.settle()
        for seat in world.attempt(f"run-{number}").seats:
            finding(world, seat.node, A.DRAIN_AFTER_JOB, **app)
        world.end(f"run-{number}")
        world.settle()
        world.advance(3600)
    for seat in ("node-1", "node-2", "node-3"):
        finding(world, seat, A.DRAIN_AFTER_JOB, **app)
    assert {node.state for node in world.state.nodes.values()} == {S.READY}


def racks(world: World, count: int, size: int) -> None:
    nodes = tuple(
        NodeInfo(id=f"node-{i + 1}", cpus=1, labels={"rack": f"r{i // size}"}) for i in range(count)
    )
    world.do(world.event(CapacityChanged, nodes=nodes))


def test_two_nodes_of_a_rack_are_one_incident_with_a_cause() -> None:
    world = World(nodes=40)
    racks(world, 40, 4)
    network = {"rule": "port-drop", "failure_class": C.NETWORK}
    finding(world, "node-5", **network)
    finding(world, "node-6", **network)
    finding(world, "node-7", **network)
    drained = [node.id for node in world.state.nodes.values() if node.state is not S.READY]
    assert drained == ["node-5"]
    rack = next(i for i in about_nodes(world) if i.kind == NodeTrouble.CORRELATED_FAULTS)
    assert rack.subject == "rack r1"
    assert rack.evidence["nodes"] == ["node-5", "node-6", "node-7"]
    assert len(notices(world, "correlated_faults")) == 1
    assert world.state.fleet.hold is None
    world.advance(7200)
    finding(world, "node-30", A.RECORD)
    assert rack.id not in {i.id for i in about_nodes(world)}


def test_many_nodes_everywhere_trip_the_breaker_and_drain_nothing_more() -> None:
    world = World(nodes=10)
    for i in range(1, 7):
        finding(world, f"node-{i}", A.REBOOT)
    drained = [node.id for node in world.state.nodes.values() if node.state is not S.READY]
    assert drained == ["node-1", "node-2"]
    assert "circuit breaker: 3 machines told of faults" in str(world.state.fleet.hold)
    world.do(world.event(RunReleased, run=None, actor="ann"))
    assert world.state.fleet.hold is None


def test_the_storage_that_many_nodes_miss_freezes_nothing() -> None:
    world = World(nodes=6)
    for i in range(1, 6):
        said = {"rule": "remote-storage", "failure_class": C.STORAGE}
        finding(world, f"node-{i}", A.RECORD, severity=Severity.WARNING, **said)
    (incident,) = about_nodes(world)
    assert incident.kind == NodeTrouble.CORRELATED_FAULTS
    assert world.state.fleet.hold is None


def test_observe_and_shadow_do_nothing_and_say_so() -> None:
    world, bad = training()
    finding(world, bad, shadow=True)
    assert about_nodes(world) == []
    assert any("in shadow: drain the node" in i.reason for i in all_told(world))
    finding(world, bad, how=Action.OBSERVE)
    (incident,) = about_nodes(world)
    assert incident.response is Response.OBSERVED
    assert world.state.nodes[bad].state is S.READY
    assert "only observed" in notices(world)[0].text


@pytest.mark.parametrize("acknowledged", [True, False])
def test_an_ask_that_nobody_answers_starts_by_itself(*, acknowledged: bool) -> None:
    world, bad = training()
    finding(world, bad, how=Action.ASK)
    (incident,) = about_nodes(world)
    assert incident.response is Response.ASKED
    assert incident.remedy_at is not None
    assert world.state.nodes[bad].state is S.READY
    if acknowledged:
        told = {"incident": incident.id, "acknowledge": True}
        world.do(world.event(IncidentChanged, actor="ann", **told))
    assert world.state.due_maintenance(world.now) == []
    world.advance(601)
    assert world.state.due_maintenance(world.now) == [bad]
    world.do(world.event(MaintenanceDue, node=bad))
    assert world.state.nodes[bad].state is (S.READY if acknowledged else S.DRAINING)
    assert world.state.due_maintenance(world.now) == []


def test_a_hold_keeps_the_node_until_its_release() -> None:
    world, bad = training()
    world.do(world.event(RunHeld, run=None, reason="look", actor="ann"))
    finding(world, bad)
    (incident,) = about_nodes(world)
    assert incident.response is Response.HELD
    assert world.state.nodes[bad].state is S.READY
    world.do(world.event(RunReleased, run=None, actor="ann"))
    world.settle()
    assert world.state.nodes[bad].state is S.DRAINING
    assert bad not in {seat.node for seat in world.attempt().seats}


def test_an_operators_cordon_holds_again_after_the_machine_is_well() -> None:
    world = World(nodes=3)
    kept = {"node": "node-1", "state": "cordoned", "reason": "fan", "actor": "ann"}
    world.do(world.event(NodeChanged, **kept))
    finding(world, "node-1", rule="port-drop")
    finding(world, "node-1", A.RECORD, rule="port-drop", over=True)
    node = world.state.nodes["node-1"]
    assert (node.state, node.reason, node.by) == (S.CORDONED, "fan", "ann")


def test_a_quiet_incident_is_over_and_so_is_that_of_a_node_that_left() -> None:
    world = World(nodes=3)
    finding(world, "node-1", A.PAGE, rule="gpu-hot")
    finding(world, "node-2", A.DRAIN_NOW)
    world.advance(86401)
    left = tuple(NodeInfo(id=f"node-{i}", cpus=1) for i in (1, 3))
    world.do(world.event(CapacityChanged, nodes=left))
    assert about_nodes(world) == []


LOST = Failure(failure_class=C.COLLECTIVE_TIMEOUT, reason="all_reduce timed out", signature="t")


def test_a_failure_after_the_machines_word_has_that_as_its_cause() -> None:
    world, bad = training()
    finding(world, bad, A.RECORD, severity=Severity.WARNING)
    world.die(rank=1, failure=LOST, last_step=5)
    world.settle()
    (incident,) = of_runs(world)
    assert incident.kind == C.GPU_HARDWARE
    assert "fallen off the bus" in incident.reason
    assert "all_reduce timed out" in incident.reason
    assert bad in world.run().avoid
    assert world.state.nodes[bad].state is S.READY, "its row asks for a record only"


def test_a_word_that_comes_after_the_failure_is_added_to_it() -> None:
    world, bad = training()
    world.die(rank=0, failure=LOST, last_step=5)
    finding(world, bad, A.RECORD, severity=Severity.WARNING)
    world.settle()
    (incident,) = of_runs(world)
    assert incident.kind == C.GPU_HARDWARE, "it came before the attempt was dead, and judged"
    world.trained_to(9)
    world.die(rank=0, failure=LOST, last_step=9)
    world.settle()
    finding(world, world.attempt().seats[0].node, A.RECORD, rule="xid-48")
    assert "fallen off" in of_runs(world)[-1].reason


@pytest.mark.parametrize(
    "of",
    [
        {"severity": Severity.INFO},
        {"failure_class": C.HOST_OOM},
        {"failure_class": C.UNKNOWN},
        {"action": A.PAGE},
    ],
)
def test_what_ends_no_run_explains_none(of: dict[str, object]) -> None:
    world, bad = training()
    finding(world, bad, **{"action": A.RECORD, **of})
    world.die(rank=1, failure=LOST, last_step=5)
    world.settle()
    (incident,) = of_runs(world)
    assert incident.kind == C.COLLECTIVE_TIMEOUT


def test_words_about_a_node_that_is_not_there_change_nothing() -> None:
    world = World(nodes=1)
    finding(world, "node-9")
    assert about_nodes(world) == []
    assert world.state.nodes.keys() == {"node-1"}
