"""Limits learned from the figures of like nodes."""

from __future__ import annotations

import random

import pytest

from monitors.hardware.limits import FleetLimits

LIMITS = FleetLimits()


def test_few_nodes_give_no_limit() -> None:
    assert LIMITS.lower([100.0] * 7) is None
    assert LIMITS.upper([0.0] * 7, 1.0) is None


def test_equal_nodes_leave_a_fifth_of_the_median() -> None:
    assert LIMITS.lower([100.0] * 8) == pytest.approx(80.0)


def test_no_healthy_node_fails_and_each_slow_one_does_whatever_the_spread() -> None:
    for seed in range(20):
        chance = random.Random(seed)
        rate, spread = 10 ** chance.uniform(0, 4), chance.uniform(0.001, 0.05)
        fleet = [chance.gauss(rate, spread * rate) for _ in range(200)]
        slow = [0.6 * rate] * 6  # they must not hide each other
        for place, figure in enumerate(fleet):
            limit = LIMITS.lower([*fleet[:place], *fleet[place + 1 :], *slow])
            assert limit is not None
            assert figure >= limit
        limit = LIMITS.lower([*fleet, *slow[1:]])
        assert limit is not None
        assert slow[0] < limit


def test_figures_that_spread_widely_have_no_limit_rather_than_one_below_zero() -> None:
    assert LIMITS.lower([1.0, 100.0, 3.0, 80.0, 2.0, 90.0, 1.0, 70.0]) is None


def test_a_clock_may_differ_by_the_least_margin() -> None:
    assert LIMITS.upper([0.001] * 8, 1.0) == pytest.approx(1.001)
