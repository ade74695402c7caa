"""The agent gateway: one WebSocket per agent, opened by the agent. Frames: :mod:`jobs.frames`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog
from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from itsdangerous import BadSignature, URLSafeSerializer
from pydantic import ValidationError

from jobs.commands import AgentCommand
from jobs.events import Heartbeat, Hello, Report
from jobs.frames import FrameError, decode, encode
from orchestrator.controller.controller import Controller
from orchestrator.errors import (
    LeadershipLostError,
    NotFoundError,
    NotLeaderError,
    PermissionDeniedError,
)

_log = structlog.get_logger(__name__)
_TRY_AGAIN_LATER = 1013
_BAD_FRAME = 1007
_REFUSED = 1008
_REPORTS_WAITING = 64
"""Reports read ahead of the database; more wait on the agent's side, in its spool."""


class WorkerTokens:
    """Signed tokens that let one agent write one run's data."""

    def __init__(self, key: str) -> None:
        self._serializer = URLSafeSerializer(key, salt="babysit-worker")

    def make(self, run: str, worker: str) -> str:
        """The token of one worker."""
        return str(self._serializer.dumps([run, worker]))

    def check(self, token: str, hello: Hello) -> None:
        """Raise PermissionDeniedError unless the token is ours and names this worker."""
        try:
            claimed = self._serializer.loads(token)
        except BadSignature as error:
            raise PermissionDeniedError("the worker token is not one of ours") from error
        if claimed != [hello.run, hello.worker]:
            raise PermissionDeniedError(f"the token is not that of worker {hello.worker}")


class _Link:
    """A connection, as the controller sees it."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket

    async def send(self, command: AgentCommand) -> None:
        """Send one command."""
        try:
            await self._socket.send_bytes(encode("command", command))
        except (RuntimeError, WebSocketDisconnect) as error:
            raise ConnectionError("the agent's connection is closed") from error


def create_gateway(controller: Controller, tokens: WorkerTokens) -> APIRouter:
    """The route agents connect to: `/agent`."""
    router = APIRouter()

    @router.websocket("/agent")
    async def agent(socket: WebSocket) -> None:
        await socket.accept()
        try:
            await _serve(socket, controller, tokens)
        except WebSocketDisconnect:
            return
        except (FrameError, ValidationError) as error:
            _log.warning("bad frame", error=str(error))
            await socket.close(_BAD_FRAME, "bad frame")
        except (NotLeaderError, LeadershipLostError):
            await socket.close(_TRY_AGAIN_LATER, "not the leader")

    return router


async def _serve(socket: WebSocket, controller: Controller, tokens: WorkerTokens) -> None:
    kind, body = decode(await socket.receive_bytes())
    if kind != "hello":
        raise FrameError(f"expected hello, got {kind}")
    hello = Hello.model_validate(body)
    link = _Link(socket)
    try:
        tokens.check(socket.headers.get("authorization", "").removeprefix("Bearer "), hello)
        last = await controller.attach(hello.worker, hello.run, link)
    except PermissionDeniedError as error:
        # Not ours to fence: training must not die because a server has the wrong key.
        await _refuse(socket, str(error), fenced=False)
        return
    except NotFoundError as error:
        await _refuse(socket, str(error), fenced=True)
        return
    await socket.send_bytes(encode("welcome", {"last_sequence": last}))
    try:
        await _converse(socket, controller, hello.worker)
    finally:
        controller.detach(hello.worker, link)


async def _refuse(socket: WebSocket, reason: str, *, fenced: bool) -> None:
    await socket.send_bytes(encode("refused", {"reason": reason, "fenced": fenced}))
    await socket.close(_REFUSED, "refused")


async def _converse(socket: WebSocket, controller: Controller, worker: str) -> None:
    """Read frames until the agent goes.

    Reports are stored in order, beside the reading of heartbeats.
    """
    reports: asyncio.Queue[Report] = asyncio.Queue(_REPORTS_WAITING)
    storing = asyncio.create_task(_store(reports, socket, controller, worker))
    reading = asyncio.create_task(_read(reports, socket, controller, worker))
    try:
        done, _ = await asyncio.wait({storing, reading}, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        storing.cancel()
        reading.cancel()
        await asyncio.gather(storing, reading, return_exceptions=True)


async def _store(
    reports: asyncio.Queue[Report], socket: WebSocket, controller: Controller, worker: str
) -> None:
    while True:
        report = await reports.get()
        await controller.report(worker, report)
        await socket.send_bytes(encode("ack", {"sequence": report.sequence}))


async def _read(
    reports: asyncio.Queue[Report], socket: WebSocket, controller: Controller, worker: str
) -> None:
    async def on_report(body: dict[str, object]) -> None:
        await reports.put(Report.model_validate(body))

    async def on_heartbeat(body: dict[str, object]) -> None:
        await controller.heartbeat(worker, Heartbeat.model_validate(body))

    async def on_acknowledged(body: dict[str, object]) -> None:
        controller.acknowledged(worker, str(body["id"]))

    handlers: dict[str, Callable[[dict[str, object]], Awaitable[None]]] = {
        "report": on_report,
        "heartbeat": on_heartbeat,
        "ack_command": on_acknowledged,
    }
    while True:
        kind, body = decode(await socket.receive_bytes())
        if kind not in handlers:
            raise FrameError(f"unknown frame {kind}")
        await handlers[kind](body)
