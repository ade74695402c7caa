"""The agent gateway: one connection per agent, opened by the agent. Frames: :mod:`jobs.frames`.

:func:`serve_agent` is the whole conversation, over any :class:`AgentSocket`: a WebSocket in the
server (:func:`create_gateway`), a connection that loses, delays and doubles frames in the fuzzer.

A report is acknowledged only after it is stored, so that an agent may forget it. Heartbeats and
acknowledgements of commands are read beside the storing of reports, since an agent must not be
thought lost because the database is slow. A connection that ends means nothing by itself: agents
connect again, to whichever server leads, and send what was not acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Mapping
from typing import Protocol

import structlog
from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from itsdangerous import BadSignature, URLSafeSerializer
from pydantic import ValidationError

from jobs.checks.results import CHECKS_RUN
from jobs.commands import AgentCommand
from jobs.events import Hello
from jobs.frames import FrameError, decode, encode
from orchestrator.controller.controller import Controller
from orchestrator.errors import (
    ConflictError,
    LeadershipLostError,
    NotFoundError,
    PermissionDeniedError,
    TemporaryError,
)
from orchestrator.server.agent_logs import AgentLogs, Handler, LogDesk
from orchestrator.server.agent_reports import ReportReader
from orchestrator.server.check_reports import serve_check

_log = structlog.get_logger(__name__)
TRY_AGAIN_LATER = 1013
"""Close code: this server does not lead; the agent looks for the one that does."""
BAD_FRAME = 1007
"""Close code: the agent sent what this protocol does not have."""
REFUSED = 1008
"""Close code: the frame before it says why."""
HELLO_SECONDS = 5.0
"""Seconds from a connection to its hello. Agents send it at once."""
ALLOW_LARGE_FRAMES = "babysit.allow_large_frames"
"""Key of an ASGI scope: a function that lifts the limit of frames on this connection."""
PROTOCOLS = range(1, 2)
"""Protocols of agents that this server speaks: see docs/operating.md for what that promises."""
MOST_SKIPPED = 100
"""Frames of one connection that cannot be read, before the connection is closed."""
_REPORTS_WAITING = 64
"""Reports read ahead of the database; more wait on the agent's side, in its spool."""
_Taken = asyncio.Queue[tuple[int, Awaitable[object]]]
"""Sequences of reports that the controller has taken, each with the answer to wait for."""


class AgentSocket(Protocol):
    """One connection of an agent, as the gateway uses it. Frames keep their order."""

    @property
    def authorization(self) -> str:
        """The `Authorization` header that the agent connected with; empty: none."""

    async def receive(self) -> bytes | str:
        """The next frame. Text is a protocol error, which :func:`jobs.frames.decode` reports.

        Raises ConnectionError when the agent is gone.
        """

    async def send(self, frame: bytes) -> None:
        """Send a frame. It may be lost all the same: only an answer proves that it arrived.

        Raises ConnectionError when the connection is closed.
        """

    async def close(self, code: int, reason: str) -> None:
        """Close the connection, unless it is closed; `code` is one of WebSocket's."""


class WorkerTokens:
    """Signed tokens that let one agent write one run's data."""

    def __init__(self, key: str) -> None:
        self._serializer = URLSafeSerializer(key, salt="babysit-worker")

    def make(self, run: str, worker: str) -> str:
        """The token of one worker."""
        return str(self._serializer.dumps([run, worker]))

    def check(self, token: str, hello: Hello) -> None:
        """Raise PermissionDeniedError unless the token is ours and names this worker."""
        if self._claimed(token) != [hello.run, hello.worker]:
            raise PermissionDeniedError(f"the token is not that of worker {hello.worker}")

    def run_of(self, token: str) -> str:
        """The run that a token of a worker is for; PermissionDeniedError: it is not ours."""
        return str(self._claimed(token)[0])

    def _claimed(self, token: str) -> list[str]:
        try:
            claimed: list[str] = self._serializer.loads(token)
        except BadSignature as error:
            raise PermissionDeniedError(
                "the worker token is not from this control plane"
            ) from error
        return claimed


class WebSocketAdapter:
    """A WebSocket as an :class:`AgentSocket`: however it fails, that is a ConnectionError."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket
        self._answered = False

    @property
    def authorization(self) -> str:
        """See the protocol."""
        return self._socket.headers.get("authorization", "")

    async def receive(self) -> bytes | str:
        """See the protocol. An agent has :data:`HELLO_SECONDS` for its first frame."""
        try:
            async with asyncio.timeout(None if self._answered else HELLO_SECONDS):
                message = await self._socket.receive()
        except TimeoutError as error:
            await self.close(REFUSED, "no hello")
            raise ConnectionError("the peer sent no hello") from error
        except RuntimeError as error:  # Starlette's, for a socket that is closed
            raise ConnectionError("the agent's connection is closed") from error
        if message["type"] == "websocket.disconnect":
            raise ConnectionError(f"the agent closed the connection ({message.get('code')})")
        data: bytes | str | None = message.get("bytes")
        return message.get("text", "") if data is None else data

    async def send(self, frame: bytes) -> None:
        """See the protocol."""
        if not self._answered:  # The first frame answers the hello: the peer has shown its token.
            self._answered = True
            self._socket.scope.get(ALLOW_LARGE_FRAMES, lambda: None)()
        try:
            await self._socket.send_bytes(frame)
        except (RuntimeError, WebSocketDisconnect) as error:
            raise ConnectionError("the agent's connection is closed") from error

    async def close(self, code: int, reason: str) -> None:
        """See the protocol."""
        with contextlib.suppress(RuntimeError, WebSocketDisconnect):
            await self._socket.close(code, reason)


class _Link:
    """A connection, as the controller sees it: commands go out, and nothing comes back."""

    def __init__(self, socket: AgentSocket) -> None:
        self._socket = socket

    async def send(self, command: AgentCommand) -> None:
        """Send one command; ConnectionError when the connection is closed."""
        await self._socket.send(encode("command", command))


def create_gateway(
    controller: Controller, tokens: WorkerTokens, desk: LogDesk | None = None
) -> APIRouter:
    """The route agents connect to: `/agent`.

    Args:
        controller: Decides and stores.
        tokens: Which agents may connect.
        desk: For logs that lie on the nodes; None: they lie on this machine.
    """
    router = APIRouter()

    @router.websocket("/agent")
    async def agent(socket: WebSocket) -> None:
        await socket.accept()
        await serve_agent(WebSocketAdapter(socket), controller, tokens, desk)

    return router


async def serve_agent(
    socket: AgentSocket,
    controller: Controller,
    tokens: WorkerTokens,
    desk: LogDesk | None = None,
) -> None:
    """Serve one agent, from its `hello` until either side ends the connection.

    Returns whatever the agent and the network do; what raises is a defect of the control plane. The
    close code tells the agent why: BAD_FRAME, REFUSED (after a `refused` frame), TRY_AGAIN_LATER.
    """
    try:
        await _serve(socket, controller, tokens, desk)
    except ConnectionError:
        return
    except (FrameError, ValidationError) as error:
        _log.warning("bad frame", error=str(error))
        await socket.close(BAD_FRAME, "bad frame")
    except (TemporaryError, LeadershipLostError):
        await _redirect(socket, controller)


async def _redirect(socket: AgentSocket, controller: Controller) -> None:
    """Tell an agent who leads, if that is known; only agents with a token of ours get here."""
    with contextlib.suppress(ConnectionError):
        if address := await controller.leader_address():
            await socket.send(encode("redirect", {"url": address}))
    await socket.close(TRY_AGAIN_LATER, "not the leader")


async def _serve(
    socket: AgentSocket, controller: Controller, tokens: WorkerTokens, desk: LogDesk | None
) -> None:
    kind, body = decode(await socket.receive())
    if kind != "hello":
        raise FrameError(f"expected hello, got {kind}")
    hello = Hello.model_validate(body)
    link = _Link(socket)
    try:
        tokens.check(socket.authorization.removeprefix("Bearer "), hello)
        if hello.protocol not in PROTOCOLS:
            await _refuse_protocol(socket, controller, hello)
            return
        if hello.run == CHECKS_RUN:
            await serve_check(socket, controller, hello)
            return
        last = await controller.attach(hello.worker, hello.run, link, hello=hello)
    except (PermissionDeniedError, ConflictError) as error:
        # Not ours to fence: training must not die because a server has the wrong key, or a
        # database from before the run.
        await _refuse(socket, str(error), fenced=False)
        return
    except NotFoundError as error:
        await _refuse(socket, str(error), fenced=True)
        return
    logs = None if desk is None else AgentLogs(desk, socket, hello, _ranks(controller, hello.run))
    try:
        welcome: dict[str, object] = {"last_sequence": last}
        if controller.servers:
            welcome["servers"] = list(controller.servers)
        if logs is not None and logs.terms is not None:
            welcome["logs"] = logs.terms.model_dump()
        await socket.send(encode("welcome", welcome))
        if logs is not None:
            logs.opened()
        await _converse(socket, controller, hello, {} if logs is None else logs.handlers)
    finally:
        controller.detach(hello.worker, link)
        if logs is not None:
            logs.closed()


def _ranks(controller: Controller, run: str) -> int:
    """Number of ranks that a run has at most."""
    known = controller.state.runs.get(run)
    if known is None:
        return 1
    return known.spec.resources.max_nodes * known.spec.resources.processes_per_node


async def _refuse_protocol(socket: AgentSocket, controller: Controller, hello: Hello) -> None:
    """Refuse an agent that speaks another protocol, and fence nothing: its ranks may train well."""
    reason = (
        f"it speaks protocol {hello.protocol}, and this server speaks"
        f" {PROTOCOLS.start} to {PROTOCOLS.stop - 1}: run a server of its version, or restart the"
        " run"
    )
    await controller.refused(hello.worker, hello.run, reason)
    await _refuse(socket, reason, fenced=False)


async def _refuse(socket: AgentSocket, reason: str, *, fenced: bool) -> None:
    await socket.send(encode("refused", {"reason": reason, "fenced": fenced}))
    await socket.close(REFUSED, "refused")


async def _converse(
    socket: AgentSocket, controller: Controller, hello: Hello, more: Mapping[str, Handler]
) -> None:
    """Read frames until the agent goes.

    Reports go to the controller as they are read, and are stored together with others; heartbeats
    wait for none of them. When reading or acknowledging ends, so does the other: an agent that is
    read but not stored would wait for its acknowledgements for ever.
    """
    reports = _Taken(_REPORTS_WAITING)
    storing = asyncio.create_task(_acknowledge(reports, socket))
    reading = asyncio.create_task(_read(reports, socket, controller, hello, more))
    try:
        await asyncio.wait((storing, reading), return_when=asyncio.FIRST_COMPLETED)
        for task in (storing, reading):
            if task.done():
                task.result()
    finally:
        storing.cancel()
        reading.cancel()
        await asyncio.gather(storing, reading, return_exceptions=True)


async def _acknowledge(reports: _Taken, socket: AgentSocket) -> None:
    """Acknowledge reports once they are in the database, never before.

    An acknowledgement counts for all reports before.
    """
    while True:
        sequence, stored = await reports.get()
        await stored
        await socket.send(encode("ack", {"sequence": sequence}))


async def _unknown(kind: str, _body: object) -> None:
    raise FrameError(f"unknown frame {kind:.80}")


async def _read(
    reports: _Taken,
    socket: AgentSocket,
    controller: Controller,
    hello: Hello,
    more: Mapping[str, Handler],
) -> None:
    """Read frames. One that cannot be read is skipped, or nothing behind it would be heard."""
    worker, reader = hello.worker, ReportReader(hello, controller.events, controller.clock)
    told = controller.servers

    async def on_report(body: dict[str, object]) -> None:
        report = reader.report(body)
        taken = (report.sequence, controller.take(worker, report))
        if reports.full():
            with controller.unread(worker):
                await reports.put(taken)
        else:
            reports.put_nowait(taken)

    async def on_heartbeat(body: dict[str, object]) -> None:
        nonlocal told
        if told != controller.servers:
            told = controller.servers
            await socket.send(encode("servers", {"urls": list(told)}))
        await controller.heartbeat(worker, reader.heartbeat(body))

    async def on_acknowledged(body: dict[str, object]) -> None:
        command = body.get("id")
        if not isinstance(command, str):
            raise FrameError(f"expected the id of a command in ack_command, got {command!r:.80}")
        controller.acknowledged(worker, command)

    handlers: dict[str, Handler] = {
        "report": on_report,
        "heartbeat": on_heartbeat,
        "ack_command": on_acknowledged,
        **more,
    }
    skipped = 0
    while True:
        frame = await socket.receive()
        try:
            kind, body = decode(frame)
            await handlers.get(kind, functools.partial(_unknown, kind))(body)
        except FrameError as error:
            skipped += 1
            if skipped > MOST_SKIPPED:
                raise
            _log.warning("frame skipped", worker=worker, error=str(error))
