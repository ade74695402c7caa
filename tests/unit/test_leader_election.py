"""Leader election goes on, whatever goes wrong."""

from __future__ import annotations

import asyncio

import pytest

from orchestrator.clusters.port import AgentAccess
from orchestrator.clusters.simulated import SimulatedCluster
from orchestrator.controller.controller import Controller
from orchestrator.controller.leader_election import LeaderElector
from orchestrator.controller.settings import ControllerSettings
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

    async def acquire(self, *given: object, force: bool = False) -> Lease | None:
        self._meet("acquire")
        return await super().acquire(*given, force=force)  # type: ignore[arg-type]


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
    """The epoch guards the writes: a database that is away is no reason to stop leading."""
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
    assert clock.monotonic() == 4 * 3.0
    await store.acquire("another", 1.0, clock.now(), force=True)  # over when we look again
    await clock.tick()
    assert keeping.done()
    assert await elector.acquire() == epoch + 2
