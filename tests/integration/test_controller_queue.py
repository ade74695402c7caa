"""The queue of the controller: what shares a transaction, and what callers hear however it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from jobs.events import RankReady, Report
from monitors.failures import FailureClass
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
from tests.controller_harness import Harness, samples
from tests.world import on_its_own, spec


class Gate:
    """Commits wait here until it is opened; then each meets what `then` does."""

    def __init__(self, harness: Harness) -> None:
        self._commit = harness.store.commit
        self.open = asyncio.Event()
        self.then: Callable[[Batch, int], Coroutine[Any, Any, int]] = self._write
        harness.store.commit = self._meet  # type: ignore[method-assign]

    async def _meet(self, batch: Batch, *, epoch: int) -> int:
        await self.open.wait()
        return await self.then(batch, epoch)

    async def _write(self, batch: Batch, epoch: int) -> int:
        return await self._commit(batch, epoch=epoch)


async def lead(harness: Harness) -> Controller:
    controller = await harness.open()
    await harness.until(lambda: controller.is_leader and bool(controller.state.nodes))
    await harness.clock.settle()
    return controller


def cordon(harness: Harness, node: str = "node-1") -> Any:
    return harness.event(NodeChanged, node=node, state="cordoned", reason="test")


def new_run(harness: Harness) -> Any:
    return harness.event(RunSubmitted, run="run-1", spec=on_its_own(spec(nodes=1), "run-1"))


async def crowd(harness: Harness, workers: int) -> list[str]:
    """A run whose agents all joined, and report nothing by themselves."""
    await lead(harness)
    await harness.submit(nodes=workers)
    state = harness.controller.state
    assert await harness.until(lambda: "run-1" in state.attempts)
    await harness.clock.settle()
    return [seat.worker for seat in state.attempts["run-1"].seats]


def ready(harness: Harness, worker: str, rank: int, sequence: int = 100) -> Report:
    event = harness.event(RankReady, run="run-1", worker=worker, attempt=1, rank=rank)
    return Report(sequence=sequence, attempt=1, events=(event,))


async def test_reports_that_wait_share_a_transaction_and_go_before_people() -> None:
    """The samples of their run are known first: a milestone is reached by them here."""
    harness = Harness(nodes=6, silent=True)
    workers = await crowd(harness, 6)
    gate, before = Gate(harness), len(harness.store.batches)
    sampled = Report(sequence=100, attempt=1, samples=(samples(4, 1),))
    controller = harness.controller
    waiting = [
        controller.submit(cordon(harness, "node-6")),
        controller.report(workers[0], ready(harness, workers[0], 0)),
        controller.report(workers[1], ready(harness, workers[1], 1)),
        controller.submit(cordon(harness, "node-5")),
        controller.submit(cordon(harness, "node-4")),
        controller.report(workers[2], ready(harness, workers[2], 2)),
        controller.report(workers[4], sampled),
        controller.report(workers[5], ready(harness, workers[5], 5)),
    ]
    tasks = [asyncio.ensure_future(each) for each in waiting]
    await harness.clock.settle()
    gate.open.set()
    await asyncio.gather(*tasks)
    turns = [
        next((entry.name for entry in batch.journal if entry.kind == "event"), "")
        for batch in harness.store.batches[before:]
    ]
    turns = [turn for turn in turns if turn != "scheduling_pass_due"]
    assert turns.index("step_reached") < turns.index("gang_ready")
    assert turns[: turns.index("gang_ready")].count("node_changed") <= 1
    shared = [sorted(b.sequences) for b in harness.store.batches[before:] if b.sequences]
    assert shared == [[workers[4]], [*workers[:3], workers[5]]]
    await harness.kill()


async def test_a_caller_that_goes_away_leaves_no_half_turn() -> None:
    """Its transaction is under way, or has not begun: both run to their end, as does the next."""
    harness = Harness()
    controller = await lead(harness)
    gate = Gate(harness)
    events = [new_run(harness), cordon(harness, "node-1"), cordon(harness, "node-2")]
    first, second, third = (asyncio.create_task(controller.submit(e)) for e in events)
    await harness.clock.settle()
    first.cancel()
    second.cancel()
    await harness.clock.settle()
    assert first.cancelled()
    assert second.cancelled()
    gate.open.set()
    await third
    assert harness.state_of() is not None
    nodes = {node.id: node.state for node in await harness.store.nodes()}
    assert nodes == {"node-1": "cordoned", "node-2": "cordoned"}
    await harness.kill()


async def test_a_refused_request_does_not_stop_the_queue() -> None:
    harness = Harness()
    controller = await lead(harness)
    gate = Gate(harness)
    events = [new_run(harness), cordon(harness, "node-99"), cordon(harness)]
    tasks = [asyncio.create_task(controller.submit(e)) for e in events]
    await harness.clock.settle()
    gate.open.set()
    taken, refused, cordoned = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(taken, list)
    assert isinstance(refused, NotFoundError)
    assert isinstance(cordoned, list)
    await harness.kill()


async def test_a_server_that_stops_waits_for_no_database_and_says_so() -> None:
    harness = Harness()
    controller = await lead(harness)
    gate = Gate(harness)

    async def away(_batch: Batch, _epoch: int) -> int:
        raise DatabaseUnavailableError("away")

    gate.then = away
    gate.open.set()
    tasks = [asyncio.create_task(controller.submit(e)) for e in (new_run(harness), cordon(harness))]
    await harness.clock.settle()
    await controller.stop()
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(error) for error in errors] == [NotLeaderError, NotLeaderError]
    await harness.kill()


@pytest.mark.parametrize("stored", [True, False])
async def test_a_transaction_under_way_when_the_lease_is_lost_is_answered_by_what_became_of_it(
    *, stored: bool
) -> None:
    """And whatever it decided, this server carries nothing of it out."""
    harness = Harness()
    controller = await lead(harness)
    gate = Gate(harness)

    async def at_last(batch: Batch, _epoch: int) -> int:
        if not stored:
            raise LeadershipLostError("another leads")
        lease = await harness.store.leader()
        assert lease is not None
        return await gate._commit(batch, epoch=lease.epoch)  # as if it had come in time

    gate.then = at_last
    asking = asyncio.create_task(controller.submit(new_run(harness)))
    await harness.clock.settle()
    behind = asyncio.create_task(controller.submit(cordon(harness)))
    await harness.store.acquire("another", 1000.0, harness.clock.now(), force=True)
    controller._lead.election._settings = ControllerSettings(holder="not alone")
    assert await harness.until(lambda: not controller.is_leader)
    await harness.clock.settle()
    assert isinstance(behind.exception(), NotLeaderError)
    assert not asking.done()
    gate.open.set()
    await harness.clock.settle()
    assert asking.done()
    assert (asking.exception() is None) is stored
    assert not harness.cluster.workers, "launched without the lead"
    await harness.kill()


async def test_a_judged_incident_is_not_forgotten_while_its_request_waits() -> None:
    """It left the state long ago; any transaction in between would drop it again."""
    harness = Harness()
    controller = await lead(harness)
    await harness.submit(nodes=1)
    incident = Incident(
        id="incident-1",
        run="run-1",
        attempt=1,
        kind=FailureClass.SIGNAL,
        severity=Severity.WARNING,
        state=IncidentState.RESOLVED,
        reason="killed",
        opened_at=harness.clock.now(),
        resolved_at=harness.clock.now(),
    )
    lease = await harness.store.leader()
    assert lease is not None
    await harness.store.commit(Batch(entities=[incident]), epoch=lease.epoch)
    gate = Gate(harness)
    judged = harness.event(IncidentChanged, incident="incident-1", verdict="wrong")
    tasks = [asyncio.create_task(controller.submit(e)) for e in (cordon(harness), judged)]
    await harness.clock.settle()
    gate.open.set()
    await asyncio.gather(*tasks)
    assert (await harness.store.incident("incident-1")).verdict == "wrong"
    await harness.kill()


async def test_a_scheduling_pass_waits_for_an_empty_queue_but_not_for_ever() -> None:
    """Reports that never end must not keep a new run waiting; those that end cost one pass."""
    harness = Harness(nodes=3, silent=True)
    workers = await crowd(harness, 2)
    controller, clock = harness.controller, harness.clock
    commit, passes = harness.store.commit, 0

    async def slow(batch: Batch, *, epoch: int) -> int:
        nonlocal passes
        passes += any(entry.name == "scheduling_pass_due" for entry in batch.journal)
        await clock.sleep(0.3)
        return await commit(batch, epoch=epoch)

    harness.store.commit = slow  # type: ignore[method-assign]
    submitted = harness.event(RunSubmitted, run="run-2", spec=on_its_own(spec(nodes=1), "run-2"))
    asking = asyncio.create_task(controller.submit(submitted))

    async def say(rank: int, worker: str) -> None:
        await clock.sleep(0.1 * rank)  # so that one of the two always waits
        for n in range(100, 110):
            await controller.report(worker, ready(harness, worker, rank, n))

    reports = [asyncio.create_task(say(rank, worker)) for rank, worker in enumerate(workers)]
    assert await harness.until(asking.done)
    assert await harness.until(lambda: passes > 0)
    assert not all(task.done() for task in reports), "the queue never was empty"
    assert await harness.until(lambda: all(task.done() for task in reports))
    assert harness.state_of("run-2") is RunState.STARTING
    assert passes == 1
    await harness.kill()
