"""What repeats is learned: the third rise that comes back by itself is no alarm, a worse one is."""

from __future__ import annotations

import math
import zlib

import numpy as np
import pytest

from benchmarks.support.loss_repeats import REPEATING, WANDERING, bumps_at_any_time
from benchmarks.support.loss_verdicts import sample_of
from monitors.loss import LossMonitor
from monitors.types import Finding, FindingKind

_DRAWS = range(4)


def made(maker, draw):
    return maker(np.random.default_rng([draw, zlib.crc32(maker.__name__.encode())]))


def acts(monitor, losses, first=1, attempt=1) -> list[Finding]:
    """What automation would act on."""
    return [
        finding
        for step, loss in enumerate(losses, first)
        for finding in monitor.observe(sample_of(step, float(loss), attempt))
        if finding.kind in (FindingKind.LOSS_SPIKE, FindingKind.NON_FINITE)
    ]


def names(maker):
    return maker.__name__


@pytest.mark.parametrize("maker", REPEATING, ids=names)
@pytest.mark.parametrize("draw", _DRAWS)
def test_the_third_rise_is_no_alarm_and_an_explosion_is_found(maker, draw):
    series, monitor = made(maker, draw), LossMonitor()
    found = acts(monitor, series.losses)
    assert len(found) <= 2
    assert not [f.detected_step for f in found if f.detected_step > series.known_from]
    steps = len(series.losses)
    exploded = 2.5 * np.max(series.losses[series.known_from :]) * np.ones(20)
    [explosion, *_] = acts(monitor, exploded, first=steps + 1)
    assert explosion.detected_step <= steps + 5
    [lost, *_] = acts(monitor, [math.nan] * 2, first=steps + 21)
    assert lost.kind is FindingKind.NON_FINITE


@pytest.mark.parametrize("maker", REPEATING, ids=names)
@pytest.mark.parametrize("back", [0, 40])
def test_what_was_learned_outlives_a_restart(maker, back):
    """A crash between the second half of the rises; the run resumes some steps before it."""
    for draw in _DRAWS:
        series, monitor = made(maker, draw), LossMonitor()
        crash = (series.rises[3] + series.rises[4]) // 2
        acts(monitor, series.losses[:crash])
        resumed = crash - back
        again = acts(monitor, series.losses[resumed:], first=resumed + 1, attempt=2)
        assert not [(draw, f.onset_step, f.detected_step) for f in again]


@pytest.mark.parametrize("draw", _DRAWS)
def test_a_rise_like_the_others_that_does_not_come_back_is_found(draw):
    series, monitor = made(bumps_at_any_time, draw), LossMonitor()
    assert len(acts(monitor, series.losses)) <= 2
    steps = len(series.losses)
    calm, first = np.median(series.losses[-200:]), series.rises[0]
    height = np.max(series.losses[first : first + 60]) / np.median(series.losses[:first][-60:])
    stays = calm * height * (1 + 0.01 * np.random.default_rng(draw).standard_normal(400))
    [found, *_] = acts(monitor, stays, first=steps + 1)
    assert steps - 20 <= found.onset_step <= steps + 10
    assert found.detected_step <= steps + 250


@pytest.mark.parametrize("maker", WANDERING, ids=names)
@pytest.mark.parametrize("draw", range(6))
def test_a_level_that_wanders_is_left_alone_and_its_explosion_is_found(maker, draw):
    """The value loss of a policy: it follows no trend, and rises for hundreds of steps."""
    series, monitor = made(maker, draw), LossMonitor()
    assert not acts(monitor, series.losses)
    steps = len(series.losses)
    exploded = 10 * np.max(series.losses) * np.ones(20)
    [explosion, *_] = acts(monitor, exploded, first=steps + 1)
    assert explosion.detected_step <= steps + 5


def test_a_rise_that_came_again_after_each_rollback_need_not_be_learned_once_more():
    """Two rollbacks at one place, and none at the places of the later rises."""
    rng = np.random.default_rng(5)
    losses = 2.0 * (1 + 0.01 * rng.standard_normal(2600))
    for start in (400, 950, 1300, 2100):
        losses[start : start + 6] *= 1.5
    monitor, place, attempt, rollbacks = LossMonitor(), 0, 1, []
    while place < len(losses):
        found = acts(monitor, losses[place : place + 1], first=place + 1, attempt=attempt)
        place += 1
        if found:
            rollbacks.append(found[0].onset_step)
            attempt, place = attempt + 1, place // 100 * 100 - 100
            monitor.reset(attempt, place)
    assert rollbacks == [401, 401]
