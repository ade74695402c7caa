"""What a gang is told: each agent takes its part, and the order is done with the last of them."""

from __future__ import annotations

import asyncio
import datetime as dt
from typing import Any

import pytest

from jobs.clock import SystemClock
from jobs.commands import AgentCommand, CaptureStacks, StartAttempt, VerifyCheckpoint
from orchestrator.alerts.log import LogNotifier
from orchestrator.clusters.port import AgentAccess
from orchestrator.clusters.simulated import SimulatedCluster
from orchestrator.controller.dispatcher import OutboxDispatcher
from orchestrator.controller.event_factory import EventFactory
from orchestrator.controller.live_state import LiveState
from orchestrator.controller.turn_queue import TurnQueue
from orchestrator.core.messages.instructions import INSTRUCTION, BroadcastCommand
from orchestrator.core.model.entities import Worker
from orchestrator.core.model.state import State
from orchestrator.core.model.states import WorkerState
from orchestrator.database.memory_store import MemoryStore

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
WORKERS = ("a", "b", "c")


def order(command: Any = None) -> BroadcastCommand:
    command = command or StartAttempt(
        id="E1.1",
        attempt=1,
        ranks=(),
        world_size=6,
        node_rank=0,
        nodes=3,
        master_address="a",
        master_port=1,
    )
    return BroadcastCommand(
        id="E1.1",
        cause="E1",
        run="r",
        reason="begin",
        workers=WORKERS,
        ranks=((0, 1), (2, 3), (4, 5)),
        command=command,
    )


class Link:
    def __init__(self) -> None:
        self.got: list[AgentCommand] = []

    async def send(self, command: AgentCommand) -> None:
        self.got.append(command)


class Carried:
    """A dispatcher among three agents."""

    def __init__(self) -> None:
        self.links = {worker: Link() for worker in WORKERS}
        workers = [
            Worker(id=w, run="r", node=w, state=WorkerState.READY, launched_at=NOW) for w in WORKERS
        ]
        self.state = State(workers)
        self.lead()

    def lead(self) -> None:
        """Begin as a new leader does: with a dispatcher of its own."""
        clock = SystemClock()
        events = EventFactory(clock)
        live = LiveState(MemoryStore(), clock, events)
        live.state = self.state
        self.dispatcher = OutboxDispatcher(
            SimulatedCluster([], clock),
            LogNotifier(),
            clock,
            live=live,
            queue=TurnQueue(events),
            agent_access=lambda run, worker: AgentAccess("ws://127.0.0.1:1/agent", "token"),
        )
        self.done = self.dispatcher.receipts

    async def attach(self) -> None:
        for worker, link in self.links.items():
            self.dispatcher.attach(worker, link)
        await asyncio.gather(*self.dispatcher._tasks)

    async def carry(self, gang: BroadcastCommand) -> None:
        self.dispatcher.dispatch([gang])
        await asyncio.gather(*self.dispatcher._tasks)


async def test_each_agent_is_told_its_own_part_under_the_id_of_the_order() -> None:
    carried = Carried()
    await carried.attach()
    await carried.carry(order())
    told = [link.got[0] for link in carried.links.values()]
    assert all(isinstance(command, StartAttempt) for command in told)
    assert [(c.id, c.node_rank, c.ranks) for c in told if isinstance(c, StartAttempt)] == [
        ("E1.1", 0, (0, 1)),
        ("E1.1", 1, (2, 3)),
        ("E1.1", 2, (4, 5)),
    ]
    assert not carried.done


async def test_it_is_done_when_all_have_taken_it_or_are_gone() -> None:
    carried = Carried()
    await carried.carry(order())  # nobody is connected yet: it waits
    await carried.attach()
    carried.dispatcher.acknowledged("a", "E1.1")
    carried.dispatcher.acknowledged("a", "E1.1")  # said twice
    carried.dispatcher.forget("b")
    assert not carried.done
    carried.dispatcher.acknowledged("c", "E1.1")
    assert carried.done == ["E1.1"]


async def test_an_agent_that_has_ended_is_not_waited_for() -> None:
    carried = Carried()
    ended = Worker(id="b", run="r", node="b", state=WorkerState.ENDED, launched_at=NOW)
    carried.state.put(ended)
    await carried.attach()
    await carried.carry(order())
    for worker in ("a", "c"):
        carried.dispatcher.acknowledged(worker, "E1.1")
    assert carried.done == ["E1.1"]
    assert not carried.links["b"].got


async def test_the_next_leader_tells_all_of_them_again() -> None:
    carried = Carried()
    await carried.attach()
    await carried.carry(order())
    carried.dispatcher.acknowledged("a", "E1.1")
    await carried.dispatcher.stop()
    stored = INSTRUCTION.validate_json(order().model_dump_json())
    carried.lead()
    carried.dispatcher.dispatch([stored])
    await carried.attach()
    for worker in WORKERS:
        carried.dispatcher.acknowledged(worker, "E1.1")
    assert carried.done == ["E1.1"]


@pytest.mark.parametrize(
    ("command", "ranks"),
    [
        (VerifyCheckpoint(id="E1.1", attempt=1, checkpoint="c", path="/c", ranks=()), (2, 3)),
        (CaptureStacks(id="E1.1", attempt=1), None),
    ],
)
def test_parts_of_other_commands(command: AgentCommand, ranks: tuple[int, ...] | None) -> None:
    part = list(order(command).each())[1].command
    assert getattr(part, "ranks", None) == ranks
