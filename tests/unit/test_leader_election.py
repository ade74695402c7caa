"""Leader election goes on, whatever goes wrong."""

from __future__ import annotations

import asyncio
import datetime as dt

import pytest

from orchestrator.clusters.port import AgentAccess
from orchestrator.clusters.simulated import SimulatedCluster
from orchestrator.controller.controller import Controller
from orchestrator.controller.leader_election import LeaderElector
from orchestrator.controller.settings import ControllerSettings
from orchestrator.core.messages.events import RunHeld
from orchestrator.database.memory_store import MemoryStore
from orchestrator.database.port import Lease, Snapshot
from orchestrator.errors import DatabaseUnavailableError
from tests.controller_harness import VirtualClock


class Flaky(MemoryStore):
    """A store whose calls fail with the given errors, in turn."""

    def __init__(self, **errors: list[Exception]) -> None:
        super().__init__()
        self._errors = errors

    def _meet(self, name: str) -> None:
        if left := self._errors.get(name):
            raise left.pop(0)

    async def load(self) -> Snapshot:
        self._meet("load")
        return await super().load()

    async def acquire(self, *given: object, **more: object) -> Lease | None:
        self._meet("acquire")
        return await super().acquire(*given, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "errors",
    [
        {"load": [ValueError("what is stored cannot be read")]},  # the server must not lead nothing
        {"load": [DatabaseUnavailableError("away")]},
        {"acquire": [DatabaseUnavailableError("away"), KeyError("a defect")]},
    ],
)
async def test_a_server_that_cannot_begin_to_lead_tries_again(
    errors: dict[str, list[Exception]],
) -> None:
    clock = VirtualClock()
    controller = Controller(
        Flaky(**errors),
        SimulatedCluster([], clock),
        clock,
        settings=ControllerSettings(holder="me"),
        agent_access=lambda run, worker: AgentAccess("ws://127.0.0.1:1/agent", "token"),
    )
    await controller.start()
    await clock.settle()
    assert not controller.is_leader
    for _ in range(4):
        await clock.tick()
    assert controller.is_leader
    await controller.stop()


async def test_a_lease_is_kept_through_errors_and_until_another_has_held_it() -> None:
    """Two failed renewals are no reason to stop leading: the lease lives on."""
    clock, settings = VirtualClock(), ControllerSettings(holder="me", lease_seconds=9.0)
    store = Flaky(acquire=[])
    elector = LeaderElector(store, clock, settings)
    epoch = await elector.acquire()
    store._errors["acquire"] = [DatabaseUnavailableError("away"), KeyError("a defect")]
    keeping = asyncio.create_task(elector.keep(epoch))
    await clock.settle()
    for _ in range(4):
        await clock.tick()
    assert not keeping.done()
    assert elector.is_fresh
    await store.acquire("another", 1.0, clock.now(), force=True)  # over when we look again
    await clock.tick()
    assert keeping.done()
    assert await elector.acquire() == epoch + 2


async def test_a_clock_that_is_set_back_does_not_keep_the_lease_of_a_dead_holder() -> None:
    clock, store = VirtualClock(), MemoryStore()
    settings = ControllerSettings(holder="me", lease_seconds=9.0)
    hour = dt.timedelta(hours=1)
    await store.acquire("other", 9.0, clock.now() + hour)
    seeking = asyncio.create_task(LeaderElector(store, clock, settings).acquire())
    renewed = 0.0
    while clock.monotonic() < 30:
        if clock.monotonic() > renewed + 3:  # it lives: it is left the lead
            await store.acquire("other", 9.0, clock.now() + hour)
            renewed = clock.monotonic()
        await clock.tick()
        assert not seeking.done()
    while not seeking.done():
        await clock.tick()
    assert await seeking == 2
    assert settings.lease_seconds < clock.monotonic() - renewed < 2 * settings.lease_seconds


@pytest.mark.parametrize("alone", [False, True])
async def test_a_leader_that_cannot_renew_steps_down_when_another_may_lead(alone: bool) -> None:
    clock = VirtualClock()
    settings = ControllerSettings(holder="me", lease_seconds=9.0, alone=alone)
    store = Flaky(acquire=[])
    elector = LeaderElector(store, clock, settings)
    epoch = await elector.acquire()
    store._errors["acquire"] = [DatabaseUnavailableError("away")] * 1000
    keeping = asyncio.create_task(elector.keep(epoch))
    await clock.settle()
    while clock.monotonic() + 0.5 < 9.0:
        await clock.tick()
    assert elector.is_fresh
    assert not keeping.done()
    for _ in range(3):
        await clock.tick()
    assert keeping.done() is not alone
    assert elector.is_fresh is alone
    keeping.cancel()


async def test_a_server_that_is_cut_off_says_at_once_that_it_does_not_lead() -> None:
    """Also while the renewal hangs, and while a transaction waits for the database."""
    clock = VirtualClock()
    store = Flaky()
    controller = Controller(
        store,
        SimulatedCluster([], clock),
        clock,
        settings=ControllerSettings(holder="me", lease_seconds=9.0),
        agent_access=lambda run, worker: AgentAccess("ws://127.0.0.1:1/agent", "token"),
    )
    await controller.start()
    await clock.settle()
    assert controller.is_leader
    away = asyncio.Event()
    acquire = store.acquire

    async def hang(*given: object, **more: object) -> Lease | None:
        await away.wait()
        return await acquire(*given, **more)

    async def fail(*_given: object, **_more: object) -> int:
        raise DatabaseUnavailableError("away")

    store.acquire = hang  # type: ignore[method-assign]
    store.commit = fail  # type: ignore[method-assign]
    event = RunHeld(id="E1", at=clock.now(), run=None, actor="operator:mia")
    asking = asyncio.create_task(controller.submit(event))
    for _ in range(30):
        await clock.tick()
    assert clock.monotonic() > 9.0
    assert not controller.is_leader, "healthz and metrics go by it"
    store.acquire = acquire  # type: ignore[method-assign]
    away.set()
    await clock.settle()
    asking.cancel()
    await controller.stop()
