"""Timers go by durations: a wall clock that is set fires none early, and delays none."""

from __future__ import annotations

import datetime as dt

import pytest

from orchestrator.controller.steady_timers import SteadyTimers
from orchestrator.core.model.state import State
from orchestrator.core.model.vocabulary import Timer
from tests.world import World, spec, trained

FENCE = 120.0


class SetClock:
    """A clock whose wall time can be set."""

    def __init__(self, start: dt.datetime) -> None:
        self._start, self._passed, self.ahead = start, 0.0, 0.0

    def now(self) -> dt.datetime:
        return self._start + dt.timedelta(seconds=self._passed + self.ahead)

    def monotonic(self) -> float:
        return self._passed

    def advance(self, seconds: float) -> None:
        self._passed += seconds

    async def sleep(self, seconds: float) -> None:
        self.advance(seconds)


def stopping() -> World:
    """A run whose attempt is being stopped, without an answer: it is fenced after two minutes."""
    world = trained(20)
    world.slow = True
    world.die()
    return world


def fenced_after(timers: SteadyTimers, clock: SetClock, state: State, seconds: float) -> bool:
    """Whether the fence falls due in this time, looked at twice a second."""
    for _ in range(int(seconds * 2)):
        clock.advance(0.5)
        if any(each.timer is Timer.FENCE for each in timers.due(state)):
            return True
    return False


@pytest.mark.parametrize("step", [-86400.0, -3600.0, -90.0, 0.0, 0.9, 90.0, 3600.0, 86400.0])
@pytest.mark.parametrize("after", [0.0, 40.0])
def test_a_fence_falls_due_after_its_seconds(step: float, after: float) -> None:
    world = stopping()
    clock = SetClock(world.now)
    timers = SteadyTimers(clock)
    assert not fenced_after(timers, clock, world.state, after)
    clock.ahead += step
    assert not fenced_after(timers, clock, world.state, FENCE - after - 2.0)
    assert fenced_after(timers, clock, world.state, 4.0)


@pytest.mark.parametrize("back", [90.0, 3600.0, 86400.0])
def test_a_clock_that_was_set_back_while_nobody_led_delays_little(back: float) -> None:
    """The next lead finds an attempt in the database that begins after its own time.

    Nothing tells how much time has passed since, so it counts from the begin of the attempt.
    """
    world = stopping()
    age = (world.now - world.attempt().started_at).total_seconds()
    clock = SetClock(world.now)
    clock.ahead = -back - age
    timers = SteadyTimers(clock)
    assert not fenced_after(timers, clock, world.state, FENCE)
    assert fenced_after(timers, clock, world.state, age + 1.0)


def test_clocks_of_two_servers_may_differ_a_little() -> None:
    world = stopping()
    clock = SetClock(world.now)
    clock.ahead = -30.0
    assert not fenced_after(SteadyTimers(clock), clock, world.state, FENCE + 28.0)


def test_every_step_counts_and_what_is_set_later_goes_by_the_new_time() -> None:
    world = stopping()
    clock = SetClock(world.now)
    timers = SteadyTimers(clock)
    for step in (7200.0, -600.0, 30.0):
        clock.ahead += step
        assert not fenced_after(timers, clock, world.state, 30.0)
    assert timers.until_next(world.state) is None, "no busy loop over a time that has passed"
    assert fenced_after(timers, clock, world.state, 31.0)

    world.now = clock.now()
    world.submit(spec("second", max_runtime=600), run="run-2")
    world.settle()
    assert world.run("run-2").due(Timer.MAX_RUNTIME) is not None
    clock.advance(599.0)
    assert not [each for each in timers.due(world.state) if each.run == "run-2"]
    clock.advance(1.5)
    [due] = [each for each in timers.due(world.state) if each.run == "run-2"]
    assert due.timer is Timer.MAX_RUNTIME


def test_a_timer_that_was_cancelled_after_a_step_does_not_fire() -> None:
    world = stopping()
    clock = SetClock(world.now)
    timers = SteadyTimers(clock)
    clock.ahead = 3600.0
    timers.due(world.state)
    world.slow = False
    world.settle()
    assert not fenced_after(timers, clock, world.state, FENCE + 10.0)
