"""How often fingerprints are taken: cheap, at steps that all ranks share."""

from __future__ import annotations

import pytest

from babysit.fingerprints import FINGERPRINTS_PER_SECOND, SHARE, Interval


def steps_taken(
    cost: float, pace: float, *, world_size: int = 1, steps: int = 3000, first: int = 1
) -> list[int]:
    interval, now, taken = Interval(world_size), 0.0, []
    for step in range(first, first + steps):
        now += pace
        if interval.is_due(step):
            interval.taken(step, now, now + cost)
            now += cost
            taken.append(step)
    return taken


@pytest.mark.parametrize(("cost", "pace"), [(0.002, 0.5), (0.1, 0.2), (0.5, 0.01)])
def test_fingerprints_cost_less_than_a_percent(cost: float, pace: float) -> None:
    steps = 60_000 if cost > pace else 3000
    taken = steps_taken(cost, pace, steps=steps)
    assert len(taken) * cost < 0.01 * steps * pace
    assert taken[2] - taken[1] <= 4 * max(1.0, cost / (SHARE * pace))


def test_a_large_run_does_not_flood_the_control_plane() -> None:
    taken = steps_taken(0.0001, 0.1, world_size=4096)
    assert 4096 * len(taken) / (3000 * 0.1) < 2 * FINGERPRINTS_PER_SECOND


def test_a_cheap_one_is_taken_at_each_step() -> None:
    assert steps_taken(0.0001, 0.1, steps=50) == list(range(1, 51))


def test_ranks_of_different_speed_share_the_steps_of_the_slower_one() -> None:
    quick, slow = (set(steps_taken(cost, 0.1, first=7)) for cost in (0.002, 0.02))
    assert {7, 8} < quick
    assert slow - quick == set()
    assert len(slow) > 10
