"""The loop that the fuzzer runs on: virtual time, and processes that die between two steps."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from orchestrator.fuzz.event_loop import START, WORLD, ProcessClock, VirtualLoop, rest


@pytest.fixture
def loop() -> VirtualLoop:
    return VirtualLoop()


def until(loop: VirtualLoop, work: Coroutine[Any, Any, Any], end: float = float("inf")) -> bool:
    done = loop.run(loop.spawn(WORLD, work), end)
    loop.close()
    return done


def test_time_jumps_to_the_next_timer(loop: VirtualLoop) -> None:
    woken = []

    async def sleeper(seconds: float) -> None:
        await rest(loop, seconds)
        woken.append((seconds, loop.time()))

    async def both() -> None:
        await asyncio.gather(sleeper(3600.0), sleeper(5.0))

    assert until(loop, both())
    assert woken == [(5.0, 5.0), (3600.0, 3600.0)]


def test_a_killed_process_runs_no_more_and_not_even_its_finally(loop: VirtualLoop) -> None:
    said = []

    async def victim() -> None:
        try:
            while True:
                said.append(loop.time())
                await rest(loop, 1.0)
        finally:
            said.append(-1.0)

    async def world() -> None:
        loop.spawn("victim", victim())
        await rest(loop, 2.5)
        loop.kill("victim")
        await rest(loop, 5.0)
        assert said == [0.0, 1.0, 2.0]

    assert until(loop, world())
    assert loop.failures == []


def test_what_a_process_starts_dies_with_it(loop: VirtualLoop) -> None:
    said = []

    async def child() -> None:
        await rest(loop, 1.0)
        said.append("child")

    async def parent() -> None:
        await asyncio.gather(asyncio.create_task(child()), rest(loop, 9.0))

    async def world() -> None:
        loop.spawn("parent", parent())
        await rest(loop, 0.5)
        loop.kill("parent")
        await rest(loop, 5.0)
        assert said == []

    assert until(loop, world())


def test_a_paused_process_goes_on_where_it_stood(loop: VirtualLoop) -> None:
    said = []

    async def walker() -> None:
        for _ in range(4):
            await rest(loop, 1.0)
            said.append(loop.time())

    async def world() -> None:
        walking = loop.spawn("walker", walker())
        await rest(loop, 1.5)
        loop.pause("walker")
        await rest(loop, 10.0)
        loop.resume("walker")
        await walking

    assert until(loop, world())
    assert said == [1.0, 11.5, 12.5, 13.5]


@pytest.mark.parametrize("steps", range(5))
def test_an_interrupt_comes_between_two_steps(loop: VirtualLoop, steps: int) -> None:
    said = []

    async def victim() -> None:
        for number in range(10):
            said.append(number)
            await rest(loop, 0.0)

    async def world() -> None:
        loop.spawn("victim", victim())
        loop.interrupt("victim", steps, lambda: loop.kill("victim"))
        await rest(loop, 1.0)

    assert until(loop, world())
    assert said == list(range((steps + 1) // 2))  # a step of the task, and one of its timer


def test_a_wall_clock_may_be_wrong_and_the_monotonic_one_never(loop: VirtualLoop) -> None:
    clock = ProcessClock(loop)
    clock.ahead = -30.0
    assert (clock.now() - START).total_seconds() == -30.0
    assert clock.monotonic() == 0.0


def test_a_set_of_tasks_or_futures_has_the_same_order_in_every_loop() -> None:
    """By default they hash by address, and a set of them is in another order in each process."""

    def names_in_a_set(loop: VirtualLoop) -> list[str]:
        tasks = {loop.create_task(_for_ever(loop), name=str(n)) for n in range(20)}
        names = [task.get_name() for task in tasks]
        loop.close()
        return names

    first, second = VirtualLoop(), VirtualLoop()
    kept = [object() for _ in range(1000)]  # so that the second loop's tasks lie elsewhere
    assert names_in_a_set(first) == names_in_a_set(second)
    futures = [[hash(loop.create_future()) for _ in range(5)] for loop in (first, second)]
    assert futures[0] == futures[1]
    assert kept


def test_what_a_task_raises_is_noted_even_if_nothing_waits_for_it(loop: VirtualLoop) -> None:
    async def fails() -> None:
        await rest(loop, 1.0)
        raise ValueError("ranks cannot step")

    async def world() -> None:
        loop.spawn("worker", fails())
        await rest(loop, 5.0)

    assert until(loop, world())
    assert loop.failures == ["a task of worker failed: ValueError('ranks cannot step')"]


def test_it_ends_when_nothing_is_left_to_run(loop: VirtualLoop) -> None:
    assert not until(loop, _for_ever(loop))


def test_it_ends_at_its_end(loop: VirtualLoop) -> None:
    assert not until(loop, rest(loop, 100.0), end=50.0)
    assert loop.time() <= 50.0


async def _for_ever(loop: VirtualLoop) -> None:
    await loop.create_future()
