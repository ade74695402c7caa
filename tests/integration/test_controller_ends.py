"""Ends of agents: none is lost between two leaders, and none while the cluster cannot tell."""

from __future__ import annotations

from orchestrator.controller.background_loops import ASK_SECONDS, STOPS_LONG
from orchestrator.core.messages.events import RunCancelled, WorkerLost
from orchestrator.core.model.states import RunState, WorkerState
from orchestrator.database.port import Batch
from orchestrator.errors import LeadershipLostError
from tests.controller_harness import Harness


async def training() -> tuple[Harness, str]:
    """A run that has just started, and its first worker."""
    harness = Harness(nodes=2, silent=True)
    controller = await harness.open()
    await harness.until(lambda: controller.is_leader and bool(controller.state.nodes))
    await harness.submit()
    assert await harness.until(lambda: harness.state_of("run-1") is RunState.STARTING)
    return harness, next(iter(controller.state.workers))


async def test_an_end_that_a_deposed_leader_heard_of_is_told_to_the_next() -> None:
    harness, worker = await training()
    commit = harness.store.commit
    refused: list[str] = []

    async def deposed(batch: Batch, *, epoch: int) -> int:
        if any(entry.name == "worker_lost" for entry in batch.journal) and not refused:
            refused.append(worker)
            raise LeadershipLostError("another leads")
        return await commit(batch, epoch=epoch)

    harness.store.commit = deposed  # type: ignore[method-assign]
    harness.cluster.die(worker)
    assert await harness.until(lambda: bool(refused))
    assert not harness.cluster.workers[worker].acknowledged
    controller = harness.controller
    assert await harness.until(lambda: harness.cluster.workers[worker].acknowledged)
    assert worker not in controller.state.workers
    await harness.kill()


async def test_a_cluster_that_could_not_tell_is_asked_again() -> None:
    harness, worker = await training()
    cluster, node = harness.cluster, harness.cluster.workers[worker].node
    cluster.partition(node)
    cluster.die(worker)
    cluster.workers[worker].acknowledged = True  # the word of it has got lost
    lost = harness.event(
        WorkerLost, run="run-1", worker=worker, confirmed=False, reason="no sign of life"
    )
    await harness.controller.submit(lost)
    state = harness.controller.state
    await harness.clock.settle()  # the cluster is asked, and cannot tell
    assert state.workers[worker].state is WorkerState.LOST
    cluster.unreachable.remove(node)
    assert await harness.until(lambda: worker not in state.workers)
    told = [entry.reason for entry in await harness.store.journal(limit=10_000)]
    assert "no process of it is alive" in told
    assert harness.clock.monotonic() < 2 * ASK_SECONDS
    await harness.kill()


async def test_the_end_of_an_agent_that_was_stopped_is_asked_for_where_nobody_tells_it() -> None:
    """It was told, to a database that a backup has replaced."""
    harness, worker = await training()
    cluster, node = harness.cluster, harness.cluster.workers[worker].node
    cluster.partition(node)
    await harness.controller.submit(harness.event(RunCancelled, run="run-1"))
    workers = harness.controller.state.workers
    assert await harness.until(lambda: workers[worker].state is WorkerState.STOPPING)
    stopped = harness.clock.monotonic()
    await harness.clock.settle()  # the cluster takes the order, for when the node can be reached
    cluster.die(worker)
    cluster.workers[worker].acknowledged = True
    cluster.unreachable.remove(node)
    assert await harness.until(lambda: worker not in workers)
    assert STOPS_LONG < harness.clock.monotonic() - stopped < STOPS_LONG + 2 * ASK_SECONDS
    await harness.kill()
