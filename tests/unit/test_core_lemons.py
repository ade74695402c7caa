"""Lemon scores: on simulated fleets the lemons stand out, and healthy nodes do not."""

from __future__ import annotations

import dataclasses
import datetime as dt
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitors.failures import FailureClass
from orchestrator.core.model.entities import Fault, Node
from orchestrator.core.model.states import NodeState
from orchestrator.core.policy.lemons import (
    FACTOR,
    PUBLISHED_RATE,
    WINDOW_DAYS,
    Lemon,
    judge,
    lemons,
)

NOW = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)


def node(name: str, *days_ago: float, age: float = WINDOW_DAYS) -> Node:
    """A node of an age in days, with failures some days ago."""
    faults = tuple(
        Fault(at=NOW - dt.timedelta(days=at), run="r", failure_class=FailureClass.GPU_HARDWARE)
        for at in sorted(days_ago, reverse=True)
    )
    return Node(id=name, faults=faults, since=NOW - dt.timedelta(days=age))


def simulated(seed: int, size: int, bad: int, times: float) -> list[Node]:
    """A fleet in which some nodes, the first, fail `times` as often as the others."""
    chance, fleet = random.Random(seed), []
    for number in range(size):
        at, faults, rate = 0.0, [], PUBLISHED_RATE * (times if number < bad else 1)
        while (at := at + chance.expovariate(rate)) < WINDOW_DAYS:
            faults.append(at)
        fleet.append(node(f"n{number}", *sorted(faults)[:20]))
    return fleet


@pytest.mark.parametrize("seed", range(5))
def test_lemons_of_a_fleet_stand_out_and_healthy_nodes_do_not(seed: int) -> None:
    fleet = simulated(seed, 2000, 24, 20.0)
    found = lemons(fleet, NOW)
    scores = {name: found[name].score for name in found}
    bad = {f"n{number}" for number in range(24)}
    called = {name for name, score in scores.items() if score > 0.9}
    assert len(called & bad) >= 18
    assert sum(scores.get(name, 0.0) > 0.5 for name in bad) >= 23
    assert len(called - bad) <= 2, "of 1,976 healthy nodes"
    worst = sorted(scores, key=lambda name: -scores[name])[:20]
    assert set(worst) <= bad


@pytest.mark.parametrize("seed", range(5))
def test_a_healthy_fleet_has_no_lemons(seed: int) -> None:
    found = lemons(simulated(seed, 2000, 0, 1.0), NOW)
    assert found, "some have failed once"
    assert sum(each.score > 0.9 for each in found.values()) <= 1
    assert sum(each.score > 0.5 for each in found.values()) <= 8


def test_failures_of_all_nodes_make_no_lemon() -> None:
    fleet = [node(f"n{number}", *range(1, 6)) for number in range(100)]
    assert max(each.score for each in lemons(fleet, NOW).values()) < 0.05


def test_in_a_small_cluster_the_node_that_fails_stands_out_and_does_not_hide_itself() -> None:
    fleet = [node("bad", *range(1, 7), age=10), *(node(f"n{i}", age=10) for i in range(3))]
    found = lemons(fleet, NOW)
    assert set(found) == {"bad"}
    assert found["bad"].score > 0.9
    assert found["bad"].failures == 6
    assert found["bad"].days == pytest.approx(10)


def test_what_says_nothing_of_the_node_does_not_count() -> None:
    old = node("old", WINDOW_DAYS + 1, WINDOW_DAYS + 2, age=200)
    fault = Fault(at=NOW, run="r", failure_class=FailureClass.SIGNAL, acquitted=True)
    acquitted = Node(id="acquitted", faults=(fault,) * 9, since=NOW)
    gone = dataclasses.replace(node("gone", 1, 2, 3), state=NodeState.GONE)
    assert lemons([old, acquitted, gone, node("well")], NOW) == {}


@given(st.integers(0, 20), st.floats(0, WINDOW_DAYS), st.integers(0, 10_000), st.floats(0, 900_000))
def test_a_score_is_a_probability_that_failures_raise_and_quiet_days_lower(
    failures: int, days: float, other_failures: int, other_days: float
) -> None:
    def score(more: int = 0, quiet: float = 0.0) -> float:
        return judge(failures + more, days + quiet, other_failures, other_days).score

    assert 0 <= score() <= 1
    assert score(more=1) >= score()
    assert score(quiet=30) <= score()


def test_the_score_is_the_tail_of_the_posterior() -> None:
    found = judge(4, 60.0, 100, 20_000.0)
    usual = 101 / (20_000 + 1 / PUBLISHED_RATE)
    rate, shape = 1 / usual + 60.0, 5
    # Integrated in small steps, from the threshold on.
    step = 1e-5
    density = [
        rate**shape * x ** (shape - 1) * math.exp(-rate * x) / math.factorial(shape - 1)
        for x in (FACTOR * usual + step * (i + 0.5) for i in range(60_000))
    ]
    assert found.score == pytest.approx(sum(density) * step, rel=1e-4)
    assert found == Lemon(found.score, 4, 60.0, pytest.approx(shape / rate))
