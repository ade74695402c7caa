"""What counts for a place counts wherever one is looked for: scenarios in which it once did not."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Set as AbstractSet
from typing import Any

import pytest

from jobs.spec import Priority, Resources
from orchestrator.core.scheduling import (
    Claim,
    Demand,
    NodeCapacity,
    NodeTable,
    Pending,
    Quota,
    preemption,
)
from orchestrator.core.scheduling.victim_problem import Situation
from tests.unit.test_scheduling_plan import MINUTE, NOW, demand, holding, placed, table

LOW, HIGH, CRITICAL = Priority.LOW, Priority.HIGH, Priority.CRITICAL


def claim(*nodes: str, preempting: bool = True, until: dt.datetime | None = None) -> Claim:
    return Claim(nodes=nodes, preempting=preempting, until=until)


# spares


def test_a_newcomer_that_the_pool_never_leaves_room_for_holds_nobody_up() -> None:
    small = demand("small", submitted_at=NOW + MINUTE)
    outcome = placed(table(4), demand("big", 4), small, spares=1)
    assert outcome.waits["big"].why is Pending.TOO_LARGE
    assert "1 are spares" in outcome.waits["big"].detail
    assert "small" in outcome.placements


def test_nobody_leaves_for_a_place_that_the_pool_forbids() -> None:
    busy = [holding("low", "n00", priority=LOW), holding("other", "n01", priority=CRITICAL)]
    outcome = placed(table(3), demand("a", 2, priority=HIGH), holdings=busy, spares=1)
    assert not outcome.evictions
    assert not any(claim.preempting for claim in outcome.claims.values())


def test_whoever_is_behind_leaves_the_spares_that_the_first_needs_too() -> None:
    """Else a half-used node would never be idle, and the first in the queue never start."""
    busy = [holding("x", "n03", gpus=4)]
    behind = demand("behind", gpus=4, submitted_at=NOW + MINUTE)
    outcome = placed(table(4), demand("first", 3), behind, holdings=busy, spares=1)
    assert set(outcome.claims["first"].nodes) == {"n00", "n01", "n02", "n03"}
    assert outcome.waits["behind"].why is Pending.RESERVED


def test_part_of_a_busy_node_is_no_spare() -> None:
    busy = [holding("x", "n01", gpus=4)]
    outcome = placed(table(2), demand("a", gpus=4), holdings=busy, spares=1)
    assert outcome.placements["a"] == ("n01",)


# who leaves


def test_who_leaves_already_is_counted_before_others_are_asked() -> None:
    busy = [
        holding("done", "n00", "n01", leaving=True, movable=False, ends_at=NOW),
        holding("low", "n02", "n03", priority=LOW),
    ]
    outcome = placed(table(4), demand("a", 2, priority=HIGH), holdings=busy)
    assert not outcome.evictions
    assert outcome.waits["a"].why is Pending.PREEMPTING
    assert outcome.waits["a"].detail == "done"
    assert set(outcome.claims["a"].nodes) == {"n00", "n01"}


def test_when_a_claimed_node_is_lost_only_one_more_is_asked() -> None:
    given = NodeTable([NodeCapacity(node=f"n{i:02}", gpus=8, cpus=64) for i in range(1, 6)])
    busy = [
        *(holding(f"v{i}", f"n0{i}", leaving=True, movable=False) for i in (1, 2)),
        *(holding(f"m{i}", f"n0{i}", priority=LOW) for i in (3, 4, 5)),
    ]
    first = demand("a", 3, priority=HIGH, claim=claim("n00", "n01", "n02"))
    outcome = placed(given, first, holdings=busy)
    assert [e.run for e in outcome.evictions] == ["m3"]


def test_a_run_that_can_never_start_gives_up_what_it_holds() -> None:
    """It lost a node, and the cluster has no other: a run behind it needs those it kept."""
    stuck = demand("stuck", keeps=("n00", "n01"), recovers=True, priority=LOW)
    busy = [holding("stuck", "n00", "n01", movable=False, priority=LOW)]
    outcome = placed(table(2), stuck, demand("a", 2, priority=LOW), holdings=busy)
    assert outcome.waits["stuck"].why is Pending.TOO_LARGE
    assert [(e.run, e.by, e.why) for e in outcome.evictions] == [("stuck", "a", "order")]


def test_what_is_lent_is_taken_back_but_not_more() -> None:
    """Three runs of b, of which one is above its quota: only that much can be had back."""
    quotas = [Quota(name="a", gpus=16, cohort="c"), Quota(name="b", gpus=16, cohort="c")]
    lent = [holding(f"b{i}", f"n0{i}", queue="b") for i in (1, 2, 3)]
    busy = [holding("other", "n00"), *lent]
    one = placed(table(4), demand("a", queue="a"), quotas=quotas, holdings=busy)
    assert [(e.run, e.why) for e in one.evictions] == [("b1", "reclaim")]
    two = placed(table(4), demand("a", 2, queue="a"), quotas=quotas, holdings=busy)
    assert not two.evictions


def test_runs_of_a_queue_without_quota_make_room_by_priority() -> None:
    """Nothing was promised to them, while a quota is a promise."""
    quotas = [Quota(name="q", gpus=8)]
    low = holding("low", "n00", priority=LOW)
    outcome = placed(table(1), demand("a", queue="q"), quotas=quotas, holdings=[low])
    assert [e.run for e in outcome.evictions] == ["low"]
    within = holding("within", "n00", queue="q", priority=LOW)
    assert not placed(table(1), demand("a"), quotas=quotas, holdings=[within]).evictions


def test_all_shrink_before_one_is_stopped() -> None:
    wide = [
        holding(run, *nodes, priority=LOW, surplus=nodes[1:], lost_gpu_seconds=cost)
        for run, nodes, cost in (("x", ("n00", "n01"), 1.0), ("y", ("n02", "n03"), 2.0))
    ]
    outcome = placed(table(4), demand("a", 2, priority=HIGH), holdings=wide)
    assert sorted((e.run, e.nodes) for e in outcome.evictions) == [("x", ("n01",)), ("y", ("n03",))]


def test_one_large_run_leaves_where_it_is_cheaper_than_many_small_ones() -> None:
    busy = [
        *(holding(f"s{i}", f"n0{i}", priority=LOW, lost_gpu_seconds=100.0) for i in range(4)),
        holding("large", "n04", "n05", "n06", "n07", priority=LOW, lost_gpu_seconds=150.0),
    ]
    outcome = placed(table(8), demand("a", 4, priority=HIGH), holdings=busy)
    assert [e.run for e in outcome.evictions] == ["large"]


def test_many_small_ones_leave_where_they_are_cheaper_for_each_node() -> None:
    """The large one alone has the smallest single loss but one, and too few nodes."""
    busy = [
        *(holding(f"s{i}", f"n0{i}", priority=LOW, lost_gpu_seconds=10.0) for i in range(4)),
        holding("one", "n04", priority=LOW, lost_gpu_seconds=9.0),
        holding("large", "n05", "n06", "n07", priority=LOW, lost_gpu_seconds=12.0),
    ]
    outcome = placed(table(8), demand("a", 4, priority=HIGH), holdings=busy)
    assert sorted(e.run for e in outcome.evictions) == ["large", "one"]


def test_whoever_was_asked_to_leave_is_not_placed_in_the_same_pass() -> None:
    first = demand("first", 2, recovers=True, pack="rack")
    late = demand("late", keeps=("n00",), recovers=True, submitted_at=NOW + MINUTE)
    busy = [holding("late", "n00", movable=False), holding("x", "n02")]
    outcome = placed(table(4, rack=lambda i: i // 2), first, late, holdings=busy)
    assert [(e.run, e.why) for e in outcome.evictions] == [("late", "order")]
    assert outcome.waits["late"].behind == "first"


# who has nodes


def test_an_avoided_node_is_left_only_once_another_is_found() -> None:
    own = holding("a", "n00", "n01", movable=False)
    stays: dict[str, Any] = {
        "keeps": ("n00", "n01"), "avoid": ("n00",), "unwanted": ("n00",), "recovers": True
    }  # fmt: skip
    full = placed(table(2), demand("a", 0, **stays), holdings=[own])
    assert not full.placements
    assert not full.leaves
    assert not full.waits
    outcome = placed(table(3), demand("a", 0, **stays), holdings=[own])
    assert outcome.placements["a"] == ("n02",)
    assert outcome.leaves["a"] == ("n00",)
    elsewhere = table(4, rack=lambda i: i // 2)
    packed = placed(elsewhere, demand("a", 0, pack="rack", **stays), holdings=[own])
    assert set(packed.placements["a"]) == {"n02", "n03"}  # the gang moves: its rack has no other
    busy = [own, holding("x", "n03")]
    stuck = placed(elsewhere, demand("a", 0, pack="rack", **stays), holdings=busy)
    assert not stuck.leaves


def test_nodes_that_a_gang_leaves_are_not_free_yet() -> None:
    own = holding("a", "n04", "n05", "n06")
    missing = demand("a", keeps=own.nodes, recovers=True, pack="rack")
    given = table(8, rack=lambda i: i // 4)
    outcome = placed(given, missing, demand("b"), holdings=[own, holding("x", "n07")])
    assert set(outcome.leaves["a"]) == set(own.nodes)
    assert "b" in outcome.waits


def test_a_recovery_goes_on_above_a_quota_that_was_lowered() -> None:
    own = holding("a", "n00", "n01", queue="q", movable=False)
    back = demand("a", keeps=own.nodes, recovers=True, queue="q")
    quotas = [Quota(name="q", gpus=8)]
    assert placed(table(3), back, quotas=quotas, holdings=[own]).placements["a"] == ("n02",)


def test_a_run_that_its_quota_keeps_waiting_does_not_sit_on_nodes() -> None:
    own = holding("a", "n00", queue="q", movable=False)
    more = demand("a", keeps=own.nodes, queue="q")
    outcome = placed(
        table(2),
        more,
        demand("b", 2, submitted_at=NOW + MINUTE),
        quotas=[Quota(name="q", gpus=8)],
        holdings=[own],
    )
    assert outcome.waits["a"].why in {Pending.QUOTA, Pending.TOO_LARGE}
    assert [(e.run, e.by) for e in outcome.evictions] == [("a", "b")]


# for whom others left


def test_for_whom_others_leave_only_its_own_nodes_are_kept() -> None:
    """Another node is free: a recovery has it, not the run that waits for its victims."""
    busy = [holding("v", "n00", leaving=True, movable=False), holding("x", "n02")]
    expecting = demand("a", priority=HIGH, claim=claim("n00"))
    outcome = placed(table(3), expecting, demand("back", recovers=True), holdings=busy)
    assert outcome.placements == {"back": ("n01",)}
    assert outcome.waits["a"].detail == "v"


def test_one_that_waits_in_vain_spoils_nothing_for_its_like() -> None:
    """Of two alike, the victims of one have left; the victims of the other have not."""
    first = demand("a", claim=claim("n00"))
    second = demand("b", claim=claim("n01"), submitted_at=NOW + MINUTE)
    busy = [holding("v", "n00", leaving=True, movable=False)]
    assert placed(table(2), first, second, holdings=busy).placements == {"b": ("n01",)}
    shy = demand("a", priority=HIGH, avoid=("n00",), ends_within=60.0)
    bold = demand("b", priority=HIGH, submitted_at=NOW + MINUTE, ends_within=60.0)
    low = holding("low", "n01", priority=LOW)
    alike = placed(table(2), shy, bold, holdings=[low, holding("x", "n00", priority=LOW)])
    assert {e.by for e in alike.evictions} == {"a", "b"}


# reservations


def test_a_small_run_preempts_though_a_larger_one_of_its_kind_could_not() -> None:
    busy = [holding(f"h{i}", f"n{i:02}", priority=CRITICAL) for i in range(3)]
    low = holding("low", "n03", priority=LOW)
    meek = [
        demand(f"m{i}", priority=CRITICAL, may_preempt=False, submitted_at=NOW - MINUTE)
        for i in range(2)
    ]
    wide = demand("wide", 2, priority=HIGH, submitted_at=NOW - MINUTE)
    small = demand("small", priority=HIGH)
    outcome = placed(table(4), *meek, wide, small, holdings=[*busy, low])
    assert [(e.run, e.by) for e in outcome.evictions] == [("low", "small")]


def test_a_modest_run_preempts_though_all_victims_are_too_few_for_its_like() -> None:
    """Of runs that differ in CPUs and memory, those that need no less are spared the search."""
    large = {"cpus": 64, "memory": 100}
    small = {"cpus": 56, "memory": 50}
    nodes = [large, small, large, small]
    given = NodeTable(NodeCapacity(node=f"n{i:02}", gpus=8, **size) for i, size in enumerate(nodes))
    busy = [
        holding("a", "n00", priority=LOW),
        holding("b", "n01", "n03", priority=LOW),
        holding("stays", "n02", priority=CRITICAL),
    ]
    needs = {"cpus": (60, 50), "more": (61, 50), "memory": (32, 80), "modest": (32, 50)}
    runs = [
        dataclasses.replace(
            demand(run, 2, priority=HIGH, submitted_at=NOW + i * MINUTE),
            need=Resources(nodes=2, gpus_per_node=8, cpus_per_node=cpus, memory_per_node=memory),
        )
        for i, (run, (cpus, memory)) in enumerate(needs.items())
    ]
    outcome = placed(given, *runs, holdings=busy)
    assert [(e.run, e.by) for e in outcome.evictions] == [("b", "modest")]


def test_many_that_differ_only_in_memory_are_searched_victims_for_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Though each needs less than the one before, it fails for want of nodes, not of memory."""
    asked = []
    select = preemption.select

    def counted(
        situation: Situation, asking: Demand, waiting: AbstractSet[str]
    ) -> preemption.Selection | preemption.NoSelection:
        asked.append(asking.run)
        return select(situation, asking, waiting)

    monkeypatch.setattr(preemption, "select", counted)
    busy = [
        holding("low", "n00", priority=LOW),
        holding("stays", "n01", priority=CRITICAL),
    ]
    runs = [
        dataclasses.replace(
            demand(f"r{i}", 2, priority=HIGH, submitted_at=NOW + i * MINUTE),
            need=Resources(nodes=2, gpus_per_node=8, memory_per_node=1000 - i),
        )
        for i in range(50)
    ]
    outcome = placed(table(2), *runs, holdings=busy)
    assert {wait.why for wait in outcome.waits.values()} == {Pending.NO_CAPACITY}
    assert len(asked) < 10


def test_what_becomes_free_goes_to_the_reservation_though_no_end_is_known() -> None:
    busy = [holding("long", "n02", "n03"), *(holding(f"s{i}", f"n0{i}") for i in (5, 6, 7))]
    old = claim("n00", "n01", "n02", "n03", preempting=False)
    first = demand("first", 4, claim=old)
    outcome = placed(table(8), first, demand("s8"), holdings=busy)
    assert set(outcome.claims["first"].nodes) == {"n00", "n01", "n04", "n02"}
    assert outcome.waits["s8"].why is Pending.RESERVED


def test_of_two_racks_the_reservation_is_in_the_one_with_more_free() -> None:
    busy = [holding("x", "n00", "n01", "n02"), holding("y", "n04")]
    given = table(8, rack=lambda i: i // 4)
    outcome = placed(given, demand("first", 4, pack="rack"), holdings=busy)
    assert set(outcome.claims["first"].nodes) == {"n04", "n05", "n06", "n07"}


def test_a_reservation_looks_at_maintenance() -> None:
    given = NodeTable(
        [
            NodeCapacity(node="n00", gpus=8, cpus=64, window=NOW + 120 * MINUTE),
            NodeCapacity(node="n01", gpus=8, cpus=64),
        ]
    )
    long = demand("long", ends_within=5 * 3600.0)
    short = demand("short", ends_within=3600.0, submitted_at=NOW + MINUTE)
    busy = [holding("x", "n01", ends_at=NOW + 60 * MINUTE)]
    outcome = placed(given, long, short, holdings=busy)
    assert outcome.waits["long"].why is Pending.MAINTENANCE
    assert outcome.claims["long"].nodes == ("n01",)
    assert outcome.placements["short"] == ("n00",)


def test_a_packed_recovery_has_its_reservation_beside_its_nodes() -> None:
    own = holding("a", "n00", "n01", "n02", movable=False)
    back = demand("a", keeps=own.nodes, recovers=True, pack="rack")
    busy = [own, holding("x", "n03"), holding("y", "n05", "n06", "n07")]
    outcome = placed(table(8, rack=lambda i: i // 4), back, demand("b"), holdings=busy)
    assert outcome.claims["a"].nodes == ("n03",)
    assert outcome.placements["b"] == ("n04",)


# order


def test_a_small_run_goes_to_the_fullest_node() -> None:
    given = table(3, rack=lambda i: min(i, 1))
    assert placed(given, demand("a", gpus=2), holdings=[holding("x", "n01", gpus=4)]).placements[
        "a"
    ] == ("n01",)


def test_packed_runs_grow_in_their_own_racks_while_these_have_room() -> None:
    """Racks of 3: two runs share one with a free node, one is in a full rack, one alone."""
    given = table(9, rack=lambda i: i // 3)
    packed = [
        holding(run, *nodes, pack="rack", wants=3)
        for run, *nodes in (
            ("a", "n00"),
            ("b", "n01"),
            ("full", "n03", "n04", "n05"),
            ("c", "n06"),
        )
    ]
    outcome = placed(given, holdings=packed)
    assert outcome.growth == {"a": ("n02",), "c": ("n07", "n08")}


def test_growth_goes_by_priority_and_stays_within_the_cohort() -> None:
    low = holding("low", "n00", priority=LOW, wants=1)
    high = holding("high", "n01", priority=CRITICAL, wants=1)
    assert placed(table(3), holdings=[low, high]).growth == {"high": ("n02",)}
    quotas = [Quota(name="a", gpus=32, cohort="c"), Quota(name="b", gpus=32, cohort="c")]
    wide = holding("wide", "n00", queue="a", wants=3)
    lent = holding("lent", *[f"n0{i}" for i in range(1, 8)], queue="b")
    assert placed(table(16), quotas=quotas, holdings=[wide, lent]).growth == {}


def test_an_order_of_names_decides_where_nothing_else_does() -> None:
    own = ("n00", "n01", "n02", "n03", "n04")
    back = demand("a", keeps=own, recovers=True, pack="rack")
    busy = [holding("a", *own), holding("x", "n05", "n06", "n07")]
    outcome = placed(table(16, rack=lambda i: i // 8), back, holdings=busy)
    assert outcome.placements["a"] == tuple(sorted(outcome.placements["a"]))
