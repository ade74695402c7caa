"""Connections between agents and servers, and what becomes of their frames.

Frames are bytes, as on a real wire. Within a connection, reports keep their order, as TCP has it:
when one is lost, all after it are, and the connection breaks in the end. Commands and heartbeats
may overtake each other (a task of its own sends each), frames may come twice, and what an old
connection still held arrives among what the next one says.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from jobs import frames
from orchestrator.fuzz.event_loop import WORLD_CONTEXT, VirtualLoop, rest
from orchestrator.fuzz.fault_rates import FaultRates

_LOOSE = frozenset({"command", "heartbeat", "ack_command"})
"""Frames that may overtake others."""
_REPEATED = _LOOSE | {"report", "ack"}


class Inbox:
    """Frames that have arrived at one end of a connection."""

    def __init__(self) -> None:
        self.frames: asyncio.Queue[bytes | None] = asyncio.Queue()
        """None: the connection is lost, and nothing counts that comes later."""
        self.due = 0.0
        """Virtual seconds at which the last frame that keeps its order arrives."""

    async def next(self) -> bytes:
        """The next frame. Raises ConnectionError, now and ever after, once it is lost."""
        frame = await self.frames.get()
        if frame is None:
            self.frames.put_nowait(None)
            raise ConnectionError("the connection is lost")
        return frame


class Network:
    """Which node can reach the servers.

    Attributes:
        cut: Nodes that no message reaches or leaves.
        wires: Connections that may still carry something.
    """

    def __init__(self, loop: VirtualLoop, rng: random.Random, rates: FaultRates) -> None:
        self.loop, self.rng, self.rates = loop, rng, rates
        self.cut: set[str] = set()
        self.wires: set[Wire] = set()
        self._numbers = itertools.count()

    def next_number(self) -> int:
        """Numbers connections, so that they have an order."""
        return next(self._numbers)

    async def reach(self, node: str) -> None:
        """Begin to connect from a node.

        Raises ConnectionError, after a while, when it is cut off.
        """
        await rest(self.loop, self.rates.network_seconds(self.rng))
        if node in self.cut:
            await rest(self.loop, self.rng.uniform(1.0, 5.0))
            raise ConnectionError(f"{node} is cut off")

    def hang_up(self, process: str) -> None:
        """A process has ended: its connections break, as the other ends find sooner or later."""
        # By number, since a set of them has the order of their addresses.
        for wire in sorted(self.wires, key=lambda wire: wire.number):
            if process in {wire.server, wire.worker}:
                wire.break_off()


class Wire:
    """One connection of an agent to a server, seen from outside; its ends are below.

    Attributes:
        authorization: The header that the agent connected with.
        server: The server's process, not its place: a server that starts again is another.
    """

    def __init__(self, network: Network, node: str, worker: str, token: str, server: str) -> None:
        self.node, self.worker, self.server = node, worker, server
        self.authorization = f"Bearer {token}"
        self.at_agent, self.at_server = Inbox(), Inbox()
        self.number = network.next_number()
        self._network = network
        self._broken = self._mute = False
        network.wires.add(self)

    def send(self, to: Inbox, frame: bytes) -> None:
        """Send a frame; it is under way, or lost.

        Raises ConnectionError when the connection is known to be broken.
        """
        if self._broken:
            raise ConnectionError("the connection is broken")
        network = self._network
        rates, rng, now = network.rates, network.rng, network.loop.time()
        if self._mute or self.node in network.cut or rates.strikes("lost", rng):
            self._fall_silent()
            return
        kind, _ = frames.decode(frame)
        due = now + rates.network_seconds(rng)
        if kind in _LOOSE and rates.strikes("reordered", rng):
            due += rng.uniform(0.0, 3.0)
        else:
            due = to.due = max(due, to.due)
        self._deliver_at(due, to, frame)
        if kind in _REPEATED and rates.strikes("doubled", rng):
            self._deliver_at(due + rng.uniform(0.0, 5.0), to, frame)

    def break_off(self) -> None:
        """Nothing more can be sent; each end hears of it after what was sent before."""
        if not self._broken:
            self._broken = True
            self._network.wires.discard(self)
            now = self._network.loop.time()
            for inbox in (self.at_agent, self.at_server):
                later = now + self._network.rng.uniform(0.0, 2.0)
                self._deliver_at(max(later, inbox.due), inbox, None)

    def _fall_silent(self) -> None:
        """A frame was lost: so are all after it, until one end gives the connection up."""
        if not self._mute:
            self._mute = True
            self._network.loop.call_later(
                self._network.rng.uniform(0.5, 20.0), self.break_off, context=WORLD_CONTEXT
            )

    def _deliver_at(self, due: float, to: Inbox, frame: bytes | None) -> None:
        self._network.loop.call_at(due, self._arrive, to, frame, context=WORLD_CONTEXT)

    def _arrive(self, to: Inbox, frame: bytes | None) -> None:
        # An end hears that a connection is lost without a message: by time-outs of its own.
        if frame is None or not (self._mute or self.node in self._network.cut):
            to.frames.put_nowait(frame)
        else:
            self._fall_silent()


class AgentEnd:
    """A connection, as its agent holds it."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def send(self, kind: str, body: BaseModel | Mapping[str, Any]) -> None:
        """Send a frame; ConnectionError when the connection is known to be broken."""
        self._wire.send(self._wire.at_server, frames.encode(kind, body))

    async def receive(self) -> tuple[str, dict[str, Any]]:
        """Kind and body of the next frame; ConnectionError when the connection is lost."""
        return frames.decode(await self._wire.at_agent.next())

    def close(self) -> None:
        """Give the connection up."""
        self._wire.break_off()


class ServerEnd:
    """A connection as the gateway holds it: an :class:`orchestrator.server.gateway.AgentSocket`.

    Attributes:
        closed: The code that the gateway closed it with; None: it has not.
    """

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.closed: int | None = None

    @property
    def authorization(self) -> str:
        """See the protocol."""
        return self._wire.authorization

    async def receive(self) -> bytes | str:
        """See the protocol."""
        return await self._wire.at_server.next()

    async def send(self, frame: bytes) -> None:
        """See the protocol."""
        self._wire.send(self._wire.at_agent, frame)

    async def close(self, code: int, reason: str) -> None:
        """See the protocol."""
        del reason  # agents go by the frame before it
        self.closed = code
        self._wire.break_off()
