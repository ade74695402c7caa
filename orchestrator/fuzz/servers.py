"""Servers: places where one control plane after another runs, and is killed."""

from __future__ import annotations

import asyncio
import itertools
from typing import Protocol

from jobs.events import Event
from orchestrator.clusters.port import AgentAccess
from orchestrator.controller.controller import Controller
from orchestrator.controller.settings import ControllerSettings
from orchestrator.errors import (
    ConflictError,
    DatabaseUnavailableError,
    InvalidError,
    LeadershipLostError,
    NotFoundError,
    NotLeaderError,
)
from orchestrator.fuzz.cluster import ClusterView
from orchestrator.fuzz.environment import Environment
from orchestrator.fuzz.event_loop import WORLD_CONTEXT, ProcessClock
from orchestrator.fuzz.network import AgentEnd, ServerEnd, Wire
from orchestrator.fuzz.recording_store import Listener, RecordingStore
from orchestrator.server.gateway import BAD_FRAME, WorkerTokens, serve_agent

LEASE_SECONDS = 9.0
WORKER_LOST_SECONDS = 6.0
SEEK_SECONDS = 4.0
"""Rarer than in production, where a server that waits for the lead asks twice a second: that would
be most of what happens here."""
_TOKENS = WorkerTokens("all servers share one key")


class Watcher(Listener, Protocol):
    """Hears what a server reads, and where its code fails."""

    def breaks(self, sentence: str) -> None:
        """A server does what it must never do."""


class Server:
    """One place, its clock, and the control plane that runs there now, if one does."""

    def __init__(self, environment: Environment, name: str, watcher: Watcher) -> None:
        self.name, self.clock = name, ProcessClock(environment.loop)
        self.process = ""
        """The process that runs here; empty: none."""
        self.controller: Controller | None = None
        self._environment, self._watcher, self._starts = environment, watcher, 0
        self._rng = environment.random(f"server {name}")

    @property
    def leads(self) -> bool:
        """True if the controller here believes that it leads; another may lead by now."""
        return self.controller is not None and self.controller.is_leader

    def boot(self) -> None:
        """Start a control plane, unless one runs here."""
        if self.process:
            return
        self._starts += 1
        self.process = f"{self.name}#{self._starts}"
        env, ids = self._environment, itertools.count(1)
        process = self.process
        self.controller = Controller(
            RecordingStore(self._watcher),
            ClusterView(env.cluster, env.loop, self._rng, env.rates),
            self.clock,
            settings=ControllerSettings(
                holder=self.process,
                lease_seconds=LEASE_SECONDS,
                seek_seconds=SEEK_SECONDS,
                worker_lost_seconds=WORKER_LOST_SECONDS,
            ),
            agent_access=lambda run, worker: AgentAccess(
                "ws://127.0.0.1:1/agent", _TOKENS.make(run, worker)
            ),
        )
        self.controller.events.new_id = lambda: f"{process}-{next(ids):05d}"
        env.trace.add(f"{self.process} starts")
        env.loop.spawn(self.process, self.controller.start())

    def kill(self, how: str = "is killed") -> None:
        """Kill the process: not one more line of it runs, and an open transaction is undone."""
        if not self.process:
            return
        env, role = self._environment, "the leader" if self.leads else "a follower"
        env.trace.add(f"{self.process}, {role}, {how}")
        env.loop.kill(self.process)
        env.database.drop(self.process)
        env.network.hang_up(self.process)
        self.process, self.controller = "", None

    def kill_later(self, steps: int) -> None:
        """Kill the process after it has taken that many steps of the event loop."""
        if self.process:
            self._environment.loop.interrupt(self.process, steps, self.kill)

    def hand_over(self) -> None:
        """Stop the process in good order, as an upgrade does."""
        controller, process, env = self.controller, self.process, self._environment
        if controller is None:
            return
        env.trace.add(f"{process} is asked to stop")

        async def leave() -> None:
            await controller.stop()
            if self.process == process:
                env.loop.call_soon(self.kill, "has stopped", context=WORLD_CONTEXT)

        env.loop.spawn(process, leave())

    def pause(self, seconds: float) -> None:
        """Stop the process for a while, wherever it is just now, as SIGSTOP does."""
        process, loop = self.process, self._environment.loop
        if process:
            self._environment.trace.add(f"{process} stands still for {seconds:.0f} s")
            loop.pause(process)
            loop.call_later(seconds, loop.resume, process, context=WORLD_CONTEXT)

    def connect(self, node: str, worker: str, token: str) -> AgentEnd:
        """Connect an agent: the real gateway serves it.

        Raises ConnectionError when nothing runs here.
        """
        if self.controller is None:
            raise ConnectionError(f"{self.name} is down")
        wire = Wire(self._environment.network, node, worker, token, self.process)
        self._environment.loop.spawn(self.process, self._serve(self.controller, wire))
        return AgentEnd(wire)

    async def _serve(self, controller: Controller, wire: Wire) -> None:
        """Run the gateway, and close the connection after it, as the web server does."""
        socket = ServerEnd(wire)
        try:
            await serve_agent(socket, controller, _TOKENS)
        except Exception as error:  # noqa: BLE001 (any error here is a defect of the gateway)
            self._watcher.breaks(f"the gateway fails over {wire.worker}: {error!r}")
        finally:
            wire.break_off()
        if socket.closed == BAD_FRAME:
            self._watcher.breaks(f"the gateway calls a frame of {wire.worker} bad")

    def ask(self, event: Event) -> asyncio.Task[str] | None:
        """Submit a request here; the task's result is the answer. None: nothing runs here."""
        if self.controller is None:
            return None
        return self._environment.loop.spawn(self.process, _submit(self.controller, event))


async def _submit(controller: Controller, event: Event) -> str:
    try:
        await controller.submit(event)
    except (ConflictError, NotFoundError, InvalidError) as error:
        return f"refused: {error}"
    except (NotLeaderError, LeadershipLostError, DatabaseUnavailableError):
        return ""  # the web server's 503: the user may try again
    return "done"
