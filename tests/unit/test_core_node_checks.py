"""Checks of nodes: what follows from their results."""

from __future__ import annotations

import dataclasses
import datetime as dt

import pytest

from jobs.checks.results import CheckResult, Verdict
from orchestrator.core.messages.check_events import CheckAsked, CheckEnded, NodeChecked
from orchestrator.core.messages.events import (
    CapacityChanged,
    LeadershipBegan,
    NodeChanged,
    NodeInfo,
    RunHeld,
)
from orchestrator.core.messages.instructions import CheckNode, LaunchWorker, Notify, StopCheck
from orchestrator.core.model.checking import PREFLIGHT, CheckPolicy
from orchestrator.core.model.entities import Node
from orchestrator.core.model.records import FLAPPING
from orchestrator.core.model.states import NodeState, RunState
from orchestrator.core.requests import node_checks
from orchestrator.errors import ConflictError, NotFoundError
from tests.world import World, reloaded, spec
from tests.world_cluster import well

POLICY = CheckPolicy(action="act", idle_seconds=3600.0, preflight_seconds=3600.0)
WRONG = CheckResult(
    check="matmul", figure=30.0, unit="MOP/s", verdict=Verdict.FAILED, reason="a wrong product"
)


def rate(figure: float, check: str = "memory") -> CheckResult:
    return CheckResult(check=check, figure=figure, unit="GB/s", device="CPU")


def world(nodes: int = 4, policy: CheckPolicy = POLICY) -> World:
    made = World(nodes=nodes)
    made.do(made.event(LeadershipBegan, checks=policy))
    return made


def ask(made: World, node: str, actor: str = "operator:ada", **fields: object) -> None:
    made.do(made.event(CheckAsked, node=node, actor=actor, **fields))
    made.settle()


def scheduled(made: World) -> list[str]:
    """Let the schedule check what is due; the nodes that it chose."""
    chosen = node_checks.due(made.state, made.now)
    for node in chosen:
        ask(made, node, node_checks.SCHEDULE)
    return chosen


def only(bad: str, *results: CheckResult) -> World:
    made = world()
    made.measured = lambda node: results if node == bad else (rate(10.0),)
    return made


def node(made: World, name: str) -> Node:
    return made.state.nodes[name]


def notices(made: World) -> list[str]:
    return [each.text for each in made.carried if isinstance(each, Notify)]


def test_a_node_that_computes_wrong_is_cordoned_with_the_figure_and_the_gang_goes_elsewhere() -> (
    None
):
    made = only("node-1", WRONG)
    ask(made, "node-1")
    assert node(made, "node-1").state is NodeState.CORDONED
    assert node(made, "node-1").by == PREFLIGHT
    assert node(made, "node-1").reason == "failed a check: matmul: a wrong product"
    assert node(made, "node-1").measured.under_way is None
    assert notices(made) == ["node-1 is cordoned, since it failed a check: matmul: a wrong product"]
    made.submit(spec(nodes=3))
    made.settle()
    assert "node-1" not in {seat.node for seat in made.attempt().seats}


def incidents(made: World) -> list[tuple[str, str, str]]:
    """Kind, subject and state of each incident about nodes."""
    found = made.state.incidents.values()
    return [(each.kind.value, each.subject, each.state.value) for each in found]


@pytest.mark.parametrize("how", ["passes", "uncordoned"])
def test_a_failed_check_is_an_incident_about_the_node_until_it_takes_work_again(how: str) -> None:
    made = only("node-1", WRONG)
    ask(made, "node-1")
    ask(made, "node-1")
    assert incidents(made) == [("check_failed", "node-1", "open")]
    assert len(notices(made)) == 1, "people hear of it once"
    if how == "passes":
        made.measured = lambda _: (rate(30.0, "matmul"),)
        ask(made, "node-1")
    else:
        back = {"node": "node-1", "state": "ready", "reason": "new DIMM"}
        made.do(made.event(NodeChanged, **back, actor="operator:ada"))
    assert incidents(made) == [("check_failed", "node-1", "resolved")]


def test_under_a_hold_over_everything_no_node_is_cordoned() -> None:
    made = only("node-1", WRONG)
    made.do(made.event(RunHeld, run=None, actor="operator:ada"))
    ask(made, "node-1")
    assert node(made, "node-1").state is NodeState.READY


def test_results_survive_the_controller() -> None:
    made = only("node-1", WRONG)
    ask(made, "node-1")
    made.state = reloaded(made.state)
    assert node(made, "node-1").measured.results[0].result == WRONG
    assert made.state.fleet.checks == POLICY


@pytest.mark.parametrize("action", ["shadow", "off"])
def test_in_shadow_and_off_nothing_is_cordoned(action: str) -> None:
    made = only("node-1", WRONG)
    made.do(made.event(LeadershipBegan, checks=dataclasses.replace(POLICY, action=action)))
    ask(made, "node-1")
    assert node(made, "node-1").state is NodeState.READY
    assert node(made, "node-1").measured.results[0].result == WRONG
    assert notices(made) == (
        ["node-1 failed a check and would be cordoned: matmul: a wrong product"]
        if action == "shadow"
        else []
    )


def test_many_that_fail_at_once_are_not_to_blame_and_those_before_are_taken_back() -> None:
    made = world(nodes=12)
    made.measured = lambda _: (WRONG,)
    for name in ("node-1", "node-2"):
        ask(made, name)
    assert node(made, "node-1").state is NodeState.CORDONED
    ask(made, "node-3")
    assert {each.state for each in made.state.nodes.values()} == {NodeState.READY}
    assert "checks failed on 3 nodes within 5 minutes" in notices(made)[-1]
    made.advance(600)
    ask(made, "node-4")
    assert node(made, "node-4").state is NodeState.CORDONED


def test_a_slow_node_fails_only_against_enough_like_nodes_and_only_twice_in_a_row() -> None:
    made = world(nodes=10)
    made.measured = lambda name: (rate(2.0 if name == "node-10" else 10.0),)
    for number in range(1, 8):
        ask(made, f"node-{number}")
    ask(made, "node-10")
    assert node(made, "node-10").state is NodeState.READY, "seven others are too few"
    ask(made, "node-8")
    ask(made, "node-10")
    assert node(made, "node-10").state is NodeState.CORDONED
    assert "2 GB/s; the limit by 8 like nodes is 8 GB/s" in node(made, "node-10").reason
    checks = [each for each in made.carried if isinstance(each, CheckNode)]
    assert [each.node for each in checks[-2:]] == ["node-10", "node-10"]


def test_a_slow_figure_that_does_not_come_again_cordons_nothing() -> None:
    made = world(nodes=10)
    figures = iter([2.0, 10.0])
    made.measured = lambda name: (rate(next(figures) if name == "node-10" else 10.0),)
    for number in range(1, 11):
        ask(made, f"node-{number}")
    assert node(made, "node-10").state is NodeState.READY
    assert node(made, "node-10").measured.results[0].result.figure == 10.0


def test_nodes_of_another_kind_are_not_compared() -> None:
    made = world(nodes=10)
    small = [NodeInfo(id=f"node-{number}", cpus=1) for number in range(1, 10)]
    made.do(made.event(CapacityChanged, nodes=(*small, NodeInfo(id="node-10", cpus=64))))
    made.measured = lambda name: (rate(2.0 if name == "node-10" else 10.0),)
    for number in range(1, 11):
        ask(made, f"node-{number}")
    assert node(made, "node-10").state is NodeState.READY


def test_a_repaired_node_is_checked_by_schedule_and_taken_back_but_not_for_ever() -> None:
    made = world()
    broken = True
    made.measured = lambda name: (
        (WRONG,) if broken and name == "node-1" else (rate(10.0, "matmul"),)
    )
    for _ in range(3):
        broken = True
        made.advance(3600)
        ask(made, "node-1")
        assert node(made, "node-1").by == PREFLIGHT
        broken = False
        made.advance(node_checks.AGAIN_SECONDS)
        while scheduled(made):
            pass
        assert node(made, "node-1").state is NodeState.READY
        assert node(made, "node-1").reason == "taken back: its checks passed"
    broken = True
    ask(made, "node-1")
    broken = False
    ask(made, "node-1")
    assert node(made, "node-1").state is NodeState.CORDONED
    assert node(made, "node-1").by == FLAPPING


def test_idle_nodes_are_checked_a_few_at_a_time_and_busy_ones_not_at_all() -> None:
    made = world(nodes=4)
    made.submit(spec(nodes=2))
    made.settle()
    assert scheduled(made) == ["node-3"]
    assert scheduled(made) == ["node-4"]
    assert scheduled(made) == []
    made.advance(3601)
    assert scheduled(made) == ["node-3"]


def test_a_check_gives_way_to_a_run_at_once_and_its_late_results_count_for_nothing() -> None:
    made = world(nodes=1)
    asked = made.event(CheckAsked, node="node-1", actor=node_checks.SCHEDULE)
    made.do(asked)
    worker = node(made, "node-1").measured.under_way
    assert worker is not None
    made.submit(spec(nodes=1))
    order = [each for each in made.carried if isinstance(each, StopCheck | LaunchWorker)]
    assert [type(each) for each in order] == [StopCheck, LaunchWorker]
    late = {"node": "node-1", "worker": worker.worker, "results": (WRONG,)}
    made.do(made.event(NodeChecked, **late))
    assert node(made, "node-1").state is NodeState.READY
    assert made.run().state is not RunState.QUEUED


def test_a_worker_checks_its_node_before_it_joins_and_a_recovery_does_not_wait_for_it() -> None:
    made = only("node-1", WRONG)
    made.submit(spec(nodes=2))
    made.settle()
    launched = [each for each in made.carried if isinstance(each, LaunchWorker)]
    assert all(each.checks for each in launched)
    assert {seat.node for seat in made.attempt().seats} == {"node-2", "node-3"}
    assert node(made, "node-1").state is NodeState.CORDONED
    made.trained_to(15)
    made.advance(7200)
    made.measured = well
    made.kill_agent(made.attempt().seats[0].worker)
    made.settle()
    assert made.run().attempt == 2
    again = [each for each in made.carried if isinstance(each, LaunchWorker)][len(launched) :]
    assert [each.checks for each in again] == [()]


def test_a_node_that_passed_lately_is_not_checked_again_before_a_worker_joins() -> None:
    made = world(nodes=1)
    ask(made, "node-1")
    made.submit(spec(nodes=1))
    (launched,) = [each for each in made.carried if isinstance(each, LaunchWorker)]
    assert launched.checks == ()


def test_a_node_that_the_cluster_gives_back_must_pass_first() -> None:
    made = only("node-1", WRONG)
    away = NodeInfo(id="node-1", cpus=1, state="cordoned", reason="GpuUnhealthy")
    others = [NodeInfo(id=f"node-{number}", cpus=1) for number in (2, 3, 4)]
    back = away.model_copy(update={"state": "ready", "reason": ""})
    made.do(made.event(CapacityChanged, nodes=(away, *others)))
    made.do(made.event(CapacityChanged, nodes=(back, *others)))
    assert node(made, "node-1").reason == "no more GpuUnhealthy; it is checked first"
    made.settle()
    assert node(made, "node-1").reason == "failed a check: matmul: a wrong product"
    made.measured = lambda _: (rate(30.0, "matmul"),)
    made.do(made.event(CapacityChanged, nodes=(away, *others)))
    made.advance(node_checks.AGAIN_SECONDS)
    ask(made, "node-1")
    assert node(made, "node-1").state is NodeState.CORDONED, "the cluster keeps it away"
    made.do(made.event(CapacityChanged, nodes=(back, *others)))
    made.settle()
    assert node(made, "node-1").state is NodeState.READY


def test_a_node_that_cannot_be_checked_is_taken_back_after_three_tries() -> None:
    made = world()
    made.measured = lambda _: ()
    away = NodeInfo(id="node-1", cpus=1, state="cordoned", reason="NotReady")
    others = [NodeInfo(id=f"node-{number}", cpus=1) for number in (2, 3, 4)]
    made.do(made.event(CapacityChanged, nodes=(away, *others)))
    back = away.model_copy(update={"state": "ready", "reason": ""})
    made.do(made.event(CapacityChanged, nodes=(back, *others)))
    for _ in range(3):
        under_way = node(made, "node-1").measured.under_way
        assert under_way is not None
        assert node(made, "node-1").state is NodeState.CORDONED
        made.do(made.event(CheckEnded, worker=under_way.worker, reason="no image"))
        made.advance(1)
    assert node(made, "node-1").state is NodeState.READY
    assert node(made, "node-1").reason == "taken back: it could not be checked (no image)"
    assert node(made, "node-1").measured.unchecked == "no image"


def test_a_check_without_an_answer_is_overdue() -> None:
    made = world()
    made.do(made.event(CheckAsked, node="node-1"))
    assert node_checks.overdue(made.state, made.now) == []
    late = made.now + dt.timedelta(seconds=node_checks.CHECK_SECONDS + 1)
    under_way = node(made, "node-1").measured.under_way
    assert under_way is not None
    assert node_checks.overdue(made.state, late) == [under_way.worker]


def test_a_person_hears_why_a_node_is_not_checked() -> None:
    made = world(nodes=2)
    made.submit(spec(nodes=2))
    made.settle()
    with pytest.raises(ConflictError, match="node-1 is used by tiny, which a check would disturb"):
        made.do(made.event(CheckAsked, node="node-1", actor="operator:ada"))
    with pytest.raises(NotFoundError):
        made.do(made.event(CheckAsked, node="node-9", actor="operator:ada"))
