"""Quotas, shares, the pool of spares, and what is remembered, each by itself."""

from __future__ import annotations

import datetime as dt
import math
from pathlib import Path

import pytest

from orchestrator.core.model.entities import Queue
from orchestrator.core.model.records import Past
from orchestrator.core.policy.usage_history import usual_wait
from orchestrator.core.scheduling import NodeCapacity, NodeTable, Quota
from orchestrator.core.scheduling.fair_share import HALF_LIFE_SECONDS, accrued, decayed
from orchestrator.core.scheduling.quota import Quotas, QuotaStatus
from orchestrator.core.scheduling.spares import (
    PRIOR_FAILURES_PER_NODE_DAY,
    failure_rate,
    pool_size,
)

DOCS = Path(__file__).parents[2] / "docs"


def quotas(*given: Quota, **used: int) -> Quotas:
    found = Quotas(given)
    for queue, gpus in used.items():
        found.charge(queue, gpus)
    return found


PAIR = (Quota(name="a", gpus=16, cohort="c"), Quota(name="b", gpus=8, cohort="c"))


@pytest.mark.parametrize(
    ("used", "more", "expected"),
    [
        ({}, 16, QuotaStatus.WITHIN),
        ({}, 24, QuotaStatus.BORROWING),
        ({}, 25, QuotaStatus.OVER),
        ({"b": 8}, 17, QuotaStatus.OVER),
        ({"b": 12}, 12, QuotaStatus.WITHIN),
        ({"b": 12}, 13, QuotaStatus.RECLAIMING),
        ({"b": 24}, 1, QuotaStatus.RECLAIMING),
    ],
)
def test_standings(used: dict[str, int], more: int, expected: QuotaStatus) -> None:
    assert quotas(*PAIR, **used).status("a", more) is expected


def test_a_queue_that_was_never_set_has_no_limit() -> None:
    found = quotas(*PAIR)
    assert found.status("other", 10**6) is QuotaStatus.WITHIN
    assert found.ceiling("other") is None
    assert found.ceiling("a") == 24


def test_standing_changes_nothing() -> None:
    found = quotas(*PAIR, a=3)
    found.status("a", 100)
    assert found.used("a") == 3


@pytest.mark.parametrize(("nodes", "p"), [(1, 0.5), (10, 0.02), (50, 0.1), (400, 0.0065)])
def test_the_pool_is_the_percentile_of_the_binomial(nodes: int, p: float) -> None:
    def at_most(k: int) -> float:
        return sum(math.comb(nodes, i) * p**i * (1 - p) ** (nodes - i) for i in range(k + 1))

    rate = -math.log(1 - p)  # of which p is the chance in a day
    size = pool_size(nodes, rate)
    assert at_most(size) >= 0.99
    assert size == 0 or at_most(size - 1) < 0.99


def test_the_pool_of_a_large_fleet_can_be_computed() -> None:
    """(1 - p)^n is nothing at all for these, and still there is an answer near the mean."""
    assert 600 < pool_size(100_000, PRIOR_FAILURES_PER_NODE_DAY) < 750
    assert pool_size(0, 1.0) == 0
    assert pool_size(10, 0.0) == 0


def test_the_failure_rate_moves_from_the_published_to_the_measured() -> None:
    assert failure_rate(0, 0.0) == pytest.approx(PRIOR_FAILURES_PER_NODE_DAY)
    assert failure_rate(1000, 100_000.0) == pytest.approx(0.01, rel=0.02)


def test_use_decays_by_half_in_a_half_life() -> None:
    assert decayed(100.0, HALF_LIFE_SECONDS) == pytest.approx(50.0)


def test_use_that_goes_on_decays_too() -> None:
    """The same GPUs used for two half lives: the first half counts half, whoever splits it."""
    once = accrued(8, [HALF_LIFE_SECONDS])
    assert accrued(8, [60.0, 60.0]) == pytest.approx(960.0, rel=1e-4)
    assert accrued(8, [2 * HALF_LIFE_SECONDS]) == pytest.approx(once + once / 2)
    assert accrued(8, [1e12]) == pytest.approx(8 * HALF_LIFE_SECONDS / math.log(2))


def test_an_estimate_takes_runs_of_the_size() -> None:
    def past(nodes: int, waited: float) -> Past:
        return Past(name="r", project="p", nodes=nodes, waited_seconds=waited, ran_seconds=1.0)

    queue = Queue(
        name="q", history=tuple(past(n, w) for n, w in [(4, 10), (8, 30), (2, 20), (64, 9)])
    )
    assert usual_wait(queue, 4) == (20.0, 3)
    assert usual_wait(queue, 64) is None
    assert usual_wait(None, 4) is None


def test_a_node_table_has_the_next_window() -> None:
    begins = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    table = NodeTable([NodeCapacity(node="a", window=begins), NodeCapacity(node="b")])
    assert table.window.tolist() == [begins.timestamp(), math.inf]
