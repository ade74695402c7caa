"""Who leaves for whom: only what makes room is taken, and what was lent comes back."""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import Any

import pytest

from jobs.spec import Priority, Resources
from orchestrator.core.scheduling import (
    Claim,
    Demand,
    Holding,
    NodeCapacity,
    NodeTable,
    Plan,
    Quota,
)
from tests.unit.test_scheduling_plan import MINUTE, NOW, demand, holding, placed, table

LOW, NORMAL, HIGH, CRITICAL = Priority.LOW, Priority.NORMAL, Priority.HIGH, Priority.CRITICAL
PAIR = (Quota(name="a", gpus=16, cohort="c"), Quota(name="b", gpus=16, cohort="c"))


def taken(outcome: Plan) -> dict[str, tuple[str, ...]]:
    """Run → nodes that it leaves."""
    return {eviction.run: tuple(sorted(eviction.nodes)) for eviction in outcome.evictions}


def two_kinds(small: int, large: int) -> NodeTable:
    """Nodes s0 … with 64 CPUs, L0 … with 128."""
    return NodeTable(
        [NodeCapacity(node=f"s{i}", gpus=8, cpus=64) for i in range(small)]
        + [NodeCapacity(node=f"L{i}", gpus=8, cpus=128) for i in range(large)]
    )


def large(run: str, nodes: int = 1, **fields: Any) -> Demand:
    """A demand that fits the large nodes only."""
    need = Resources(nodes=nodes, gpus_per_node=8, cpus_per_node=100)
    return dataclasses.replace(demand(run, nodes, **fields), need=need)


# what makes room, before what is cheap


def test_what_was_lent_comes_back_from_the_dearest_if_only_that_makes_room() -> None:
    quotas = [Quota(name="a", gpus=8, cohort="c"), Quota(name="b", gpus=16, cohort="c")]
    lent = [
        holding("b1", "s0", queue="b", lost_gpu_seconds=10.0),
        holding("b2", "s1", queue="b", lost_gpu_seconds=20.0),
        holding("b3", "L0", queue="b", lost_gpu_seconds=500.0),
    ]
    outcome = placed(two_kinds(2, 1), large("a1", queue="a"), holdings=lent, quotas=quotas)
    assert taken(outcome) == {"b3": ("L0",)}


def test_as_many_leave_a_partly_reserved_node_as_leave_room_beside_the_reservation() -> None:
    """The first run may preempt nobody and has half of n00 reserved: both runs there must leave."""
    first = demand("first", 2, 4, priority=CRITICAL, may_preempt=False)
    held = [
        holding("low-1", "n00", gpus=4, priority=LOW),
        holding("low-2", "n00", gpus=4, priority=LOW),
        holding("stays", "n01", priority=CRITICAL),
    ]
    urgent = demand("urgent", 1, 4, priority=HIGH)
    outcome = placed(table(2), first, urgent, holdings=held)
    assert taken(outcome) == {"low-1": ("n00",), "low-2": ("n00",)}
    assert outcome.claims["urgent"].nodes == ("n00",)
    assert set(outcome.claims["first"].nodes) == {"n00", "n01"}


def test_what_was_lent_comes_back_within_one_rack() -> None:
    """The two cheapest runs of b are in two racks; the gang needs both nodes of one."""
    quotas = [Quota(name="a", gpus=16, cohort="c"), Quota(name="b", gpus=16, cohort="c")]
    cost = {"n00": 1.0, "n01": 90.0, "n02": 2.0, "n03": 60.0}
    lent = [holding(f"b-{n}", n, queue="b", lost_gpu_seconds=x) for n, x in cost.items()]
    gang = demand("a1", 2, queue="a", pack="rack")
    outcome = placed(table(4, rack=lambda i: i // 2), gang, holdings=lent, quotas=quotas)
    assert taken(outcome) == {"b-n02": ("n02",), "b-n03": ("n03",)}


def test_what_was_lent_comes_back_from_several_borrowers() -> None:
    quotas = [*PAIR, Quota(name="d", gpus=0, cohort="c")]
    lent = [
        *(holding(f"b{i}", f"n0{i}", queue="b") for i in range(3)),
        holding("d1", "n03", queue="d", priority=CRITICAL),
    ]
    outcome = placed(
        table(4), demand("a1", 2, queue="a", priority=LOW), holdings=lent, quotas=quotas
    )
    assert len(outcome.evictions) == 2
    assert "d1" in taken(outcome)


def test_a_node_that_two_share_is_freed_by_both_or_not_at_all() -> None:
    """The cheap tenants each share a node with one that must not be touched."""
    busy = [
        *(holding(f"cheap{i}", f"n0{i}", gpus=4, priority=LOW) for i in range(2)),
        *(holding(f"stays{i}", f"n0{i}", gpus=4, priority=CRITICAL) for i in range(2)),
        holding("dear1", "n02", gpus=4, priority=LOW, lost_gpu_seconds=900.0),
        holding("dear2", "n02", gpus=4, priority=LOW, lost_gpu_seconds=900.0),
    ]
    outcome = placed(table(3), demand("a", priority=HIGH), holdings=busy)
    assert set(taken(outcome)) == {"dear1", "dear2"}


def test_a_shared_node_comes_back_though_one_alone_is_within_the_limit() -> None:
    """b has borrowed half a node: the cheapest run alone would give that back, and win nothing."""
    quotas = [Quota(name="a", gpus=8, cohort="c"), Quota(name="b", gpus=12, cohort="c")]
    busy = [
        holding("b1", "n00", gpus=4, queue="b", lost_gpu_seconds=1.0),
        holding("x", "n00", gpus=4, priority=CRITICAL),
        holding("b2", "n01", queue="b", lost_gpu_seconds=500.0),
        holding("b3", "n02", gpus=4, queue="b", lost_gpu_seconds=900.0),
        holding("y", "n02", gpus=4, priority=CRITICAL),
    ]
    outcome = placed(table(3), demand("a1", queue="a"), holdings=busy, quotas=quotas)
    assert taken(outcome) == {"b2": ("n01",)}


# queues without a quota


@pytest.mark.parametrize("priority", list(Priority))
def test_a_queue_without_quota_takes_nothing_back(priority: Priority) -> None:
    quotas = [*PAIR, Quota(name="free", cohort="c")]
    busy = [holding("b1", "n00", "n01", "n02", queue="b", priority=LOW)]
    run = demand("f", queue="free", priority=priority)
    assert not placed(table(3), run, holdings=busy, quotas=quotas).evictions


@pytest.mark.parametrize("theirs", list(Priority))
def test_a_queue_without_quota_gives_back_what_its_cohort_owns(theirs: Priority) -> None:
    quotas = [*PAIR, Quota(name="free", cohort="c")]
    busy = [holding(f"f{i}", f"n0{i}", queue="free", priority=theirs) for i in range(2)]
    own = demand("a1", queue="a", priority=LOW)
    outcome = placed(table(2), own, holdings=busy, quotas=quotas)
    assert [e.why for e in outcome.evictions] == ["reclaim"]
    borrows = demand("a1", 3, queue="a", priority=LOW)
    outcome = placed(table(2), borrows, holdings=busy, quotas=quotas)
    assert not outcome.evictions


# elastic runs


def wide(nodes: int, least: int = 1, run: str = "wide", **fields: Any) -> Holding:
    names = [f"n{i:02}" for i in range(nodes)]
    return holding(run, *names, surplus=tuple(reversed(names[least:])), **fields)


def test_an_elastic_run_gives_as_many_nodes_as_are_needed() -> None:
    for count in (1, 3, 7):
        urgent = demand("urgent", count, priority=HIGH)
        outcome = placed(table(8), urgent, holdings=[wide(8, priority=LOW)])
        assert len(taken(outcome)["wide"]) == count
        assert set(taken(outcome)["wide"]) == set(outcome.claims["urgent"].nodes)


def test_two_urgent_runs_have_it_shrink_once() -> None:
    runs = [demand(f"urgent{i}", priority=HIGH) for i in range(2)]
    outcome = placed(table(8), *runs, holdings=[wide(8, priority=LOW)])
    assert [len(eviction.nodes) for eviction in outcome.evictions] == [2]
    nodes = [outcome.claims[run.run].nodes for run in runs]
    assert set(nodes[0]) | set(nodes[1]) == set(outcome.evictions[0].nodes)


def test_who_needs_more_than_the_surplus_stops_the_run() -> None:
    outcome = placed(table(4), demand("a", 4, priority=HIGH), holdings=[wide(4, priority=LOW)])
    assert taken(outcome) == {"wide": ("n00", "n01", "n02", "n03")}


def test_the_surplus_goes_to_a_peer_and_the_minimum_does_not() -> None:
    outcome = placed(table(4), demand("peer"), holdings=[wide(4)])
    assert [(e.run, len(e.nodes), e.why) for e in outcome.evictions] == [("wide", 1, "surplus")]
    assert not placed(table(4), demand("peer", 4), holdings=[wide(4)]).evictions
    assert not placed(table(4), demand("peer", priority=LOW), holdings=[wide(4)]).evictions


def test_a_peer_of_another_queue_leaves_what_is_within_a_quota() -> None:
    elastic = wide(2, queue="b")
    assert not placed(table(2), demand("a1", queue="a"), holdings=[elastic], quotas=PAIR).evictions
    assert placed(table(2), demand("b1", queue="b"), holdings=[elastic], quotas=PAIR).evictions


def test_what_shrinks_for_a_quota_gives_back_what_was_borrowed() -> None:
    """b has borrowed one node of the four that it holds; it keeps the others."""
    quotas = [Quota(name="a", gpus=16, cohort="c"), Quota(name="b", gpus=24, cohort="c")]
    elastic = wide(4, queue="b", priority=CRITICAL)
    other = holding("a0", "n04", queue="a")
    one = placed(table(5), demand("a1", queue="a"), holdings=[elastic, other], quotas=quotas)
    assert [len(e.nodes) for e in one.evictions] == [1]
    two = placed(
        table(5), demand("a1", 2, queue="a"), holdings=[elastic], quotas=quotas
    )  # one node is idle, one is lent
    assert [len(e.nodes) for e in two.evictions] == [1]


# a while to run


def test_who_has_just_come_back_is_not_evicted_again_at_once() -> None:
    back = holding("low", "n00", priority=LOW, safe_until=NOW + MINUTE)
    urgent = demand("urgent", priority=HIGH)
    assert not placed(table(1), urgent, holdings=[back]).evictions
    other = holding("other", "n01", priority=LOW, lost_gpu_seconds=1e6)
    assert set(taken(placed(table(2), urgent, holdings=[back, other]))) == {"other"}
    later = dataclasses.replace(back, safe_until=NOW)
    assert placed(table(1), urgent, holdings=[later]).evictions


def soon(seconds: float, **fields: Any) -> Holding:
    """A run on n00 that ends in so many seconds and must not be touched."""
    ends = NOW + dt.timedelta(seconds=seconds)
    return holding("ends", "n00", priority=CRITICAL, ends_at=ends, **fields)


@pytest.mark.parametrize(
    ("seconds", "lost", "waits"),
    [
        (20, 480.0, True),  # the victim would need the grace to save, which is longer
        (60, 480.0, True),  # 60 s x 8 GPUs
        (60, 479.0, False),
        (300, 1e6, True),
        (601, 1e9, False),  # a priority means something
    ],
)
def test_a_run_waits_a_little_where_that_is_cheaper(
    seconds: float, lost: float, waits: bool
) -> None:
    low = holding("low", "n01", priority=LOW, lost_gpu_seconds=lost)
    outcome = placed(table(2), demand("urgent", priority=HIGH), holdings=[soon(seconds), low])
    assert bool(outcome.evictions) is not waits
    if waits:
        assert outcome.waits["urgent"].starts_at == NOW + dt.timedelta(seconds=seconds)
        assert outcome.claims["urgent"].nodes == ("n00",)


def test_only_one_waits_for_one_node() -> None:
    runs = [demand(f"urgent{i}", priority=HIGH, submitted_at=NOW + i * MINUTE) for i in range(2)]
    low = holding("low", "n01", priority=LOW, lost_gpu_seconds=1e6)
    outcome = placed(table(2), *runs, holdings=[soon(60), low])
    assert [(e.run, e.by) for e in outcome.evictions] == [("low", "urgent1")]


def test_who_lacks_quota_does_not_wait_for_nodes() -> None:
    quotas = [Quota(name="a", gpus=8, cohort="c"), Quota(name="b", gpus=8, cohort="c")]
    lent = holding("b1", "n01", "n02", queue="b", lost_gpu_seconds=1e6)
    own = demand("a1", queue="a")
    outcome = placed(table(3), own, holdings=[soon(60), lent], quotas=quotas)
    assert [e.run for e in outcome.evictions] == ["b1"]


def test_two_do_not_claim_the_same_half_of_a_node() -> None:
    """Who leaves is counted once: the other half is used by a run that stays."""
    busy = [
        holding("stays", "n00", gpus=4, priority=CRITICAL),
        holding("low", "n00", gpus=4, priority=LOW, leaving=True, movable=False, ends_at=NOW),
    ]
    first = demand("a", gpus=4, priority=HIGH, claim=Claim(nodes=("n00",), preempting=True))
    second = demand("b", gpus=4, priority=HIGH, submitted_at=NOW + MINUTE)
    outcome = placed(table(1), first, second, holdings=busy)
    assert outcome.claims["a"].preempting
    assert "b" not in outcome.claims or not outcome.claims["b"].preempting


def test_nodes_of_agents_that_hang_in_their_end_are_not_taken_again() -> None:
    """The order to leave is old; their run waits itself, and holds one idle node."""
    hung = holding("low", "n00", priority=LOW, movable=False, overdue=True)
    idle = holding("low", "n01", priority=LOW)
    low = demand("low", 1, priority=LOW, keeps=("n01",))
    high = demand("high", 2, priority=CRITICAL)
    outcome = placed(table(2), low, high, holdings=[hung, idle])
    assert taken(outcome) == {}
