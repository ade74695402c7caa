"""One scheduling pass, as an operator would tell it."""

from __future__ import annotations

import datetime as dt
from typing import Any

from jobs.spec import Priority, Resources
from orchestrator.core.scheduling import (
    Claim,
    Demand,
    Holding,
    NodeCapacity,
    NodeTable,
    Pending,
    Plan,
    Quota,
    Snapshot,
    plan,
)

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
MINUTE = dt.timedelta(minutes=1)


def table(count: int = 8, gpus: int = 8, **labels: Any) -> NodeTable:
    """Nodes n00, n01 …; a label is a function of the number."""
    return NodeTable(
        NodeCapacity(
            node=f"n{i:02}",
            gpus=gpus,
            cpus=64,
            labels={name: str(of(i)) for name, of in labels.items()},
        )
        for i in range(count)
    )


def need(nodes: int = 1, gpus: int = 8) -> Resources:
    return Resources(nodes=nodes, gpus_per_node=gpus)


def demand(run: str, nodes: int = 1, gpus: int = 8, **fields: Any) -> Demand:
    fields.setdefault("priority", Priority.NORMAL)
    fields.setdefault("submitted_at", NOW)
    return Demand(run=run, name=run, need=need(max(1, nodes), gpus), nodes=nodes, **fields)


def holding(run: str, *nodes: str, gpus: int = 8, **fields: Any) -> Holding:
    fields.setdefault("priority", Priority.NORMAL)
    return Holding(run=run, need=need(len(nodes), gpus), nodes=nodes, **fields)


def placed(given: NodeTable, *demands: Demand, **fields: Any) -> Plan:
    return plan(Snapshot(table=given, demands=demands, **fields), NOW)


def test_a_gang_gets_all_its_nodes_or_none() -> None:
    outcome = placed(table(4), demand("a", 3), demand("b", 2))
    assert len(outcome.placements["a"]) == 3
    assert outcome.waits["b"].why is Pending.NO_CAPACITY
    assert outcome.waits["b"].fitting == 1


def test_higher_priority_goes_first_whoever_came_first() -> None:
    late = demand("late", 4, priority=Priority.HIGH, submitted_at=NOW + MINUTE)
    assert list(placed(table(4), demand("early", 4), late).placements) == ["late"]


def test_a_recovery_does_not_wait_behind_newcomers() -> None:
    back = demand("back", 4, recovers=True, submitted_at=NOW + MINUTE)
    assert list(placed(table(4), demand("new", 4), back).placements) == ["back"]
    urgent = demand("urgent", 4, priority=Priority.HIGH)  # volcano-sh/volcano#748
    assert list(placed(table(4), urgent, back).placements) == ["urgent"]


def test_small_runs_are_put_together_so_that_nodes_stay_whole() -> None:
    outcome = placed(
        table(3), demand("a", gpus=2), demand("b", gpus=2), demand("c", gpus=4), demand("d", 2)
    )
    assert {outcome.placements[run] for run in "abc"} == {("n00",)}
    assert set(outcome.placements["d"]) == {"n01", "n02"}


def test_an_avoided_node_is_the_last_resort() -> None:
    assert placed(table(2), demand("a", avoid=("n00",))).placements["a"] == ("n01",)
    assert set(placed(table(2), demand("a", 2, avoid=("n00",))).placements["a"]) == {"n00", "n01"}


# topology


def test_a_gang_stays_in_the_smallest_domain_that_fits() -> None:
    """Of two racks that fit, the one with less to spare: the large one stays whole."""
    given = table(10, rack=lambda i: 0 if i < 6 else 1)
    chosen = placed(given, demand("a", 4)).placements["a"]
    assert chosen == ("n06", "n07", "n08", "n09")


def test_over_several_racks_it_fills_as_few_as_it_can() -> None:
    sizes = [1, 1, 1, 3, 4]
    racks = [rack for rack, size in enumerate(sizes) for _ in range(size)]
    given = table(10, rack=lambda i: racks[i])
    chosen = placed(given, demand("a", 7)).placements["a"]
    assert {racks[int(node[1:])] for node in chosen} == {3, 4}


def test_a_gang_that_must_lie_within_a_rack_waits_for_one() -> None:
    given = table(8, rack=lambda i: i // 4)
    busy = [holding("x", "n00"), holding("y", "n04")]
    outcome = placed(given, demand("a", 4, pack="rack"), holdings=busy)
    assert outcome.waits["a"].why is Pending.TOPOLOGY
    assert outcome.waits["a"].fitting == 6
    assert len(placed(given, demand("a", 4), holdings=busy).placements["a"]) == 4


def test_no_rack_is_that_large() -> None:
    outcome = placed(table(8, rack=lambda i: i // 4), demand("a", 5, pack="rack"), demand("b", 8))
    assert outcome.waits["a"].why is Pending.TOO_LARGE
    assert "one rack has 4 nodes" in outcome.waits["a"].detail
    assert "b" in outcome.placements  # who can never be placed holds nobody up


def test_a_replacement_is_found_near_the_others() -> None:
    given = table(8, rack=lambda i: i // 4)
    missing = demand("a", 1, keeps=("n04", "n05", "n06"), recovers=True)
    own = [holding("a", "n04", "n05", "n06")]
    assert placed(given, missing, holdings=own).placements["a"] == ("n07",)


def test_a_gang_moves_to_another_rack_when_its_own_has_no_replacement() -> None:
    given = table(8, rack=lambda i: i // 4)
    missing = demand("a", 1, keeps=("n04", "n05", "n06"), recovers=True, pack="rack")
    busy = [holding("a", "n04", "n05", "n06"), holding("x", "n07")]
    outcome = placed(given, missing, holdings=busy)
    assert set(outcome.placements["a"]) == {"n00", "n01", "n02", "n03"}
    assert set(outcome.leaves["a"]) == {"n04", "n05", "n06"}


# backfill


def test_the_first_in_the_queue_gets_a_reservation() -> None:
    """What would still run when the others end may not take its nodes; the rest may be used."""
    ends = NOW + 10 * MINUTE
    busy = [holding("x", "n00", "n01", ends_at=ends)]
    outcome = placed(table(4), demand("big", 3), demand("endless"), demand("next"), holdings=busy)
    assert outcome.waits["big"].starts_at == ends
    assert len(outcome.claims["big"].nodes) == 3
    assert set(outcome.claims["big"].nodes) & {"n02", "n03"} == {"n02", "n03"}
    assert outcome.waits["endless"].why is Pending.RESERVED
    assert outcome.waits["endless"].behind == "big"


def test_who_ends_before_the_reservation_may_use_it() -> None:
    busy = [holding("x", "n00", "n01", ends_at=NOW + 10 * MINUTE)]
    short = demand("short", ends_within=600.0)
    long = demand("long", ends_within=601.0)
    outcome = placed(table(4), demand("big", 4), long, short, holdings=busy)
    assert list(outcome.placements) == ["short"]
    assert outcome.waits["long"].why is Pending.RESERVED


def test_an_unknown_end_lends_nodes_for_an_hour_at_most() -> None:
    """apache/yunikorn-core#1025: nodes must not idle for as long as a notebook lives."""
    busy = [holding("notebook", "n00", gpus=1)]
    hour = demand("hour", ends_within=3630.0)
    assert "hour" in placed(table(2), demand("big", 2), hour, holdings=busy).placements
    for longer in (demand("x", ends_within=3631.0), demand("x")):
        outcome = placed(table(2), demand("big", 2), longer, holdings=busy)
        assert outcome.waits["x"].why is Pending.RESERVED


def test_a_reservation_stays_with_its_nodes() -> None:
    given, old = table(4), Claim(nodes=("n00", "n03"), until=NOW + MINUTE)
    busy = [holding(f"x{i}", f"n{i:02}", ends_at=NOW + MINUTE) for i in range(4)]
    outcome = placed(given, demand("big", 2, claim=old), holdings=busy)
    assert set(outcome.claims["big"].nodes) == {"n00", "n03"}


def test_maintenance_keeps_out_what_would_not_end_before() -> None:
    given = NodeTable([NodeCapacity(node="n00", gpus=8, cpus=8, window=NOW + 60 * MINUTE)])
    assert placed(given, demand("short", ends_within=3000.0)).placements
    assert not placed(given, demand("long", ends_within=3700.0)).placements


# quota


def test_a_queue_stops_at_its_quota() -> None:
    quotas = [Quota(name="q", gpus=16)]
    outcome = placed(table(8), demand("a", 2, queue="q"), demand("b", queue="q"), quotas=quotas)
    assert outcome.waits["b"].why is Pending.QUOTA
    assert "uses 16 of 16 GPUs" in outcome.waits["b"].detail


def test_nobody_of_a_queue_overtakes_who_waits_for_its_quota() -> None:
    quotas = [Quota(name="q", gpus=16)]
    runs = [demand("a", queue="q"), demand("b", 2, queue="q"), demand("c", queue="q")]
    outcome = placed(table(8), *runs, demand("other"), quotas=quotas)
    assert outcome.waits["c"].why is Pending.BEHIND
    assert outcome.waits["c"].behind == "b"
    assert "other" in outcome.placements


def test_what_the_cohort_does_not_use_is_borrowed() -> None:
    quotas = [Quota(name="a", gpus=16, cohort="c"), Quota(name="b", gpus=16, cohort="c")]
    assert placed(table(8), demand("r", 4, queue="a"), quotas=quotas).placements
    limited = [Quota(name="a", gpus=16, cohort="c", borrowing_limit=8), quotas[1]]
    outcome = placed(table(8), demand("r", 4, queue="a"), quotas=limited)
    assert outcome.waits["r"].why is Pending.TOO_LARGE
    lending = [quotas[0], Quota(name="b", gpus=16, cohort="c", lending_limit=8)]
    assert placed(table(8), demand("r", 4, queue="a"), quotas=lending).waits


def test_what_was_lent_is_taken_back() -> None:
    """By a run within its own quota, whatever the priorities; and no more than it needs."""
    quotas = [Quota(name="a", gpus=16, cohort="c"), Quota(name="b", gpus=16, cohort="c")]
    busy = [
        holding(f"r{i}", f"n{i:02}", queue="a", priority=Priority.HIGH, lost_gpu_seconds=9.0 - i)
        for i in range(4)
    ]
    back = demand("back", queue="b", priority=Priority.LOW)
    outcome = placed(table(4), back, quotas=quotas, holdings=busy)
    assert [(e.run, e.why) for e in outcome.evictions] == [("r3", "reclaim")]
    assert outcome.waits["back"].why is Pending.PREEMPTING


# preemption


def test_the_cheapest_of_lower_priority_leave() -> None:
    cost = {"x": 50.0, "y": 10.0, "z": 30.0}
    busy = [
        holding(run, f"n{i:02}", priority=Priority.LOW, lost_gpu_seconds=cost[run])
        for i, run in enumerate("xyz")
    ]
    outcome = placed(table(3), demand("a", 2, priority=Priority.HIGH), holdings=busy)
    assert sorted(e.run for e in outcome.evictions) == ["y", "z"]
    assert set(outcome.claims["a"].nodes) == {"n01", "n02"}


def test_nobody_leaves_for_nothing() -> None:
    """All the lower ones together would not make room: so none is touched."""
    busy = [
        holding("low", "n00", priority=Priority.LOW),
        holding("same", "n01", "n02", priority=Priority.HIGH),
    ]
    outcome = placed(table(3), demand("a", 2, priority=Priority.HIGH), holdings=busy)
    assert outcome.evictions == []
    assert outcome.waits["a"].why is Pending.NO_CAPACITY


def test_who_is_not_needed_is_spared() -> None:
    """The cheapest comes first, but the large one alone makes room, so the small one stays."""
    busy = [
        holding("small", "n00", priority=Priority.LOW, lost_gpu_seconds=1.0),
        holding("large", "n01", "n02", priority=Priority.LOW, lost_gpu_seconds=5.0),
    ]
    given = table(3, rack=lambda i: 0 if i == 0 else 1)
    outcome = placed(given, demand("a", 2, priority=Priority.HIGH, pack="rack"), holdings=busy)
    assert [e.run for e in outcome.evictions] == ["large"]


def test_the_nodes_are_kept_for_whom_others_leave() -> None:
    """Also against a higher priority that comes in between: else they would leave for nothing."""
    claim = Claim(nodes=("n00", "n01"), preempting=True)
    first = demand("first", 2, priority=Priority.NORMAL, claim=claim)
    busy = [
        holding("x", "n00", leaving=True, movable=False, priority=Priority.LOW),
        holding("y", "n02", priority=Priority.CRITICAL),
    ]
    late = demand("late", priority=Priority.HIGH)
    outcome = placed(table(3), late, first, holdings=busy)
    assert outcome.waits["first"].why is Pending.PREEMPTING
    assert outcome.waits["first"].detail == "x"
    assert not outcome.placements
    assert not outcome.evictions


def test_an_elastic_run_gives_its_surplus_before_another_is_stopped() -> None:
    busy = [
        holding(
            "wide", "n00", "n01", "n02", surplus=("n02",), priority=Priority.LOW,
            lost_gpu_seconds=5.0,
        ),
        holding("other", "n03", priority=Priority.LOW, lost_gpu_seconds=6.0),
    ]  # fmt: skip
    outcome = placed(table(4), demand("a", priority=Priority.HIGH), holdings=busy)
    assert [(e.run, e.nodes) for e in outcome.evictions] == [("wide", ("n02",))]


def test_a_crash_loop_has_nobody_evicted() -> None:
    busy = [holding("low", "n00", priority=Priority.LOW)]
    loop = demand("loop", priority=Priority.CRITICAL, may_preempt=False)
    assert placed(table(1), loop, holdings=busy).evictions == []


def test_two_that_wait_for_each_other_do_not_for_ever() -> None:
    """Both lost a node and hold the others idle: who is behind gives back what it holds."""
    early = demand("early", 1, keeps=("n00", "n01"), recovers=True)
    late = demand("late", 1, keeps=("n02", "n03"), recovers=True, submitted_at=NOW + MINUTE)
    busy = [
        holding("early", "n00", "n01", movable=False),
        holding("late", "n02", "n03", movable=False),
    ]
    outcome = placed(table(4), early, late, holdings=busy)
    assert [(e.run, e.by, e.why) for e in outcome.evictions] == [("late", "early", "order")]


# fair share, spares, growth


def test_the_project_that_has_least_goes_first() -> None:
    runs = [demand(f"a{i}", project="a") for i in range(4)] + [demand("b0", project="b")]
    outcome = placed(table(2), *runs)
    assert set(outcome.placements) == {"a0", "b0"}
    used = placed(table(1), *runs, usage={"a": 0.0, "b": 1e6})
    assert set(used.placements) == {"a0"}


def test_weights_shift_the_shares() -> None:
    quotas = [Quota(name="default", weights={"a": 3.0})]
    runs = [demand(f"{p}{i}", project=p) for p in "ab" for i in range(4)]
    outcome = placed(table(4), *runs, quotas=quotas)
    assert sorted(run[0] for run in outcome.placements) == ["a", "a", "a", "b"]


def test_newcomers_leave_the_spares_to_recoveries() -> None:
    busy = [holding("x", "n00")]
    outcome = placed(table(4), demand("new", 2), holdings=busy, spares=2)
    assert outcome.waits["new"].why is Pending.SPARES
    back = demand("back", 3, recovers=True)
    assert placed(table(4), back, holdings=busy, spares=2).placements


def test_elastic_runs_grow_when_nobody_waits() -> None:
    wide = holding("wide", "n00", wants=5)
    assert len(placed(table(4), holdings=[wide]).growth["wide"]) == 3
    assert placed(table(4), demand("a", 5), demand("b", 4), holdings=[wide]).growth == {}


def test_standbys_come_with_the_gang() -> None:
    outcome = placed(table(4), demand("a", 2, more=1))
    assert len(outcome.placements["a"]) == 2
    assert len(outcome.growth["a"]) == 1
    assert not set(outcome.growth["a"]) & set(outcome.placements["a"])


def test_a_run_that_is_preempted_does_not_grow_in_the_same_pass() -> None:
    """It would get agents on nodes that it does not need any more."""
    sizes = {"large": 16, "small-1": 8, "small-2": 8}
    given = NodeTable(NodeCapacity(node=name, gpus=gpus, cpus=64) for name, gpus in sizes.items())
    wide = holding("wide", "large", wants=1)
    urgent = demand("urgent", gpus=16, priority=Priority.HIGH)
    outcome = placed(given, urgent, holdings=[wide])
    assert [each.run for each in outcome.evictions] == ["wide"]
    assert outcome.growth == {}
