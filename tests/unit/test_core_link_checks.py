"""Links between nodes: who is paired with whom, and who is to blame."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import pytest

from jobs.checks.measurement import LATENCY, RATE
from jobs.checks.results import LINK, CheckResult, Verdict
from orchestrator.core.messages.check_events import (
    CheckAsked,
    CheckEnded,
    LinkListening,
    NodeChecked,
)
from orchestrator.core.messages.events import (
    CapacityChanged,
    LeadershipBegan,
    NodeChanged,
    NodeInfo,
)
from orchestrator.core.messages.instructions import CheckNode, Instruction, Notify, StopCheck
from orchestrator.core.model.checking import PREFLIGHT, CheckPolicy
from orchestrator.core.model.entities import Node
from orchestrator.core.model.states import NodeState
from orchestrator.core.placement import link_pairs, link_verdicts
from orchestrator.core.requests import node_checks
from orchestrator.errors import ConflictError, InvalidError
from tests.world import World, reloaded, spec

POLICY = CheckPolicy(action="act", idle_seconds=24 * 3600.0)
Pair = frozenset[str]
SERVED = (CheckResult(check=LINK),)
NOBODY = (CheckResult(check=LINK, verdict=Verdict.SKIPPED, reason="no partner came within 300 s"),)


def figures(rate: float = 10.0, latency: float = 50.0) -> tuple[CheckResult, ...]:
    return (
        CheckResult(check=RATE, figure=rate, unit="Gbit/s", device="TCP"),
        CheckResult(check=LATENCY, figure=latency, unit="us", device="TCP"),
    )


def broken(why: str = "no connection within 30 s: timed out") -> tuple[CheckResult, ...]:
    return (CheckResult(check=RATE, verdict=Verdict.FAILED, reason=why),)


@dataclass
class LinkWorld(World):
    """A cluster whose agents listen, connect, and measure the links that a test gives it."""

    link: Callable[[Pair], tuple[CheckResult, ...]] = lambda _: figures()
    pairs: list[Pair] = field(default_factory=list)
    """Every link that was measured, in order."""

    def carry_out(self, instruction: Instruction) -> None:
        if not isinstance(instruction, CheckNode) or instruction.checks != (LINK,):
            super().carry_out(instruction)
            return
        who = {"node": instruction.node, "worker": instruction.worker}
        if not instruction.peer:
            where = {"address": instruction.node, "port": 20001}
            self.messages.append(self.event(LinkListening, **who, **where))
            return
        pair = frozenset({instruction.node, instruction.peer.removesuffix(":20001")})
        self.pairs.append(pair)
        self.messages.append(self.event(NodeChecked, **who, results=self.link(pair)))


def world(nodes: int, bad: Iterable[str] = (), policy: CheckPolicy = POLICY) -> LinkWorld:
    """A cluster in which each link of a bad node is broken."""
    guilty = set(bad)
    made = LinkWorld(nodes=nodes, link=lambda pair: broken() if pair & guilty else figures())
    made.do(made.event(LeadershipBegan, checks=policy))
    return made


def look(made: LinkWorld, most: int = 200) -> None:
    """Let the schedule measure links until none is due."""
    for _ in range(most):
        chosen = link_pairs.due(made.state, made.now)
        if not chosen:
            return
        for name in chosen:
            ask(made, name, node_checks.SCHEDULE)
        made.advance(5)
    raise AssertionError(f"the schedule never ends: {made.pairs[-6:]}")


def ask(made: LinkWorld, name: str, actor: str = "operator:ada") -> None:
    made.do(made.event(CheckAsked, node=name, checks=(LINK,), actor=actor))
    made.settle()


def node(made: LinkWorld, name: str) -> Node:
    return made.state.nodes[name]


def cordoned(made: LinkWorld) -> set[str]:
    return {each.id for each in made.state.nodes.values() if each.state is NodeState.CORDONED}


def row(made: LinkWorld, name: str, check: str = RATE) -> CheckResult:
    return {each.result.check: each.result for each in node(made, name).measured.results}[check]


def notices(made: LinkWorld) -> list[str]:
    return [each.text for each in made.carried if isinstance(each, Notify)]


def names(count: int) -> list[str]:
    return [f"node-{number}" for number in range(1, count + 1)]


# --- somebody is to blame -----------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 4, 5, 9])
def test_one_bad_node_is_cordoned_wherever_it_is_and_nobody_else(count: int) -> None:
    for bad in names(count):
        made = world(count, [bad])
        look(made)
        assert cordoned(made) == {bad}
        assert node(made, bad).by == PREFLIGHT
        assert node(made, bad).reason.startswith("failed a check: link: with node-")
        assert row(made, bad).verdict is Verdict.FAILED
        partners = {next(iter(pair - {bad})) for pair in made.pairs if bad in pair}
        assert len(partners) >= 2, "one partner proves nothing"


def test_each_two_bad_nodes_of_six_are_cordoned() -> None:
    for bad in itertools.combinations(names(6), 2):
        made = world(6, bad)
        look(made)
        assert cordoned(made) == set(bad)


def test_the_second_round_takes_partners_that_are_good() -> None:
    made = world(4, ["node-1"])
    made.link = lambda pair: broken() if "node-1" in pair else figures()
    ask(made, "node-3", node_checks.SCHEDULE)  # with node-1, which was never measured
    ask(made, "node-2", node_checks.SCHEDULE)
    first = [set(pair) for pair in made.pairs]
    assert first == [{"node-3", "node-1"}, {"node-2", "node-4"}]
    look(made)
    second = made.pairs[2]
    assert second & {"node-1", "node-3"}, "a node in doubt comes first"
    assert second & {"node-2", "node-4"}, "with a node that is good"
    assert cordoned(made) == {"node-1"}


def slow(rate: float, latency: float = 50.0) -> LinkWorld:
    made = world(12)
    of = {"node-12": (rate, latency)}
    made.link = lambda pair: figures(*next((of[name] for name in pair if name in of), (10.0, 50.0)))
    return made


def test_a_slow_link_is_judged_by_the_links_of_like_nodes_and_the_figure_is_said() -> None:
    made = slow(rate=2.0)
    look(made)  # the first figures have no limit
    made.advance(24 * 3600)
    look(made)
    assert cordoned(made) == {"node-12"}
    assert "2 Gbit/s; the limit by 10 like nodes is 8 Gbit/s" in node(made, "node-12").reason
    assert row(made, "node-12").limit == pytest.approx(8.0)
    assert "node-12 is cordoned, since it failed a check: link: with node-" in notices(made)[-1]


def test_a_slow_round_trip_counts_as_well() -> None:
    made = slow(rate=10.0, latency=200_000.0)
    look(made)
    made.advance(24 * 3600)
    look(made)
    assert cordoned(made) == {"node-12"}
    assert "a round trip of 2e+05 us; the limit by" in node(made, "node-12").reason


def test_the_gang_goes_elsewhere() -> None:
    made = world(4, ["node-2"])
    look(made)
    made.submit(spec(nodes=3))
    made.settle()
    assert {seat.node for seat in made.attempt().seats} == {"node-1", "node-3", "node-4"}


# --- nobody is to blame -------------------------------------------------------------------------


def test_two_nodes_blame_nobody_and_say_what_is_missing() -> None:
    made = world(2, ["node-1"])
    look(made)
    assert cordoned(made) == set()
    assert made.pairs == [{"node-1", "node-2"}]
    assert row(made, "node-1").verdict is Verdict.SKIPPED
    assert row(made, "node-1").reason.endswith(
        "node-1, node-2 or the way between; a third idle node decides"
    )


@pytest.mark.parametrize("count", [3, 4, 8])
def test_where_no_link_is_good_nobody_is_to_blame_and_the_tries_end(count: int) -> None:
    made = world(count, names(count))
    look(made)
    assert cordoned(made) == set()
    assert len(made.pairs) <= link_pairs.MOST_PARTNERS * count


def test_one_bad_cable_between_two_good_nodes_cordons_neither() -> None:
    made = world(4)
    made.link = lambda pair: broken() if pair == {"node-1", "node-2"} else figures()
    look(made)
    assert cordoned(made) == set()


def test_healthy_noise_cordons_nobody() -> None:
    made = world(24)
    noise = itertools.cycle([10.0, 9.4, 10.3, 9.8, 9.1, 10.1, 9.6])
    made.link = lambda _: figures(next(noise), 40.0 + next(noise))
    for _ in range(5):
        look(made)
        made.advance(24 * 3600)
    assert len(made.pairs) >= 60
    assert cordoned(made) == set()
    assert all(not trial.bad for each in made.state.nodes.values() for trial in each.measured.links)


def test_a_slow_measurement_that_does_not_come_again_cordons_nobody() -> None:
    made = slow(rate=10.0)
    look(made)
    made.advance(24 * 3600)
    rates = iter([2.0])
    made.link = lambda _: figures(next(rates, 10.0))
    look(made)
    assert cordoned(made) == set()


def test_nodes_of_another_kind_are_not_compared() -> None:
    made = world(10)
    small = [NodeInfo(id=name, cpus=1) for name in names(9)]
    made.do(made.event(CapacityChanged, nodes=(*small, NodeInfo(id="node-10", cpus=64))))
    made.link = lambda pair: figures(1.0 if "node-10" in pair else 10.0)
    for _ in range(2):
        look(made)
        made.advance(24 * 3600)
    assert cordoned(made) == set()


def test_partners_that_die_during_their_measurements_prove_nothing() -> None:
    made = world(6)
    look(made)
    infos = [NodeInfo(id=name, cpus=1) for name in names(6)]
    made.link = lambda _: broken("the exchange stalled")
    for _ in range(2):  # the report comes before the cluster says that the machine is away
        ask(made, "node-1")
        (partner,) = made.pairs[-1] - {"node-1"}
        infos = [info for info in infos if info.id != partner]
        made.do(made.event(CapacityChanged, nodes=tuple(infos)))
        assert node(made, partner).state is NodeState.GONE
    assert cordoned(made) == set()
    made.link = lambda _: figures()
    look(made)
    assert cordoned(made) == set()
    assert not link_verdicts.bad_trials(node(made, "node-1"), made.now)


def under_way(made: LinkWorld, name: str) -> str:
    found = node(made, name).measured.under_way
    assert found is not None
    return found.worker


def begin(made: LinkWorld) -> None:
    """Begin the measurement between node-1, which connects, and node-2; nothing answers yet."""
    made.do(made.event(CheckAsked, node="node-1", checks=(LINK,), actor=node_checks.SCHEDULE))
    assert node(made, "node-2").measured.under_way is not None


def is_over_without_a_word(made: LinkWorld, why: str) -> None:
    for name in ("node-1", "node-2"):
        measured = node(made, name).measured
        assert (measured.under_way, measured.links, measured.results) == (None, (), ())
        assert measured.unchecked == why
    stopped = {each.node for each in made.carried if isinstance(each, StopCheck)}
    assert stopped == {"node-1", "node-2"}


@pytest.mark.parametrize("gone", ["node-1", "node-2"])
def test_an_end_that_vanishes_is_no_verdict_about_either(gone: str) -> None:
    made = world(4)
    begin(made)
    workers = {name: under_way(made, name) for name in ("node-1", "node-2")}
    made.do(made.event(CheckEnded, worker=workers[gone], reason="node lost"))
    is_over_without_a_word(made, "node lost")
    late = {"node": "node-1", "worker": workers["node-1"], "results": broken()}
    made.do(made.event(NodeChecked, **late))
    assert node(made, "node-1").measured.links == ()


@pytest.mark.parametrize(
    ("end", "results", "why"),
    [
        ("node-2", NOBODY, "no partner came within 300 s"),
        ("node-1", NOBODY, "no partner came within 300 s"),
        ("node-1", (), "the program that measures the link had no results"),
    ],
)
def test_a_measurement_that_did_not_take_place_is_no_verdict(
    end: str, results: tuple[CheckResult, ...], why: str
) -> None:
    made = world(4)
    begin(made)
    worker = under_way(made, end)
    made.do(made.event(NodeChecked, node=end, worker=worker, results=results))
    is_over_without_a_word(made, why)
    assert "node-1" not in link_pairs.due(made.state, made.now)
    made.advance(link_pairs.AGAIN.total_seconds())
    look(made)
    assert node(made, "node-1").measured.links


def test_a_link_gives_way_to_a_run_at_both_ends() -> None:
    made = world(2)
    begin(made)
    made.submit(spec(nodes=1))
    (launched,) = {worker.node for worker in made.state.workers.values()}
    is_over_without_a_word(made, f"the check of {launched} gives way to a run")


# --- the protocol -------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [("node-1", "node-2"), ("node-2", "node-1")])
def test_the_ends_may_report_in_any_order_and_twice(order: tuple[str, str]) -> None:
    made = world(2)
    begin(made)
    workers = {name: under_way(made, name) for name in order}
    where = {"node": "node-2", "worker": workers["node-2"], "address": "10.0.0.2", "port": 20001}
    for _ in range(2):
        made.do(made.event(LinkListening, **where))
    connecting = [each for each in made.carried if isinstance(each, CheckNode) and each.peer]
    assert {(each.worker, each.peer) for each in connecting} == {
        (workers["node-1"], "10.0.0.2:20001")
    }
    made.messages.clear()
    said = {"node-1": figures(), "node-2": SERVED}
    for name in (*order, *order):
        made.do(made.event(NodeChecked, node=name, worker=workers[name], results=said[name]))
    for name, peer in (("node-1", "node-2"), ("node-2", "node-1")):
        assert node(made, name).measured.under_way is None
        assert row(made, name) == figures()[0].model_copy(update={"peer": peer})
        assert row(made, name, LATENCY).figure == 50.0
    made.do(made.event(LinkListening, **where))
    again = [each for each in made.carried if isinstance(each, CheckNode) and each.peer]
    assert again == connecting


def test_trials_survive_the_controller() -> None:
    made = world(4, ["node-1"])
    ask(made, "node-1", node_checks.SCHEDULE)
    made.state = reloaded(made.state)
    look(made)
    assert cordoned(made) == {"node-1"}


def test_nodes_of_one_machine_are_no_pair() -> None:
    made = world(3)
    infos = [NodeInfo(id=name, cpus=1, host="box") for name in names(2)]
    made.do(made.event(CapacityChanged, nodes=(*infos, NodeInfo(id="node-3", cpus=1, host="b"))))
    look(made)
    assert {frozenset(pair) for pair in made.pairs} == {
        frozenset({"node-1", "node-3"}),
        frozenset({"node-2", "node-3"}),
    }


def test_links_are_measured_as_often_as_the_policy_says_and_one_pair_at_a_time() -> None:
    made = world(8)
    assert len(link_pairs.due(made.state, made.now)) == 1
    look(made)
    assert all(node(made, name).measured.links for name in names(8))
    assert len(made.pairs) == 4
    made.advance(24 * 3600)
    look(made)
    assert len(set(made.pairs)) == len(made.pairs), "each meets somebody else the next time"


@pytest.mark.parametrize(
    "policy",
    [dataclasses.replace(POLICY, action="off"), dataclasses.replace(POLICY, idle_seconds=0.0)],
)
def test_without_a_schedule_no_link_is_due(policy: CheckPolicy) -> None:
    assert link_pairs.due(world(4, policy=policy).state, world(4).now) == []


def test_in_shadow_it_is_said_once_what_would_be_done() -> None:
    made = world(4, ["node-3"], dataclasses.replace(POLICY, action="shadow"))
    look(made)
    assert cordoned(made) == set()
    (said,) = notices(made)
    assert said.startswith("node-3 failed a check and would be cordoned: link: with node-")


def test_a_repaired_link_brings_the_node_back_and_a_bad_one_blames_no_helper() -> None:
    made = world(4, ["node-2"])
    look(made)
    before = len(made.pairs)
    made.advance(link_pairs.AGAIN.total_seconds())
    look(made)
    assert len(made.pairs) == before + 1
    assert cordoned(made) == {"node-2"}
    helpers = {"node-1", "node-3", "node-4"}
    assert all(row(made, name).verdict is not Verdict.FAILED for name in helpers)
    assert not any(trial.bad for name in helpers for trial in node(made, name).measured.links)
    made.link = lambda _: figures()
    made.advance(link_pairs.AGAIN.total_seconds())
    look(made)
    assert cordoned(made) == set()
    assert node(made, "node-2").reason == "taken back: its checks passed"


def test_by_hand_a_person_gets_a_measurement_or_the_reason_why_not() -> None:
    made = world(2, policy=dataclasses.replace(POLICY, idle_seconds=0.0))
    ask(made, "node-1")
    assert row(made, "node-1").peer == "node-2"
    made.link = lambda _: broken()
    ask(made, "node-1")
    ask(made, "node-1")
    assert len(made.pairs) == 3, "the same partner again, where there is no other"
    back = {"node": "node-2", "state": "cordoned", "reason": "new cable"}
    made.do(made.event(NodeChanged, **back, actor="operator:ada"))
    with pytest.raises(ConflictError, match="no node on another machine that takes work"):
        ask(made, "node-1")
    with pytest.raises(InvalidError, match="link needs another node, so it is measured alone"):
        made.do(made.event(CheckAsked, node="node-1", checks=(LINK, "disk")))


def test_after_a_bad_link_by_hand_the_second_round_follows_by_itself() -> None:
    made = world(4, ["node-1"], dataclasses.replace(POLICY, idle_seconds=0.0))
    ask(made, "node-1")
    look(made)
    assert cordoned(made) == {"node-1"}


def ask_all(made: LinkWorld) -> None:
    for name in names(len(made.state.nodes)):
        ask(made, name)
        made.advance(5)


@pytest.mark.parametrize("count", [3, 4, 8, 12])
def test_an_outage_of_the_network_cordons_nobody(count: int) -> None:
    """The links of all nodes were good just before, and are so again just after."""
    made = world(count)
    look(made)
    made.advance(600)
    made.link = lambda _: broken()
    ask_all(made)
    look(made)
    assert cordoned(made) == set()
    made.link = lambda _: figures()
    ask_all(made)
    look(made)
    assert cordoned(made) == set()
    assert not any(link_verdicts.bad_trials(each, made.now) for each in made.state.nodes.values())


@pytest.mark.parametrize("bad", [2, 3, 4, 6, 9])
def test_an_outage_that_ends_between_two_measurements_cordons_nobody(bad: int) -> None:
    for count in (3, 5, 8):
        made = world(count)
        look(made)
        made.advance(24 * 3600)
        outcomes = iter([broken()] * bad)
        made.link = lambda _, left=outcomes: next(left, figures())  # type: ignore[misc]
        look(made)
        assert cordoned(made) == set()


@pytest.mark.parametrize("count", [6, 8, 12, 24])
@pytest.mark.parametrize("before", [False, True], ids=["from the first", "after a good day"])
def test_a_network_in_two_parts_cordons_nobody(count: int, before: bool) -> None:
    made = world(count)
    if before:
        look(made)
        made.advance(24 * 3600)
    left = set(names(count)[: count // 2])
    made.link = lambda pair: broken() if len(pair & left) == 1 else figures()
    look(made)
    assert cordoned(made) == set()
