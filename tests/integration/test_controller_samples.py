"""Samples apart from the turn: seen at once, stored together, acknowledged when stored."""

from __future__ import annotations

import asyncio
from typing import Any

from jobs.events import RankExited, Report
from monitors.failures import Failure, FailureClass
from orchestrator.core.messages.events import NodeChanged
from orchestrator.database.port import Batch
from orchestrator.errors import InvariantError
from tests.controller_harness import Harness, samples
from tests.integration.test_controller_queue import Gate, crowd, lead, ready

KILLED = Failure(failure_class=FailureClass.SIGNAL, reason="SIGKILL", signature="9")


def steps(rank: int, *numbers: int, sequence: int) -> Report:
    return Report(
        sequence=sequence, attempt=1, samples=tuple(samples(rank, number) for number in numbers)
    )


def exited(harness: Harness, worker: str, rank: int, sequence: int) -> Report:
    event = harness.event(
        RankExited,
        run="run-1",
        worker=worker,
        attempt=1,
        rank=rank,
        code=-9,
        failure=KILLED,
        last_step=7,
    )
    return Report(sequence=sequence, attempt=1, events=(event,))


def names(batch: Batch) -> list[str]:
    return [entry.name for entry in batch.journal if entry.kind == "event"]


async def training(harness: Harness, workers: int) -> list[str]:
    """A run whose agents have told the first step; nothing waits to be stored."""
    crew = await crowd(harness, workers)
    first = asyncio.create_task(harness.controller.report(crew[0], steps(0, 1, sequence=50)))
    assert await harness.until(first.done)
    harness.store.batches.clear()
    return crew


async def test_samples_of_all_agents_share_a_transaction_and_are_acknowledged_with_it() -> None:
    harness = Harness(nodes=8, silent=True)
    workers = await training(harness, 8)
    step = 2
    reports = [
        asyncio.create_task(
            harness.controller.report(worker, steps(rank, step, sequence=100 + number))
        )
        for number in range(5)
        for rank, worker in enumerate(workers)
    ]
    await harness.clock.settle()
    assert not any(report.done() for report in reports), "seen, and not stored"
    assert not harness.store.batches
    assert await harness.until(lambda: all(report.done() for report in reports))
    (batch,) = harness.store.batches
    assert dict(batch.sequences) == dict.fromkeys(workers, 104)
    assert {rank.rank for each in batch.samples for rank in each.ranks} == {0}, "who speaks"
    await harness.kill()


async def test_an_exit_waits_neither_for_samples_nor_for_people() -> None:
    """A few transactions come before its own, whatever waits; and it knows the steps."""
    harness = Harness(nodes=3, silent=True)
    workers = await training(harness, 2)
    gate, controller = Gate(harness), harness.controller
    waiting: list[Any] = [
        controller.submit(
            harness.event(NodeChanged, node="node-3", state="cordoned", reason=f"person {n}")
        )
        for n in range(50)
    ]
    waiting += [controller.report(workers[0], steps(0, n, sequence=n)) for n in range(100, 1000)]
    waiting.append(controller.report(workers[1], exited(harness, workers[1], 1, 100)))
    tasks = [asyncio.ensure_future(each) for each in waiting]
    await harness.clock.settle()
    gate.open.set()
    batches = harness.store.batches
    assert await harness.until(lambda: any("rank_exited" in names(batch) for batch in batches))
    turns = [names(batch) for batch in batches]
    place = next(at for at, turn in enumerate(turns) if "rank_exited" in turn)
    assert sum("node_changed" in turn for turn in turns[:place]) <= 1, "a person in between"
    assert place <= 3, "the samples of the run, progress before that person's request, the request"
    assert harness.controller.state.attempts["run-1"].step == 999, "nothing of it is lost"
    assert await harness.until(lambda: all(task.done() for task in tasks))
    assert not [task for task in tasks[50:] if task.exception()]
    await harness.kill()


async def test_a_report_that_comes_again_before_it_is_stored_is_played_once() -> None:
    """Over another connection, say. Both are answered when it is stored."""
    harness = Harness(nodes=1, silent=True)
    (worker,) = await training(harness, 1)
    report = steps(0, 2, 3, sequence=100)
    tasks = [asyncio.create_task(harness.controller.report(worker, report)) for _ in range(2)]
    await harness.clock.settle()
    assert not any(task.done() for task in tasks)
    assert await harness.until(lambda: all(task.done() for task in tasks))
    assert await harness.store.sample_total("run-1") == 3
    await harness.kill()


async def test_samples_are_stored_before_a_later_event_of_their_worker() -> None:
    """So that a sequence that is stored speaks for all before it, whenever the server dies."""
    harness = Harness(nodes=2, silent=True)
    workers = await training(harness, 2)
    gate, controller = Gate(harness), harness.controller
    tasks = [
        asyncio.create_task(controller.report(workers[0], each))
        for each in (
            steps(0, 2, sequence=100),
            ready(harness, workers[0], 0, 101),
            steps(0, 3, sequence=102),
            ready(harness, workers[0], 0, 103),
        )
    ]
    await harness.clock.settle()
    gate.open.set()
    assert await harness.until(lambda: all(task.done() for task in tasks))
    seen = 0
    for batch in harness.store.batches:
        if workers[0] in batch.sequences:
            assert all(seen < each.sequence for each in batch.samples if each.sequence)
            seen = batch.sequences[workers[0]]
    assert seen == 103
    assert await harness.store.sample_total("run-1") == 3
    await harness.kill()


async def test_samples_that_the_database_refuses_cost_no_other_agent_anything() -> None:
    harness = Harness(nodes=4, silent=True)
    workers = await training(harness, 2)
    commit = harness.store.commit

    async def refuse(batch: Batch, *, epoch: int) -> int:
        if any(3 in rank.step for each in batch.samples for rank in each.ranks):
            raise InvariantError("refused")
        return await commit(batch, epoch=epoch)

    harness.store.commit = refuse  # type: ignore[method-assign]
    tasks = [
        asyncio.create_task(
            harness.controller.report(workers[rank], steps(rank, n, sequence=100 + n))
        )
        for n in (2, 3, 4)
        for rank in (0, 1)
    ]
    await harness.clock.settle()
    leaving = exited(harness, workers[1], 1, 105)
    tasks.append(asyncio.create_task(harness.controller.report(workers[1], leaving)))
    assert await harness.until(lambda: all(task.done() for task in tasks))
    assert not [task for task in tasks if task.exception()]
    assert await harness.store.sample_total("run-1") == 3, "steps 1, 2 and 4"
    assert any("rank_exited" in names(batch) for batch in harness.store.batches)
    await harness.kill()


async def test_what_is_not_stored_when_a_server_ends_is_not_acknowledged() -> None:
    harness = Harness(nodes=1, silent=True)
    (worker,) = await training(harness, 1)
    controller = harness.controller
    report = asyncio.create_task(controller.report(worker, steps(0, 2, sequence=100)))
    await harness.clock.settle()
    await controller.stop()
    await harness.clock.settle()
    assert report.exception() is not None
    await lead(harness)
    again = asyncio.create_task(harness.controller.report(worker, steps(0, 2, sequence=100)))
    assert await harness.until(again.done)
    assert await harness.store.sample_total("run-1") == 2
    await harness.kill()


async def test_the_lag_of_the_queue_is_told_while_the_database_does_not_answer() -> None:
    harness = Harness(nodes=1, silent=True)
    (worker,) = await training(harness, 1)
    controller = harness.controller
    assert controller.lag.sentence == ""
    gate = Gate(harness)
    report = asyncio.create_task(controller.report(worker, exited(harness, worker, 0, 100)))
    began = harness.clock.monotonic()
    assert await harness.until(lambda: harness.clock.monotonic() - began > 10.0)
    assert controller.lag.queue >= 10.0
    assert "waits for 10 s" in controller.lag.sentence
    gate.open.set()
    assert await harness.until(report.done)
    assert await harness.until(lambda: controller.lag.sentence == "")
    await harness.kill()
