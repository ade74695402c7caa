"""Windows of maintenance: they find nodes cordoned, rebooting or gone, and other windows open."""

from __future__ import annotations

import datetime as dt
from typing import Literal

import pytest

from orchestrator.core.messages.events import (
    CapacityChanged,
    MaintenanceCancelled,
    MaintenanceDue,
    MaintenancePlanned,
    NodeChanged,
    NodeInfo,
    QueueChanged,
)
from orchestrator.core.model.states import NodeState
from orchestrator.core.scheduling import Quota
from orchestrator.errors import InvalidError, NotFoundError
from tests.gpu_cluster import cluster, gpu_spec, nodes_of, start
from tests.world import World


def plan_hours(world: World, begins: float, ends: float, reason: str = "switch") -> None:
    """A window of node-0, in hours from now."""
    world.do(
        world.event(
            MaintenancePlanned,
            nodes=("node-0",),
            begins=world.now + dt.timedelta(hours=begins),
            ends=world.now + dt.timedelta(hours=ends),
            reason=reason,
        )
    )


def pass_hours(world: World, hours: float) -> None:
    """Time passes, and the controller looks for windows every minute or so."""
    for _ in range(round(hours * 60)):
        world.advance(60)
        for node in world.state.due_maintenance(world.now):
            world.do(world.event(MaintenanceDue, node=node))
        assert world.state.due_maintenance(world.now) == []
        world.settle()


def there(world: World, *numbers: int) -> None:
    """The cluster's inventory."""
    infos = tuple(NodeInfo(id=f"node-{i}", gpus=8, cpus=8) for i in numbers)
    world.do(world.event(CapacityChanged, nodes=infos))


def standing(world: World) -> tuple[NodeState, str, str]:
    """State of node-0, who says so, and why."""
    node = world.state.nodes["node-0"]
    return node.state, node.by, node.reason


def test_a_node_that_reboots_in_its_window_takes_work_after_it() -> None:
    world = cluster(2)
    plan_hours(world, 1, 3)
    pass_hours(world, 1)
    there(world, 1)
    pass_hours(world, 0.5)
    there(world, 0, 1)
    assert standing(world)[:2] == (NodeState.CORDONED, "maintenance")
    pass_hours(world, 2)
    assert standing(world) == (NodeState.READY, "", "maintenance is over")


def test_a_node_that_comes_back_after_its_window_takes_work() -> None:
    world = cluster(2)
    plan_hours(world, 1, 3)
    pass_hours(world, 1)
    there(world, 1)
    pass_hours(world, 3)
    assert standing(world)[0] is NodeState.GONE
    there(world, 0, 1)
    assert standing(world)[:2] == (NodeState.READY, "")


HOUR = 3600.0


def test_a_node_back_before_anybody_saw_the_end_of_its_window_takes_work() -> None:
    world = cluster(2)
    plan_hours(world, 1, 3)
    pass_hours(world, 1)
    there(world, 1)
    world.advance(3 * HOUR)
    there(world, 0, 1)
    assert standing(world)[:2] == (NodeState.READY, "")
    assert world.state.due_maintenance(world.now) == []


@pytest.mark.parametrize("reboots", [False, True])
def test_a_cordoned_node_is_emptied_and_cordoned_as_before(reboots: bool) -> None:
    """Someone keeps new work away before the window: what runs there must move all the same."""
    world = cluster(3)
    start(world, "run-1")
    plan_hours(world, 1, 3)
    world.do(world.event(NodeChanged, node="node-0", state="cordoned", reason="fan", actor="ann"))
    pass_hours(world, 1)
    assert standing(world)[:2] == (NodeState.DRAINING, "maintenance")
    assert nodes_of(world, "run-1") == {"node-1", "node-2"}
    if reboots:
        there(world, 1, 2)
    pass_hours(world, 2)
    if reboots:
        there(world, 0, 1, 2)
    assert standing(world) == (NodeState.CORDONED, "ann", "fan")
    assert world.state.nodes["node-0"].cordon is None


def test_a_window_is_over_when_the_last_open_one_is() -> None:
    world = cluster(2)
    plan_hours(world, 1, 2, "switch")
    plan_hours(world, 1, 6, "power")
    plan_hours(world, 5, 7, "tests")
    for hours, until in ((1, "06:00 UTC: power"), (2, "06:00 UTC: power"), (3.5, "07:00 UTC")):
        pass_hours(world, hours)
        assert standing(world)[0] is NodeState.DRAINING
        assert until in standing(world)[2]
    pass_hours(world, 1)
    assert standing(world) == (NodeState.READY, "", "maintenance is over")


def test_what_a_person_does_during_a_window_stands_after_it() -> None:
    for state in ("cordoned", "draining"):
        world = cluster(2)
        plan_hours(world, 1, 3)
        pass_hours(world, 2)
        world.do(world.event(NodeChanged, node="node-0", state=state, reason="dead", actor="ann"))
        pass_hours(world, 2)
        assert standing(world) == (NodeState(state), "ann", "dead")


def test_maintenance_that_is_called_off_leaves_the_cordon() -> None:
    world = cluster(2)
    world.do(world.event(NodeChanged, node="node-0", state="cordoned", reason="fan", actor="ann"))
    plan_hours(world, 1, 3)
    pass_hours(world, 1)
    world.do(world.event(MaintenanceCancelled, nodes=("node-0",)))
    assert standing(world) == (NodeState.CORDONED, "ann", "fan")


def test_one_window_planned_twice_is_one() -> None:
    world = cluster(1)
    plan_hours(world, 1, 3)
    plan_hours(world, 1, 3, "the new switch")
    assert [w.reason for w in world.state.nodes["node-0"].maintenance] == ["the new switch"]


def test_a_cohort_has_a_name() -> None:
    """Queues without one would all be of one cohort, and lend each other."""
    world = cluster(1)
    with pytest.raises(InvalidError, match="expected the name of a cohort"):
        world.do(world.event(QueueChanged, quota=Quota(name="q", gpus=8, cohort=" ")))
    assert world.state.queues == {}


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


def test_a_run_too_long_to_end_before_a_window_starts_elsewhere() -> None:
    world = cluster(2)
    plan_maintenance(world, hours=2)
    world.submit(gpu_spec("long", nodes=1, max_runtime="5h"), "long")
    world.submit(gpu_spec("short", nodes=1, max_runtime="1h"), "short")
    assert nodes_of(world, "long") == {"node-1"}
    assert nodes_of(world, "short") == {"node-0"}


def test_maintenance_can_be_cancelled() -> None:
    world = cluster(1)
    plan_maintenance(world)
    world.do(world.event(MaintenanceCancelled, nodes=("node-0",)))
    assert world.state.nodes["node-0"].maintenance == ()
    with pytest.raises(NotFoundError, match="no such node: node-9"):
        plan_maintenance(world, node="node-9")
    with pytest.raises(InvalidError, match="expected an end after the begin"):
        plan_maintenance(world, hours=-4)


def test_uncordoning_a_node_cancels_its_maintenance() -> None:
    world = cluster(1)
    plan_maintenance(world, hours=0)
    world.do(world.event(MaintenanceDue, node="node-0"))
    assert world.state.nodes["node-0"].state is NodeState.DRAINING
    world.do(world.event(NodeChanged, node="node-0", state="ready", reason="done early"))
    assert world.state.due_maintenance(world.now) == []


def says(world: World, state: Literal["ready", "cordoned", "draining"]) -> None:
    """The cluster's own word about node-0; node-1 is ready."""
    reason = "" if state == "ready" else "NotReady: KubeletStopped"
    infos = (
        NodeInfo(id="node-0", gpus=8, cpus=8, state=state, reason=reason),
        NodeInfo(id="node-1", gpus=8, cpus=8),
    )
    world.do(world.event(CapacityChanged, nodes=infos))


@pytest.mark.parametrize("word", ["cordoned", "draining"])
@pytest.mark.parametrize("reboots", [False, True])
def test_a_node_that_the_cluster_takes_away_in_its_window_stays_away_after_it(
    word: Literal["cordoned", "draining"], *, reboots: bool
) -> None:
    """The inventory does not change when the window ends, so nobody tells the core once more."""
    world = cluster(2)
    plan_hours(world, 1, 3)
    pass_hours(world, 1)
    if reboots:
        there(world, 1)
    says(world, word)
    assert standing(world)[1] == "maintenance"
    pass_hours(world, 3)
    assert standing(world) == (NodeState.CORDONED, "cluster", "NotReady: KubeletStopped")
    says(world, "ready")
    assert standing(world)[:2] == (NodeState.READY, "")


def test_a_node_that_the_cluster_takes_back_in_its_window_takes_work_after_it() -> None:
    world = cluster(2)
    plan_hours(world, 1, 3)
    says(world, "cordoned")
    pass_hours(world, 1.5)
    says(world, "ready")
    pass_hours(world, 2)
    assert standing(world)[:2] == (NodeState.READY, "")


def test_a_node_about_to_go_that_stays_is_maintained_in_its_window() -> None:
    world = cluster(2)
    plan_hours(world, 1, 3)
    says(world, "draining")
    pass_hours(world, 1.5)
    says(world, "ready")
    pass_hours(world, 0.1)
    assert standing(world)[:2] == (NodeState.DRAINING, "maintenance")
    pass_hours(world, 2)
    assert standing(world)[:2] == (NodeState.READY, "")
