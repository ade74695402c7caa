"""The queue of the controller: what shares a transaction, and what callers hear however it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from jobs.events import RankReady, Report
from monitors.types import Severity
from orchestrator.controller.controller import Controller
from orchestrator.controller.settings import ControllerSettings
from orchestrator.core.messages.events import IncidentChanged, NodeChanged, RunSubmitted
from orchestrator.core.model.entities import Incident
from orchestrator.core.model.states import IncidentState, RunState
from orchestrator.database.port import Batch
from orchestrator.errors import (
    DatabaseUnavailableError,
    LeadershipLostError,
    NotFoundError,
    NotLeaderError,
)
from tests.control_room import Room, samples
from tests.world import on_its_own, spec


class Gate:
    """Commits wait here until it is opened; then each meets what `then` does."""

    def __init__(self, room: Room) -> None:
        self._commit = room.store.commit
        self.open = asyncio.Event()
        self.then: Callable[[Batch, int], Coroutine[Any, Any, int]] = self._write
        room.store.commit = self._meet  # type: ignore[method-assign]

    async def _meet(self, batch: Batch, *, epoch: int) -> int:
        await self.open.wait()
        return await self.then(batch, epoch)

    async def _write(self, batch: Batch, epoch: int) -> int:
        return await self._commit(batch, epoch=epoch)


async def lead(room: Room) -> Controller:
    controller = await room.open()
    await room.until(lambda: controller.is_leader and bool(controller.state.nodes))
    await room.clock.settle()
    return controller


def cordon(room: Room, node: str = "node-1") -> Any:
    return room.event(NodeChanged, node=node, state="cordoned", reason="test")


def new_run(room: Room) -> Any:
    return room.event(RunSubmitted, run="run-1", spec=on_its_own(spec(nodes=1), "run-1"))


async def crowd(room: Room, workers: int) -> list[str]:
    """A run whose agents all joined, and report nothing by themselves."""
    await lead(room)
    await room.submit(nodes=workers)
    state = room.controller.state
    assert await room.until(lambda: "run-1" in state.attempts)
    await room.clock.settle()
    return [seat.worker for seat in state.attempts["run-1"].seats]


def ready(room: Room, worker: str, rank: int, sequence: int = 100) -> Report:
    event = room.event(RankReady, run="run-1", worker=worker, attempt=1, rank=rank)
    return Report(sequence=sequence, attempt=1, events=(event,))


async def test_only_reports_that_wait_next_to_each_other_share_a_transaction() -> None:
    """Nothing changes places with anything, and a report with samples stands alone."""
    room = Room(nodes=6, silent=True)
    workers = await crowd(room, 6)
    gate, before = Gate(room), len(room.store.batches)
    sampled = Report(sequence=100, attempt=1, samples=(samples(4, 1),))
    controller = room.controller
    waiting = [
        controller.submit(cordon(room, "node-6")),
        controller.report(workers[0], ready(room, workers[0], 0)),
        controller.report(workers[1], ready(room, workers[1], 1)),
        controller.submit(cordon(room, "node-5")),
        controller.report(workers[2], ready(room, workers[2], 2)),
        controller.report(workers[3], ready(room, workers[3], 3)),
        controller.report(workers[4], sampled),
        controller.report(workers[5], ready(room, workers[5], 5)),
    ]
    tasks = [asyncio.ensure_future(each) for each in waiting]
    await room.clock.settle()
    gate.open.set()
    await asyncio.gather(*tasks)
    shared = [sorted(b.sequences) for b in room.store.batches[before:] if b.sequences]
    assert shared == [workers[:2], workers[2:4], [workers[4]], [workers[5]]]
    await room.kill()


async def test_a_caller_that_goes_away_leaves_no_half_turn() -> None:
    """Its transaction is under way, or has not begun: both run to their end, as does the next."""
    room = Room()
    controller = await lead(room)
    gate = Gate(room)
    events = [new_run(room), cordon(room, "node-1"), cordon(room, "node-2")]
    first, second, third = (asyncio.create_task(controller.submit(e)) for e in events)
    await room.clock.settle()
    first.cancel()
    second.cancel()
    await room.clock.settle()
    assert first.cancelled()
    assert second.cancelled()
    gate.open.set()
    await third
    assert room.state_of() is not None
    nodes = {node.id: node.state for node in await room.store.nodes()}
    assert nodes == {"node-1": "cordoned", "node-2": "cordoned"}
    await room.kill()


async def test_a_refused_request_does_not_stop_the_queue() -> None:
    room = Room()
    controller = await lead(room)
    gate = Gate(room)
    events = [new_run(room), cordon(room, "node-99"), cordon(room)]
    tasks = [asyncio.create_task(controller.submit(e)) for e in events]
    await room.clock.settle()
    gate.open.set()
    taken, refused, cordoned = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(taken, list)
    assert isinstance(refused, NotFoundError)
    assert isinstance(cordoned, list)
    await room.kill()


async def test_a_server_that_stops_waits_for_no_database_and_says_so() -> None:
    room = Room()
    controller = await lead(room)
    gate = Gate(room)

    async def away(_batch: Batch, _epoch: int) -> int:
        raise DatabaseUnavailableError("away")

    gate.then = away
    gate.open.set()
    tasks = [asyncio.create_task(controller.submit(e)) for e in (new_run(room), cordon(room))]
    await room.clock.settle()
    await controller.stop()
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(error) for error in errors] == [NotLeaderError, NotLeaderError]
    await room.kill()


@pytest.mark.parametrize("stored", [True, False])
async def test_a_transaction_under_way_when_the_lease_is_lost_is_answered_by_what_became_of_it(
    *, stored: bool
) -> None:
    """And whatever it decided, this server carries nothing of it out."""
    room = Room()
    controller = await lead(room)
    gate = Gate(room)

    async def at_last(batch: Batch, _epoch: int) -> int:
        if not stored:
            raise LeadershipLostError("another leads")
        lease = await room.store.leader()
        assert lease is not None
        return await gate._commit(batch, epoch=lease.epoch)  # as if it had come in time

    gate.then = at_last
    asking = asyncio.create_task(controller.submit(new_run(room)))
    await room.clock.settle()
    behind = asyncio.create_task(controller.submit(cordon(room)))
    await room.store.acquire("another", 1000.0, room.clock.now(), force=True)
    controller._election._settings = ControllerSettings(holder="not alone")
    assert await room.until(lambda: not controller.is_leader)
    await room.clock.settle()
    assert isinstance(behind.exception(), NotLeaderError)
    assert not asking.done()
    gate.open.set()
    await room.clock.settle()
    assert asking.done()
    assert (asking.exception() is None) is stored
    assert not room.cluster.workers, "launched without the lead"
    await room.kill()


async def test_a_judged_incident_is_not_forgotten_while_its_request_waits() -> None:
    """It left the state long ago; any transaction in between would drop it again."""
    room = Room()
    controller = await lead(room)
    await room.submit(nodes=1)
    incident = Incident(
        id="incident-1",
        run="run-1",
        attempt=1,
        kind="signal",
        severity=Severity.WARNING,
        state=IncidentState.RESOLVED,
        reason="killed",
        opened_at=room.clock.now(),
        resolved_at=room.clock.now(),
    )
    lease = await room.store.leader()
    assert lease is not None
    await room.store.commit(Batch(entities=[incident]), epoch=lease.epoch)
    gate = Gate(room)
    judged = room.event(IncidentChanged, incident="incident-1", verdict="wrong")
    tasks = [asyncio.create_task(controller.submit(e)) for e in (cordon(room), judged)]
    await room.clock.settle()
    gate.open.set()
    await asyncio.gather(*tasks)
    assert (await room.store.incident("incident-1")).verdict == "wrong"
    await room.kill()


async def test_a_scheduling_pass_waits_for_an_empty_queue_but_not_for_ever() -> None:
    """Reports that never end must not keep a new run waiting; those that end cost one pass."""
    room = Room(nodes=3, silent=True)
    workers = await crowd(room, 2)
    controller, clock = room.controller, room.clock
    commit, passes = room.store.commit, 0

    async def slow(batch: Batch, *, epoch: int) -> int:
        nonlocal passes
        passes += any(entry.name == "scheduling_pass_due" for entry in batch.journal)
        await clock.sleep(0.3)
        return await commit(batch, epoch=epoch)

    room.store.commit = slow  # type: ignore[method-assign]
    submitted = room.event(RunSubmitted, run="run-2", spec=on_its_own(spec(nodes=1), "run-2"))
    asking = asyncio.create_task(controller.submit(submitted))
    reports = [
        asyncio.create_task(
            controller.report(worker, Report(sequence=n, attempt=1, samples=(samples(rank, n),)))
        )
        for n in range(100, 110)
        for rank, worker in enumerate(workers)
    ]
    assert await room.until(asking.done)
    assert await room.until(lambda: passes > 0)
    assert not all(task.done() for task in reports), "the queue never was empty"
    assert await room.until(lambda: all(task.done() for task in reports))
    assert room.state_of("run-2") is RunState.STARTING
    assert passes == 1
    await room.kill()
