"""Servers: places where one control plane after another runs, and is killed."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING

from jobs.commands import AgentCommand
from jobs.events import Event
from orchestrator.clusters.port import AgentAccess
from orchestrator.controller.controller import Controller
from orchestrator.controller.settings import ControllerSettings
from orchestrator.errors import (
    ConflictError,
    InvalidError,
    LeadershipLostError,
    NotFoundError,
    NotLeaderError,
)
from orchestrator.fuzz.cluster import View
from orchestrator.fuzz.event_loop import WORLD_CONTEXT, ProcessClock
from orchestrator.fuzz.network import LOST, Network, Wire
from orchestrator.fuzz.recording_store import WatchedStore

if TYPE_CHECKING:
    from orchestrator.fuzz.world import World

LEASE_SECONDS = 9.0
WORKER_LOST_SECONDS = 6.0
SEEK_SECONDS = 4.0
"""Rarer than in production: a server that waits for the lead should not be most of the story."""


class Server:
    """One place, its clock, and the controller of the hour."""

    def __init__(self, room: World, name: str) -> None:
        self.name, self.clock = name, ProcessClock(room.loop)
        self.process = ""
        """The process of the hour; empty: it is down."""
        self.controller: Controller | None = None
        self._room, self._lives = room, 0
        self._chance = room.random(f"server {name}")

    @property
    def leads(self) -> bool:
        """Whether the controller here believes that it leads."""
        return self.controller is not None and self.controller.is_leader

    def boot(self) -> None:
        """Start a control plane, unless one runs here."""
        if self.process:
            return
        self._lives += 1
        self.process = f"{self.name}#{self._lives}"
        room, ids = self._room, itertools.count(1)
        process = self.process
        self.controller = Controller(
            WatchedStore(room.promises),
            View(room.site, room.loop, self._chance, room.weather),
            self.clock,
            settings=ControllerSettings(
                holder=self.process,
                lease_seconds=LEASE_SECONDS,
                seek_seconds=SEEK_SECONDS,
                worker_lost_seconds=WORKER_LOST_SECONDS,
            ),
            agent_access=lambda _run, _worker: AgentAccess("ws://127.0.0.1:1/agent", "token"),
        )
        self.controller.events.new_id = lambda: f"{process}-{next(ids):05d}"
        room.story.tell(f"{self.process} starts")
        room.loop.spawn(self.process, self.controller.start())

    def kill(self, how: str = "is killed") -> None:
        """Not one more line of it runs; what it had not committed is undone."""
        if not self.process:
            return
        role = "the leader" if self.leads else "a follower"
        self._room.story.tell(f"{self.process}, {role}, {how}")
        self._room.loop.kill(self.process)
        self._room.disk.drop(self.process)
        self._room.network.hang_up(self.process)
        self.process, self.controller = "", None

    def kill_later(self, steps: int) -> None:
        """Kill it between two of its coming steps."""
        if self.process:
            self._room.loop.doom(self.process, steps, self.kill)

    def hand_over(self) -> None:
        """Stop it in good order, as an upgrade does."""
        controller, process = self.controller, self.process
        if controller is None:
            return
        self._room.story.tell(f"{process} is told to stop")

        async def leave() -> None:
            await controller.stop()
            if self.process == process:
                self._room.loop.call_soon(self.kill, "has stopped", context=WORLD_CONTEXT)

        self._room.loop.spawn(process, leave())

    def pause(self, seconds: float) -> None:
        """It stands still for a while, wherever it is just now."""
        process, loop = self.process, self._room.loop
        if process:
            self._room.story.tell(f"{process} stands still for {seconds:.0f} s")
            loop.pause(process)
            loop.call_later(seconds, loop.resume, process, context=WORLD_CONTEXT)

    def connect(self, network: Network, node: str, worker: str) -> Wire:
        """An agent connects.

        Raises ConnectionError when nothing runs here.
        """
        if self.controller is None:
            raise ConnectionError(f"{self.name} is down")
        wire = Wire(network, node, worker, self.process)
        self._room.loop.spawn(self.process, _serve(self.controller, wire))
        return wire

    def ask(self, event: Event) -> asyncio.Task[str] | None:
        """Someone asks for something here; the task's result is the answer. None: it is down."""
        if self.controller is None:
            return None
        return self._room.loop.spawn(self.process, _submit(self.controller, event))


async def _submit(controller: Controller, event: Event) -> str:
    try:
        await controller.submit(event)
    except (ConflictError, NotFoundError, InvalidError) as error:
        return f"refused: {error}"
    except (NotLeaderError, LeadershipLostError):
        return ""
    return "done"


class _Link:
    """A connection, as the controller sees it."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    async def send(self, command: AgentCommand) -> None:
        """Send one command."""
        self._wire.send(self._wire.at_agent, "command", command)


async def _serve(controller: Controller, wire: Wire) -> None:
    """What the agent gateway does: `orchestrator.server.gateway`, without sockets."""
    kind, hello = await wire.at_server.frames.get()
    if kind == LOST:
        return
    link = _Link(wire)
    try:
        last = await controller.attach(hello.worker, hello.run, link)
        wire.send(wire.at_agent, "welcome", last)
        await _converse(controller, wire)
    except NotFoundError as error:
        wire.send(wire.at_agent, "refused", str(error))
    except (NotLeaderError, LeadershipLostError, ConnectionError):
        pass
    finally:
        controller.detach(hello.worker, link)
        wire.break_off()


async def _converse(controller: Controller, wire: Wire) -> None:
    reports: asyncio.Queue[object] = asyncio.Queue()
    storing = asyncio.create_task(_store(reports, controller, wire))
    reading = asyncio.create_task(_read(reports, controller, wire))
    try:
        done, _ = await asyncio.wait({storing, reading}, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        storing.cancel()
        reading.cancel()
        await asyncio.gather(storing, reading, return_exceptions=True)


async def _store(reports: asyncio.Queue[object], controller: Controller, wire: Wire) -> None:
    while True:
        report = await reports.get()
        await controller.report(wire.worker, report)  # type: ignore[arg-type]
        wire.send(wire.at_agent, "ack", report.sequence)  # type: ignore[attr-defined]


async def _read(reports: asyncio.Queue[object], controller: Controller, wire: Wire) -> None:
    while True:
        kind, body = await wire.at_server.frames.get()
        match kind:
            case "report":
                reports.put_nowait(body)
            case "heartbeat":
                await controller.heartbeat(wire.worker, body)
            case "ack_command":
                controller.acknowledged(wire.worker, body)
            case _:
                return
