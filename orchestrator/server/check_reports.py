"""The conversation with an agent that only checks its node: heartbeats, one report, and its end.

An agent that waits for the other end of a link says where before its report.
"""

from __future__ import annotations

from typing import Protocol

from pydantic import ValidationError

from jobs.checks.results import CLOCK, CheckReport, CheckResult, Listening
from jobs.events import Hello
from jobs.frames import FrameError, decode, encode
from orchestrator.controller.check_launches import is_wanted
from orchestrator.controller.controller import Controller
from orchestrator.core.messages.check_events import LinkListening, NodeChecked
from orchestrator.errors import NotFoundError, NotLeaderError


class Socket(Protocol):
    """The part of an agent's connection that is used here."""

    async def receive(self) -> bytes | str:
        """The next frame; ConnectionError: the agent is gone."""

    async def send(self, frame: bytes) -> None:
        """Send a frame; ConnectionError: the connection is closed."""


async def serve_check(socket: Socket, controller: Controller, hello: Hello) -> None:
    """Take the results of a check, and measure the skew of its node's clock meanwhile.

    Raises:
        ConnectionError: The agent is gone.
        FrameError: It sent what this protocol does not have.
        NotFoundError: The check is over: the agent must leave.
        NotLeaderError: This server does not lead.
    """
    if not controller.is_leader:
        raise NotLeaderError("this server is not the leader: try again")
    if not is_wanted(controller.state, hello.node, hello.worker):
        raise NotFoundError(f"the check {hello.worker} is not expected any more")
    await socket.send(encode("welcome", {"last_sequence": hello.next_sequence - 1}))
    skews: list[float] = []
    while True:
        kind, body = decode(await socket.receive())
        if kind == "heartbeat":
            sent = body.get("time")
            if isinstance(sent, int | float):
                skews.append(abs(sent - controller.clock.now().timestamp()))
        elif kind == "report":
            await _take(controller, hello, body, skews)
            await socket.send(encode("ack", {"sequence": body["sequence"]}))
        elif kind == "listening":
            await _say_where(controller, hello, body)
            await socket.send(encode("ack", {"sequence": body["sequence"]}))
        else:
            raise FrameError(f"unexpected frame {kind:.80} of the agent of a check")


async def _say_where(controller: Controller, hello: Hello, body: dict[str, object]) -> None:
    """Tell the core where the agent waits for the other end of its link."""
    try:
        listening = Listening.model_validate(body)
    except ValidationError as error:
        raise FrameError(f"{hello.worker} says no port: {error}") from error
    event = controller.events.make(
        LinkListening,
        node=hello.node,
        worker=hello.worker,
        address=hello.address,
        port=listening.port,
        actor=f"worker:{hello.worker}",
    )
    await controller.submit(event)


async def _take(
    controller: Controller, hello: Hello, body: dict[str, object], skews: list[float]
) -> None:
    try:
        report = CheckReport.model_validate(body)
    except ValidationError as error:
        raise FrameError(f"the report of {hello.worker} cannot be read: {error}") from error
    results = report.results
    node = controller.state.nodes.get(hello.node)
    under_way = None if node is None else node.measured.under_way
    wanted = () if under_way is None else under_way.checks
    if skews and (not wanted or CLOCK in wanted):
        # A heartbeat may be late, never early: the least skew that was seen is the best.
        results = (*results, CheckResult(check=CLOCK, figure=min(skews), unit="s"))
    event = controller.events.make(
        NodeChecked,
        node=hello.node,
        worker=hello.worker,
        results=results,
        actor=f"worker:{hello.worker}",
    )
    await controller.submit(event)
