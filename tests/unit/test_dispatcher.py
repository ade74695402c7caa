"""The dispatcher, when the world outside answers with errors that no port should raise."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import pytest
import structlog

from jobs.events import Event
from monitors.types import Severity
from orchestrator.clusters.port import AgentAccess, WorkerLaunch
from orchestrator.clusters.simulated import SimulatedCluster
from orchestrator.controller.dispatcher import PAUSES, OutboxDispatcher
from orchestrator.controller.event_factory import EventFactory
from orchestrator.controller.live_state import LiveState
from orchestrator.controller.turn_queue import EventRequest, TurnQueue
from orchestrator.core.messages.instructions import LaunchWorker, Notify, ProbeWorker, StopWorker
from orchestrator.core.messages.notice_events import AskDelivered
from orchestrator.core.model.entities import Worker
from orchestrator.core.model.state import State
from orchestrator.database.memory_store import MemoryStore
from orchestrator.errors import LeadershipLostError
from tests.controller_harness import VirtualClock
from tests.world import trained


class Flaky:
    """A notifier, or a cluster, that fails a number of times in its own way."""

    channel = "test"
    ignored_fields: Mapping[str, str] = {}

    def __init__(self, failures: int) -> None:
        self.left = failures
        self.done: list[str] = []

    async def _do(self, what: str) -> None:
        if self.left:
            self.left -= 1
            raise RuntimeError("nobody has foreseen this")
        self.done.append(what)

    async def notify(self, notice: Notify) -> None:
        await self._do(notice.text)

    async def stop(self, worker: str, run: str) -> None:
        await self._do(f"{run}: {worker}")


class Desk:
    """A dispatcher over a state of its own."""

    def __init__(self, flaky: Flaky, *workers: str) -> None:
        self.clock = VirtualClock()
        cluster = SimulatedCluster([], self.clock)
        cluster.stop = flaky.stop  # type: ignore[method-assign]
        events = EventFactory(self.clock)
        self.queue = TurnQueue(events)
        self.live = live = LiveState(MemoryStore(), self.clock, events)
        live.state = State(
            Worker(id=worker, run="run-1", node="node-1", launched_at=self.clock.now())
            for worker in workers
        )
        self.dispatcher = OutboxDispatcher(
            cluster,
            flaky,
            self.clock,
            live=live,
            queue=self.queue,
            agent_access=lambda run, worker: AgentAccess("ws://127.0.0.1:1/agent", "token"),
        )
        self.noted = self.dispatcher.receipts

    async def ticks(self, count: int) -> None:
        for _ in range(count):
            await self.clock.tick()


STOP = StopWorker(id="i-1", cause="e-1", run="run-1", reason="", worker="w-1", node="node-1")
LAUNCH = LaunchWorker(id="i-4", cause="e-1", run="run-1", reason="", worker="w-1", node="node-1")
PROBE = ProbeWorker(id="i-3", cause="e-1", run="run-1", reason="", worker="w-1", node="node-1")
PAGE = Notify(
    id="i-2",
    cause="e-1",
    run="run-1",
    reason="",
    severity=Severity.CRITICAL,
    text="wake up",
    incident_kind="hang",
)


@pytest.mark.parametrize(("order", "what"), [(STOP, "run-1: w-1"), (PAGE, "wake up")])
async def test_what_fails_unforeseen_is_tried_again_with_back_off(
    order: StopWorker | Notify, what: str
) -> None:
    flaky = Flaky(failures=3)
    desk = Desk(flaky, "w-1")
    desk.dispatcher.dispatch([order])
    await desk.clock.settle()
    assert (desk.noted, flaky.done) == ([], [])
    await desk.ticks(3)
    assert (desk.noted, flaky.done) == ([order.id], [what])
    assert desk.clock.monotonic() == sum(PAUSES[:3])
    await desk.dispatcher.stop()


async def test_what_no_longer_matters_is_not_tried_for_ever() -> None:
    desk = Desk(Flaky(failures=1000))
    desk.dispatcher.dispatch([STOP])
    await desk.clock.settle()
    assert desk.noted == [STOP.id]
    await desk.dispatcher.stop()


async def test_a_server_that_lost_the_lead_neither_acts_again_nor_calls_it_a_failure() -> None:
    """The answer of the cluster arrives after another server has begun to lead."""
    desk = Desk(Flaky(failures=0), "w-1")  # of which the cluster has no process
    with structlog.testing.capture_logs() as logs:
        desk.dispatcher.dispatch([PROBE])
        (asked,) = await desk.queue.next_group()
        assert isinstance(asked, EventRequest)
        assert getattr(asked.event, "worker", "") == "w-1"
        asked.fail(LeadershipLostError("epoch 3 is over (server-2 at epoch 4 leads now)"))
        desk.queue.close()
        await desk.clock.settle()
        await desk.ticks(len(PAUSES))
    assert desk.noted == [], "the new leader must find it in the outbox"
    assert [log["log_level"] for log in logs if log["log_level"] != "info"] == []
    await desk.dispatcher.stop()


async def test_a_dispatcher_that_was_stopped_does_nothing_more() -> None:
    """A transaction that ends after the lead was lost must not have this server act."""
    flaky = Flaky(failures=0)
    desk = Desk(flaky, "w-1")
    await desk.dispatcher.stop()
    desk.dispatcher.dispatch([STOP, PAGE])
    await desk.ticks(3)
    assert (desk.noted, flaky.done) == ([], [])


async def test_a_question_starts_its_time_once_it_is_delivered_and_not_before() -> None:
    flaky = Flaky(failures=3)
    desk, told = Desk(flaky), []

    async def decide(kind: type[Event], **fields: object) -> bool:
        told.append((kind, fields))
        return True

    desk.queue.decide = decide  # type: ignore[method-assign]
    desk.dispatcher.dispatch([PAGE.model_copy(update={"asks": True, "incident": "inc-1"})])
    await desk.ticks(2)
    assert (told, desk.noted) == ([], [])
    await desk.ticks(3)
    assert told == [(AskDelivered, {"run": PAGE.run, "incident": "inc-1"})]
    assert desk.noted == [PAGE.id]
    await desk.dispatcher.stop()


@pytest.mark.parametrize(("longest_save", "grace"), [(0.0, 60.0), (90.0, 135.0)])
async def test_a_cluster_hears_how_long_a_worker_may_take_to_save(
    monkeypatch: pytest.MonkeyPatch, longest_save: float, grace: float
) -> None:
    """The spec's grace, or more where a save was measured that takes longer."""
    desk = Desk(Flaky(failures=0))
    run = dataclasses.replace(trained(1, grace="60s").run(), longest_save=longest_save)
    desk.live.state.put(run)
    desk.live.state.put(Worker(id="w-1", run="run-1", node="node-1", launched_at=run.submitted_at))
    launched: list[WorkerLaunch] = []

    async def launch(_: SimulatedCluster, order: WorkerLaunch) -> None:
        launched.append(order)

    monkeypatch.setattr(SimulatedCluster, "launch", launch)
    desk.dispatcher.dispatch([LAUNCH])
    await desk.clock.settle()
    assert [order.grace_seconds for order in launched] == [grace]
    await desk.dispatcher.stop()
