"""Who waits for quota, who may overtake, and who must not."""

from __future__ import annotations

import pytest

from jobs.spec import Priority
from orchestrator.core.scheduling import Claim, Demand, Pending, Quota
from orchestrator.core.scheduling.quota import Quotas
from orchestrator.core.scheduling.quota_line import BORROWER_SECONDS, UNKNOWN_SECONDS, QuotaLine
from tests.unit.test_scheduling_plan import MINUTE, NOW, demand, holding, placed, table

PAIR = (Quota(name="a", gpus=16, cohort="c"), Quota(name="b", gpus=16, cohort="c"))
"""Two queues of two nodes each."""
SINGLE = (Quota(name="a", gpus=32),)
HOUR = 60 * MINUTE


def later(run: str, nodes: int = 1, queue: str = "a", **fields: object) -> Demand:
    return demand(run, nodes, queue=queue, submitted_at=NOW + MINUTE, **fields)  # type: ignore[arg-type]


def test_a_run_that_must_borrow_does_not_close_its_queue_for_those_that_need_not() -> None:
    busy = [holding("b1", "n00", "n01", queue="b")]
    outcome = placed(
        table(4), demand("wide", 3, queue="a"), later("small"), quotas=PAIR, holdings=busy
    )
    assert outcome.waits["wide"].why is Pending.QUOTA
    assert "small" in outcome.placements


@pytest.mark.parametrize("waited", [HOUR, 48 * HOUR])
def test_it_blocks_nobody_for_as_long_as_its_own_queue_is_not_in_its_way(waited: object) -> None:
    """b uses its own quota: whether or not a is idle, the run that must borrow cannot start."""
    old = demand("wide", 3, queue="a", submitted_at=NOW - waited)  # type: ignore[operator]
    busy = [holding("b1", "n00", "n01", queue="b")]
    outcome = placed(table(4), old, later("small"), quotas=PAIR, holdings=busy)
    assert "small" in outcome.placements


def test_after_an_hour_its_queue_waits_for_it() -> None:
    """Otherwise a stream of small runs within the quota would keep the large one out for ever."""
    busy = [holding("a1", "n00", "n01", queue="a")]

    def outcome(waited: float) -> object:
        old = demand("wide", 4, queue="a", submitted_at=NOW - waited * HOUR)
        quotas = (Quota(name="a", gpus=24, cohort="c"), Quota(name="b", gpus=8, cohort="c"))
        return placed(table(4), old, later("small"), quotas=quotas, holdings=busy)

    assert BORROWER_SECONDS == 3600.0
    assert "small" in outcome(0.9).placements  # type: ignore[attr-defined]
    assert outcome(1.1).waits["small"].behind == "wide"  # type: ignore[attr-defined]


def test_who_ends_before_the_quota_is_free_may_use_it() -> None:
    busy = [
        holding("a1", "n00", "n01", queue="a", ends_at=NOW + HOUR),
        holding("a2", "n02", queue="a"),
    ]
    short = later("short", ends_within=3600.0)
    long = later("long", ends_within=3601.0)
    first = demand("first", 2, queue="a")
    quotas = SINGLE
    outcome = placed(table(8), first, long, short, quotas=quotas, holdings=busy)
    assert outcome.waits["first"].why is Pending.QUOTA
    assert outcome.waits["long"].behind == "first"
    assert "short" in outcome.placements


def test_where_no_end_is_known_runs_of_an_hour_may_use_it() -> None:
    busy = [holding("a1", "n00", "n01", "n02", queue="a")]
    short = later("short", ends_within=UNKNOWN_SECONDS)
    long = later("long", ends_within=UNKNOWN_SECONDS + 1)
    endless = later("endless")
    first = demand("first", 2, queue="a")
    outcome = placed(table(8), first, endless, long, short, quotas=SINGLE, holdings=busy)
    assert outcome.placements.keys() == {"short"}
    assert {outcome.waits[run].behind for run in ("long", "endless")} == {"first"}


def test_what_a_run_waits_to_borrow_is_not_lent_to_others() -> None:
    """b has borrowed the idle quota of d; when it gives back, e must not take it before a."""
    quotas = (
        *PAIR,
        Quota(name="d", gpus=16, cohort="c"),
        Quota(name="e", gpus=8, cohort="c"),
    )
    busy = [holding("b1", "n00", "n01", "n02", queue="b")]
    first = demand("first", 5, queue="a")
    outcome = placed(
        table(12), first, later("e2", 2, "e"), later("d1", 2, "d"), quotas=quotas, holdings=busy
    )
    assert outcome.waits["first"].why is Pending.QUOTA
    assert outcome.waits["e2"].behind == "first"
    assert "d1" in outcome.placements  # its own quota is its own


def test_growth_takes_no_quota_that_a_run_waits_for() -> None:
    busy = [holding("a1", "n00", queue="a", wants=2), holding("a2", "n01", "n02", queue="a")]
    outcome = placed(table(8), demand("first", 2, queue="a"), quotas=SINGLE, holdings=busy)
    assert outcome.waits["first"].why is Pending.QUOTA
    assert not outcome.growth


def test_a_recovery_on_its_nodes_is_behind_nobody() -> None:
    quotas = Quotas(SINGLE)
    quotas.charge("a", 16)
    line = QuotaLine(quotas, [], NOW)
    line.wait(demand("large", 4, queue="a"))
    assert line.behind(later("small")) == "large"
    assert line.behind(later("back", keeps=("n00", "n01"), recovers=True)) is None


@pytest.mark.parametrize(
    ("used", "gpus"),
    [
        ({}, 32),
        ({"a": 16}, 32),
        ({"b": 8}, 24),
        ({"b": 16}, 16),
        ({"b": 24}, 16),
    ],
)
def test_what_is_within_reach_leaves_others_their_own(used: dict[str, int], gpus: int) -> None:
    quotas = Quotas(PAIR)
    for queue, more in used.items():
        quotas.charge(queue, more)
    assert quotas.reachable("a") == gpus
    limited = Quotas([Quota(name="a", gpus=16, cohort="c", borrowing_limit=8), PAIR[1]])
    assert limited.reachable("a") == 24
    assert Quotas(SINGLE).reachable("a") == 32


QUEUE_OF_THREE = (Quota(name="a", gpus=24),)


def test_the_share_of_a_run_that_recovers_is_nobodys_to_wait_for() -> None:
    """It leaves two of its three nodes, and will ask for one of them again."""
    leaves = holding("back", "n00", "n01", queue="a", leaving=True, movable=False, missing=-1)
    stays = holding("back", "n02", queue="a", movable=False, missing=1)
    two, one = later("two", 2), later("one")
    outcome = placed(table(4), two, holdings=[leaves, stays], quotas=QUEUE_OF_THREE)
    assert outcome.waits["two"].why is Pending.QUOTA
    outcome = placed(table(4), one, holdings=[leaves, stays], quotas=QUEUE_OF_THREE)
    assert outcome.waits["one"].why is Pending.PREEMPTING  # the other node's share becomes free


def test_nobody_gets_the_share_of_a_run_that_recovers_on_the_nodes_that_are_left() -> None:
    stays = holding("back", "n00", queue="a", movable=False, missing=1)
    back = demand("back", 1, queue="a", keeps=("n00",), recovers=True)
    claim = Claim(nodes=("n01", "n02"), preempting=True)
    two = demand("two", 2, queue="a", claim=claim)
    outcome = placed(table(4), two, back, holdings=[stays], quotas=QUEUE_OF_THREE)
    assert outcome.placements.keys() == {"back"}
    assert outcome.waits["two"].detail.startswith("queue a uses 16 of 24 GPUs")


def test_a_recovery_that_leaves_for_a_run_ahead_gives_up_its_share_of_the_quota() -> None:
    """It waits for a third node, of which its queue's quota counts the share already."""
    stays = holding("back", "n00", "n01", queue="a", movable=False, missing=1)
    back = demand("back", 1, queue="a", keeps=("n00", "n01"), recovers=True)
    urgent = demand("urgent", 3, queue="a", priority=Priority.HIGH)
    busy = [stays, holding("other", "n02")]
    outcome = placed(table(3), urgent, back, holdings=busy, quotas=QUEUE_OF_THREE)
    assert [(e.run, e.why) for e in outcome.evictions] == [
        ("back", "order"),
        ("other", "priority"),
    ]
