"""The only outgoing connection to the control plane. Its loss never affects training.

Delivery is at least once: frames stay in the spool until the control plane acknowledges their
sequence, and a new connection resends the rest. Commands may arrive more than once.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import random
import socket
import ssl
from pathlib import Path
from typing import Any, Protocol

import structlog
from pydantic import TypeAdapter, ValidationError
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidHandshake, InvalidURI, WebSocketException

from jobs import frames, unix_socket
from jobs.agent.errors import ServerUnknownError
from jobs.agent.log_sender import LogSender
from jobs.agent.spool import Spool
from jobs.clock import Clock
from jobs.commands import AgentCommand, Command
from jobs.config import AgentConfig
from jobs.events import Heartbeat, Hello

_HEARTBEAT_SECONDS = 1.0
_BACKOFF_SECONDS = (0.1, 2.0)
_OPEN_SECONDS = 5.0
_PING_SECONDS = 10.0
"""A server that does not answer a ping in this time is frozen or cut off: another may lead."""
_COMMAND: TypeAdapter[AgentCommand] = TypeAdapter(AgentCommand)


class Host(Protocol):
    """The agent as its connection uses it."""

    log_sender: LogSender
    """The part of the agent that speaks of logs."""

    def hello(self) -> Hello:
        """The first frame of a connection."""

    def heartbeat(self) -> Heartbeat:
        """The current progress of the ranks."""

    def handle(self, command: Command) -> None:
        """Accept a command and return at once. The host ignores repeated ids."""

    def fenced(self, reason: str) -> None:
        """Stop: the control plane accepts nothing from this worker any more."""


class Connection:
    """Stays connected, sends the frames of the spool, and receives commands."""

    def __init__(
        self, config: AgentConfig, spool: Spool, host: Host, clock: Clock, chance: random.Random
    ) -> None:
        self._config = config
        self._spool = spool
        self._host = host
        self._clock = clock
        self._chance = chance
        self._spool_grew = asyncio.Event()
        self._failures = 0
        self._refused = ""
        """The reason of the last refusal, which is logged once."""
        self._servers: list[str] = []
        """URLs of servers that may lead, as the last one that led knew them."""
        self._redirect = ""
        """URL of the leader, as a server says that does not lead; tried once."""
        self._log = structlog.get_logger(part="connection")
        self.last_contact = clock.monotonic()
        """Monotonic seconds at which the last frame from the control plane arrived."""

    @property
    def urls(self) -> list[str]:
        """URLs of servers that may lead, that of the one that launched this agent first."""
        return [url for url in (self._config.server_url, *self._servers) if url]

    def wake(self) -> None:
        """Send frames that were added to the spool."""
        self._spool_grew.set()

    async def run(self) -> None:
        """Connect again and again until cancelled."""
        while True:
            reason = "closed by the control plane"
            try:
                await self._session(self._url())
            except* (OSError, WebSocketException, ServerUnknownError, frames.FrameError) as group:
                reason = "; ".join(
                    str(error) or type(error).__name__ for error in _flattened(group)
                )
            if (task := asyncio.current_task()) is not None and task.cancelling():
                # Before Python 3.13 a task group loses a cancellation that meets an error of one of
                # its tasks, and the agent would never end.
                raise asyncio.CancelledError
            self._failed(reason)
            await self._clock.sleep(self._pause())

    def _url(self) -> str:
        """The URL to try next.

        In turn: the server that launched this agent, the one that says it has replaced it, and all
        that ever answered for. None is right for sure: a server may have moved, a file may be an
        old one, and another server may lead. A server that does not lead names the one that does.

        Raises:
            ServerUnknownError: The file with the URL is missing or unreadable.
        """
        if self._redirect:
            url, self._redirect = self._redirect, ""
            return url
        known = [self._config.server_url, self._config.server_file, *self._servers]
        candidates = [each for each in dict.fromkeys(known) if each]
        if not candidates:
            raise ServerUnknownError("neither server_url nor server_file is set")
        chosen = candidates[self._failures % len(candidates)]
        if isinstance(chosen, str):
            return chosen
        try:
            return str(json.loads(chosen.read_text())["agent_url"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ServerUnknownError(f"{chosen}: cannot read `agent_url`: {error}") from error

    def _learn(self, urls: object) -> None:
        """Remember the servers that may take over, as the one that leads knows them."""
        if not isinstance(urls, list) or not urls:
            return
        before = self._servers
        self._servers = [url for url in urls if isinstance(url, str) and self._is_safe(url)]
        if self._servers != before:
            self._log.info("servers known", count=len(self._servers))

    def _is_safe(self, url: str) -> bool:
        """False for a URL that would send the token unencrypted where it went encrypted so far."""
        return not (self._config.server_url.startswith("wss:") and url.startswith("ws:"))

    def _pause(self) -> float:
        """Seconds before the next attempt: full jitter, so that workers do not return at once."""
        least, most = _BACKOFF_SECONDS
        longest = min(most, least * 2 ** min(self._failures, 10))
        return self._chance.uniform(least, max(least, longest))

    def _failed(self, reason: str) -> None:
        """Log the 1st, 2nd, 4th, 8th … failure in a row."""
        self._failures += 1
        if self._failures & (self._failures - 1) == 0:
            self._log.warning(
                "connection failed, will retry", failures=self._failures, reason=reason
            )

    async def _session(self, url: str) -> None:
        headers = {"Authorization": f"Bearer {self._config.token}"}
        try:
            opened = await _open(url, headers, self._config.ca)
        except (InvalidHandshake, InvalidURI) as error:
            raise ServerUnknownError(f"{url} refused the connection: {error}") from error
        async with opened as socket, asyncio.TaskGroup() as tasks:
            await socket.send(frames.encode("hello", self._host.hello()))
            beating = tasks.create_task(self._beat(socket))
            sending: list[asyncio.Task[None]] = []
            async for data in socket:
                self.last_contact = self._clock.monotonic()
                kind, body = frames.decode(data)
                if kind == "welcome" and not sending:
                    self._welcomed(body)
                    logs = self._host.log_sender.serve(socket.send, body.get("logs"))
                    sending = [tasks.create_task(each) for each in (self._send(socket), logs)]
                else:
                    await self._take(socket, kind, body)
            for task in (beating, *sending):
                task.cancel()

    def _welcomed(self, body: dict[str, Any]) -> None:
        # The answer says what the control plane has stored, also if its last acks were lost.
        self._spool.acknowledge(_number(body, "last_sequence"))
        behind = self._spool.next_sequence - self._spool.first_sequence
        self._learn(body.get("servers"))
        self._log.info("connected", replaying=behind, failures=self._failures)
        self._failures = 0

    async def _take(self, socket: ClientConnection, kind: str, body: dict[str, Any]) -> None:
        match kind:
            case "ack":
                self._spool.acknowledge(_number(body, "sequence"))
            case "command":
                await self._command(socket, body)
            case "log_request" | "log_tails_kept":
                self._host.log_sender.take(kind, body)
            case "servers":
                self._learn(body.get("urls"))
            case "redirect" if isinstance(body.get("url"), str) and self._is_safe(body["url"]):
                self._redirect = body["url"]
            case "refused" if body.get("fenced"):
                self._host.fenced(str(body.get("reason", "")))
            case "refused":
                reason = str(body.get("reason", ""))
                if reason != self._refused:
                    self._log.error("the control plane refused the connection", reason=reason)
                self._refused = reason
            case _:
                self._log.warning("unknown frame", kind=kind)

    async def _command(self, socket: ClientConnection, body: dict[str, Any]) -> None:
        try:
            command = _COMMAND.validate_python(body)
        except ValidationError as error:  # do not acknowledge: a newer agent may know the command
            self._log.error("unknown command ignored", body=body, error=str(error))
            return
        await socket.send(frames.encode("ack_command", {"id": command.id}))
        self._host.handle(command)

    async def _send(self, socket: ClientConnection) -> None:
        sent = self._spool.first_sequence - 1
        while True:
            self._spool_grew.clear()
            for sequence, frame in self._spool.after(sent):
                await socket.send(frame)
                sent = sequence
            await self._spool_grew.wait()

    async def _beat(self, socket: ClientConnection) -> None:
        while True:
            await socket.send(frames.encode("heartbeat", self._host.heartbeat()))
            await self._clock.sleep(_HEARTBEAT_SECONDS)


async def _open(url: str, headers: dict[str, str], ca: Path | None) -> ClientConnection:
    """A connection to a server, on this machine by its socket, or anywhere by its port.

    Raises:
        ServerUnknownError: Another user's process has the socket: the token is not for it.
    """
    options: dict[str, Any] = {
        "additional_headers": headers,
        "compression": None,
        "max_size": None,
        "open_timeout": _OPEN_SECONDS,
        "close_timeout": 1.0,
        "ping_interval": _PING_SECONDS,
        "ping_timeout": _PING_SECONDS,
    }
    if "proxy" in inspect.signature(connect).parameters:  # before websockets 15 there were none
        options["proxy"] = None
    if not url.startswith(unix_socket.AGENT_SCHEME):
        if url.startswith("wss:"):
            options["ssl"] = ssl.create_default_context(cafile=ca)
        return await connect(url, **options)
    peer = socket.socket(socket.AF_UNIX)
    try:
        peer.setblocking(False)
        with unix_socket.address(Path(url.removeprefix(unix_socket.AGENT_SCHEME))) as address:
            await asyncio.get_running_loop().sock_connect(peer, address)
    except BaseException:
        peer.close()
        raise
    if not unix_socket.is_ours(peer):
        peer.close()
        raise ServerUnknownError(f"{url} belongs to another user")
    return await connect("ws://localhost/agent", sock=peer, **options)


def _number(body: dict[str, Any], name: str) -> int:
    value = body.get(name)
    if not isinstance(value, int):
        raise frames.FrameError(f"expected a number `{name}`, got {value!r}")
    return value


def _flattened(group: BaseExceptionGroup[Exception]) -> list[BaseException]:
    """The exceptions of nested groups."""
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _flattened(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found
