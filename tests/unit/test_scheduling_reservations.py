"""Reservations: one for each pool of nodes, by parts of nodes, kept against all that come later."""

from __future__ import annotations

import dataclasses
import datetime as dt

import pytest

from jobs.spec import Priority, Resources
from orchestrator.core.scheduling import (
    Claim,
    Demand,
    Holding,
    NodeCapacity,
    NodeTable,
    Pending,
    Plan,
)
from tests.unit.test_scheduling_plan import MINUTE, NOW, demand, holding, placed, table

HIGH, LOW = Priority.HIGH, Priority.LOW


def two_kinds(small: int = 4, large: int = 1) -> NodeTable:
    """Nodes n00 … of 8 GPUs, and x0 … of 16."""
    return NodeTable(
        [
            *(NodeCapacity(node=f"n{i:02}", gpus=8, cpus=64) for i in range(small)),
            *(NodeCapacity(node=f"x{i}", gpus=16, cpus=64) for i in range(large)),
        ]
    )


def large(run: str, *nodes: str, **fields: object) -> Holding:
    return dataclasses.replace(
        holding(run, *nodes, **fields), need=Resources(nodes=1, gpus_per_node=16)
    )


def wants_large(run: str, **fields: object) -> Demand:
    return dataclasses.replace(
        demand(run, **fields), need=Resources(nodes=1, gpus_per_node=16), nodes=1
    )


# pools


@pytest.mark.parametrize("first", [{"priority": HIGH}, {"recovers": True}, {"project": "other"}])
def test_a_run_that_waits_for_other_nodes_costs_nobody_its_reservation(
    first: dict[str, object],
) -> None:
    """kubernetes-sigs/kueue#8309."""
    busy = [holding("old", "n03"), large("x", "x0")]
    gang = demand("gang", 4, claim=Claim(nodes=("n00", "n01", "n02", "n03")))
    small = demand("small", submitted_at=NOW + MINUTE)
    other = wants_large("other", submitted_at=NOW - MINUTE, **first)
    outcome = placed(two_kinds(), other, gang, small, holdings=busy)
    assert not outcome.placements
    assert set(outcome.claims["gang"].nodes) == {"n00", "n01", "n02", "n03"}
    assert outcome.claims["other"].nodes == ("x0",)
    assert outcome.waits["small"].behind == "gang"


def test_a_reservation_without_a_known_start_moves_to_no_node_of_a_newcomer() -> None:
    """A node that becomes free is added; the fullest node of all would be next, but for that."""
    busy = [holding("old", "n01", "n02", gpus=4), holding("new", "n03")]
    gang = demand("gang", 2, claim=Claim(nodes=("n01", "n02")))
    outcome = placed(table(4), gang, holdings=busy)
    assert set(outcome.claims["gang"].nodes) in ({"n00", "n01"}, {"n00", "n02"})


def test_a_packed_reservation_stays_though_a_newcomer_uses_the_rest_of_a_freer_rack() -> None:
    busy = [holding("old", "n01", "n02", "n03"), holding("new", "n07")]
    claimed = ("n00", "n01", "n02", "n03")
    gang = demand("gang", 4, pack="rack", claim=Claim(nodes=claimed))
    outcome = placed(table(8, rack=lambda i: i // 4), gang, holdings=busy)
    assert set(outcome.claims["gang"].nodes) == set(claimed)


def test_a_newcomer_that_comes_ahead_costs_the_first_its_place_but_not_its_reservation() -> None:
    """Of higher priority it may go first; those behind may still not take what is reserved."""
    busy = [holding(f"b{i}", f"n0{i}") for i in (2, 3)]
    gang = demand("gang", 4, claim=Claim(nodes=("n00", "n01", "n02", "n03")))
    urgent = demand("urgent", 3, priority=HIGH, may_preempt=False)
    small = demand("small", submitted_at=NOW + MINUTE)
    outcome = placed(table(4), urgent, gang, small, holdings=busy)
    assert not outcome.placements
    assert set(outcome.claims["gang"].nodes) == {"n00", "n01", "n02", "n03"}
    assert len(outcome.claims["urgent"].nodes) == 3


def test_a_reservation_outlives_a_preemptor_that_takes_one_of_its_nodes() -> None:
    """For the moment the cluster has too few nodes for the gang: that is no reason to give up."""
    busy = [holding("gone", "n00", leaving=True, movable=False, ends_at=NOW)]
    urgent = demand("urgent", priority=HIGH, claim=Claim(nodes=("n00",), preempting=True))
    gang = demand("gang", 4, claim=Claim(nodes=("n00", "n01", "n02", "n03")))
    outcome = placed(table(4), urgent, gang, demand("small"), holdings=busy)
    assert not outcome.placements
    assert set(outcome.claims["gang"].nodes) == {"n00", "n01", "n02", "n03"}


def test_growth_takes_what_no_waiting_run_could_use() -> None:
    busy = [large("x", "x0"), holding("grows", "n00", wants=3)]
    outcome = placed(
        two_kinds(small=2, large=2), wants_large("w1"), wants_large("w2"), holdings=busy
    )
    assert outcome.waits.keys() == {"w2"}
    assert outcome.growth == {"grows": ("n01",)}
    assert not placed(table(3), demand("w", 3), holdings=busy).growth


# parts of nodes


def test_half_a_node_is_free_when_the_first_of_its_tenants_ends() -> None:
    """snakemake/snakemake#301."""
    busy = [holding("short", "n00", gpus=4, ends_at=NOW + MINUTE), holding("long", "n00", gpus=4)]
    outcome = placed(table(1), demand("next", gpus=4), holdings=busy)
    assert outcome.waits["next"].starts_at == NOW + MINUTE


def test_three_tenants_must_leave_before_the_run_fits() -> None:
    ends = [NOW + i * MINUTE for i in (3, 1, 2)]
    busy = [holding(f"t{i}", "n00", gpus=2, ends_at=end) for i, end in enumerate(ends)]
    busy.append(holding("stays", "n00", gpus=2))
    outcome = placed(table(1), demand("next", gpus=4), holdings=busy)
    assert outcome.waits["next"].starts_at == NOW + 2 * MINUTE


def test_the_part_that_is_not_reserved_may_be_used_by_anybody() -> None:
    busy = [holding("a", "n00", gpus=6, ends_at=NOW + MINUTE)]
    first = demand("first", gpus=4)
    small = demand("small", gpus=2, submitted_at=NOW + MINUTE)
    assert placed(table(1), first, small, holdings=busy).placements == {"small": ("n00",)}
    more = demand("more", gpus=2, submitted_at=NOW + 2 * MINUTE)
    full = [holding("a", "n00", gpus=4, ends_at=NOW + MINUTE), holding("b", "n00", gpus=2)]
    outcome = placed(table(1), demand("first", gpus=6), more, holdings=full)
    assert outcome.waits["more"].why is Pending.RESERVED


def test_reservations_on_one_node_add_up() -> None:
    """Three halves of a node: the third must be elsewhere, also while the first two wait."""
    leaves = [holding("v", "n00", "n01", leaving=True, movable=False)]
    half = [Claim(nodes=("n00",), preempting=True) for _ in range(2)]
    waits = [demand(f"w{i}", gpus=4, claim=each) for i, each in enumerate(half)]
    outcome = placed(table(2), *waits, demand("third", gpus=4, priority=HIGH), holdings=leaves)
    assert outcome.claims["third"].nodes == ("n01",)


# against whom


def _order(*demands: Demand, **fields: object) -> list[str]:
    outcome: Plan = placed(table(1), *demands, **fields)
    return [*outcome.placements, *outcome.waits]


def test_a_claim_is_kept_against_newcomers_of_any_project() -> None:
    """kai-scheduler/KAI-Scheduler#1970."""
    claimed = demand("claimed", project="used", claim=Claim(nodes=("n00",)))
    new = demand("new", project="fresh", submitted_at=NOW - MINUTE)
    usage = {"used": 1e9}
    assert _order(new, claimed, usage=usage) == ["claimed", "new"]
    assert _order(new, dataclasses.replace(claimed, claim=None), usage=usage) == ["new", "claimed"]
    urgent = dataclasses.replace(new, priority=HIGH)
    assert _order(urgent, claimed, usage=usage) == ["new", "claimed"]


def test_whoever_waits_long_comes_before_projects_that_have_used_nothing() -> None:
    day = dt.timedelta(days=1)
    usage = {"used": 8 * 86400.0}  # its GPUs for a day
    old = demand("old", project="used", submitted_at=NOW - day)
    new = demand("new", project="fresh")
    assert _order(old, new, usage=usage) == ["old", "new"]
    fresh = dataclasses.replace(old, submitted_at=NOW - MINUTE)
    assert _order(fresh, new, usage=usage) == ["new", "old"]
    paused = dataclasses.replace(old, waits_since=NOW - MINUTE)  # it ran until a minute ago
    assert _order(paused, new, usage=usage) == ["new", "old"]


# held nodes, and nodes that hang


def test_a_waiting_run_lends_the_nodes_it_holds_and_gives_them_after_an_hour() -> None:
    busy = [holding("gang", "n00", "n01", movable=False), holding("x", "n02", "n03")]
    gang = demand("gang", 2, keeps=("n00", "n01"), recovers=True, waits_since=NOW - MINUTE)
    short = demand("short", ends_within=60.0, submitted_at=NOW + MINUTE)
    notebook = demand("notebook", submitted_at=NOW + MINUTE)

    def leave_for(run: Demand, minutes: int) -> list[str]:
        waiting = dataclasses.replace(gang, waits_since=NOW - minutes * MINUTE)
        outcome = placed(table(4), waiting, run, holdings=busy)
        return [each.by for each in outcome.evictions]

    assert leave_for(short, 1) == leave_for(notebook, 1) == []
    assert leave_for(short, 11) == ["short"]
    assert leave_for(notebook, 11) == []
    assert leave_for(notebook, 61) == ["notebook"]


def test_a_claim_on_nodes_that_are_not_left_in_time_looks_for_another_place() -> None:
    """kubernetes/kubernetes#95752."""
    hung = holding("hung", "n00", leaving=True, movable=False, priority=LOW)
    old = Claim(nodes=("n00",), preempting=True, since=NOW - MINUTE)
    outcome = placed(table(2), demand("high", priority=HIGH, claim=old), holdings=[hung])
    assert outcome.placements["high"] == ("n01",)
    in_time = dataclasses.replace(old, since=NOW - dt.timedelta(seconds=10))
    outcome = placed(table(2), demand("high", priority=HIGH, claim=in_time), holdings=[hung])
    assert outcome.waits["high"].why is Pending.PREEMPTING
    assert outcome.waits["high"].recheck_at == NOW + dt.timedelta(seconds=21)
    full = [hung, holding("x", "n01")]
    outcome = placed(table(2), demand("high", priority=HIGH, claim=old), holdings=full)
    assert outcome.waits["high"].why is Pending.PREEMPTING  # nothing else is free: it waits on
    assert outcome.waits["high"].recheck_at is not None


# away


def test_a_node_that_is_away_is_reserved_but_not_used() -> None:
    given = NodeTable(
        NodeCapacity(node=f"n{i:02}", gpus=8, cpus=64, away=i == 3, returns_at=NOW + MINUTE)
        for i in range(4)
    )
    gang, small = demand("gang", 4), demand("small", submitted_at=NOW + MINUTE)
    outcome = placed(
        given, gang, small, demand("short", ends_within=50.0, submitted_at=NOW + MINUTE)
    )
    assert outcome.waits["gang"].why is Pending.NO_CAPACITY
    assert outcome.waits["gang"].starts_at == NOW + MINUTE
    assert outcome.waits["small"].why is Pending.RESERVED
    assert outcome.placements.keys() == {"short"}  # the nodes are lent meanwhile
    low = [holding("low", "n03", priority=LOW)]
    assert not placed(given, demand("h", priority=HIGH, nodes=4), holdings=low).evictions


def test_a_pass_looks_again_when_nodes_should_have_been_left() -> None:
    """From then on nobody counts on them, and a run behind the one that did may have others."""
    late = NOW + dt.timedelta(seconds=5)
    hung = holding("hung", "n00", leaving=True, movable=False, priority=LOW, overdue_at=late)
    held = [hung, holding("x", "n01")]
    outcome = placed(table(2), demand("behind", nodes=2), holdings=held)
    at = outcome.waits["behind"].recheck_at
    assert at is not None
    assert late <= at <= late + dt.timedelta(seconds=0.1)
