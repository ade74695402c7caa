"""The label of the Pod whose server leads, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Self

import pytest

from jobs.clock import Clock
from orchestrator.clusters.kubernetes.leader_label import (
    LOOK_SECONDS,
    REPEAT_SECONDS,
    LabelError,
    keep,
)

pytestmark = pytest.mark.asyncio


class Steps:
    """A clock whose sleeps end when the test lets them."""

    def __init__(self) -> None:
        self.time, self._turn, self._slept = 0.0, asyncio.Event(), asyncio.Event()

    def monotonic(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self._slept.set()
        await self._turn.wait()
        self._turn.clear()
        self.time += seconds

    async def look(self) -> None:
        """Let the server look once more."""
        self._slept.clear()
        self._turn.set()
        await self._slept.wait()

    async def started(self) -> None:
        await self._slept.wait()


class FakePods:
    """Pods of a release, and the number of calls."""

    def __init__(self, *labelled: str) -> None:
        self.names, self.calls, self.away = set(labelled), 0, False

    async def labelled(self) -> Sequence[str]:
        return sorted(self.names)

    async def label(self, name: str, *, leads: bool) -> None:
        if self.away:
            raise LabelError("away")
        self.calls += 1
        (self.names.add if leads else self.names.discard)(name)

    async def close(self) -> None:
        self.away = True


class Server:
    """A server `b` beside `a`, which had the label before."""

    def __init__(self, pods: FakePods) -> None:
        self.leads, self.clock, self.pods = False, Steps(), pods

    async def __aenter__(self) -> Self:
        clock: Clock = self.clock  # type: ignore[assignment]
        self.task = asyncio.create_task(keep("b", self.pods, lambda: self.leads, clock))
        await self.clock.started()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def test_the_label_goes_to_the_server_that_leads_and_leaves_it() -> None:
    async with Server(FakePods("a")) as server:
        assert server.pods.names == {"a"}
        server.leads = True
        await server.clock.look()
        assert server.pods.names == {"b"}
        server.leads = False
        await server.clock.look()
        assert server.pods.names == set()


async def test_a_container_that_starts_again_loses_the_label_of_its_pod() -> None:
    async with Server(FakePods("b")) as server:
        assert server.pods.names == set()


async def test_the_label_comes_once_the_api_is_back() -> None:
    async with Server(FakePods("a")) as server:
        server.leads = server.pods.away = True
        await server.clock.look()
        assert server.pods.names == {"a"}
        server.pods.away = False
        await server.clock.look()
        assert server.pods.names == {"b"}


async def test_a_label_that_somebody_removed_comes_back_and_costs_few_calls() -> None:
    async with Server(FakePods()) as server:
        server.leads = True
        await server.clock.look()
        calls = server.pods.calls
        server.pods.names.clear()
        for _ in range(int(REPEAT_SECONDS / LOOK_SECONDS) + 1):
            await server.clock.look()
        assert server.pods.names == {"b"}
        assert server.pods.calls == calls + 1
