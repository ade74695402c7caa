"""Connections between agents and servers, and what becomes of their messages.

Within a connection, reports keep their order, as TCP has it: with one that is lost, all after it
are, and the connection breaks in the end. Commands and signs of life may overtake each other (each
is sent by a task of its own), anything may come twice, and what an old connection still held
arrives among what the next one says.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from typing import Any

from orchestrator.fuzz.event_loop import WORLD_CONTEXT, VirtualLoop, rest
from orchestrator.fuzz.fault_rates import Weather

LOST = "lost"
"""The last frame of every connection."""
_LOOSE = frozenset({"command", "heartbeat", "ack_command"})
"""Frames that may overtake others."""
_REPEATED = _LOOSE | {"report", "ack"}
Frame = tuple[str, Any]


class Inbox:
    """What has arrived at one end of a connection."""

    def __init__(self) -> None:
        self.frames: asyncio.Queue[Frame] = asyncio.Queue()
        self.due = 0.0
        """When the last frame that keeps its order arrives."""


class Network:
    """Who can reach whom.

    Attributes:
        cut: Nodes that no message reaches or leaves.
        wires: Connections that may still carry something.
    """

    def __init__(self, loop: VirtualLoop, chance: random.Random, weather: Weather) -> None:
        self.loop, self.chance, self.weather = loop, chance, weather
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
        await rest(self.loop, self.weather.network_seconds(self.chance))
        if node in self.cut:
            await rest(self.loop, self.chance.uniform(1.0, 5.0))
            raise ConnectionError(f"{node} is cut off")

    def hang_up(self, process: str) -> None:
        """A process has ended: its connections break, as the other ends find sooner or later."""
        for wire in sorted(self.wires, key=lambda wire: wire.number):
            if process in {wire.server, wire.worker}:
                wire.break_off()


class Wire:
    """One connection of an agent to a server."""

    def __init__(self, network: Network, node: str, worker: str, server: str) -> None:
        self.node, self.worker, self.server = node, worker, server
        self.at_agent, self.at_server = Inbox(), Inbox()
        self.number = network.next_number()
        self._network = network
        self._broken = self._mute = False
        network.wires.add(self)

    def send(self, to: Inbox, kind: str, body: Any) -> None:
        """Send a frame; it is under way, or lost.

        Raises ConnectionError when the connection is known to be broken.
        """
        if self._broken:
            raise ConnectionError("the connection is broken")
        network = self._network
        weather, chance, now = network.weather, network.chance, network.loop.time()
        if self._mute or self.node in network.cut or weather.strikes("lost", chance):
            self._fall_silent()
            return
        due = now + weather.network_seconds(chance)
        if kind in _LOOSE and weather.strikes("reordered", chance):
            due += chance.uniform(0.0, 3.0)
        else:
            due = to.due = max(due, to.due)
        self._deliver_at(due, to, (kind, body))
        if kind in _REPEATED and weather.strikes("doubled", chance):
            self._deliver_at(due + chance.uniform(0.0, 5.0), to, (kind, body))

    def break_off(self) -> None:
        """Nothing more can be sent; each end hears of it after what was sent before."""
        if not self._broken:
            self._broken = True
            self._network.wires.discard(self)
            now = self._network.loop.time()
            for inbox in (self.at_agent, self.at_server):
                later = now + self._network.chance.uniform(0.0, 2.0)
                self._deliver_at(max(later, inbox.due), inbox, (LOST, None))

    def _fall_silent(self) -> None:
        """A frame was lost: so are all after it, until somebody gives the connection up."""
        if not self._mute:
            self._mute = True
            self._network.loop.call_later(
                self._network.chance.uniform(0.5, 20.0), self.break_off, context=WORLD_CONTEXT
            )

    def _deliver_at(self, due: float, to: Inbox, frame: Frame) -> None:
        self._network.loop.call_at(due, self._arrive, to, frame, context=WORLD_CONTEXT)

    def _arrive(self, to: Inbox, frame: Frame) -> None:
        if frame[0] == LOST or not (self._mute or self.node in self._network.cut):
            to.frames.put_nowait(frame)
        else:
            self._fall_silent()
