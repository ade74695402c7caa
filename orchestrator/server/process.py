"""One server process.

The process connects database, cluster, alert channel, controller and HTTP application, and keeps
them running.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import structlog
import uvicorn
from pydantic import SecretStr

from jobs.clock import Clock
from orchestrator.alerts.factory import make_notifier
from orchestrator.clusters.factory import make_cluster
from orchestrator.clusters.port import AgentAccess
from orchestrator.controller.controller import Controller
from orchestrator.controller.settings import ControllerSettings
from orchestrator.database import schema
from orchestrator.database.port import Store
from orchestrator.database.sql_store import SqlStore
from orchestrator.errors import BabysitError
from orchestrator.private_home import make_private
from orchestrator.server.app import create_app
from orchestrator.server.gateway import WorkerTokens, create_gateway
from orchestrator.server.server_file import ServerRecord, read_record, write_record
from orchestrator.settings import Settings

_log = structlog.get_logger(__name__)
_IDLE_LOOK_SECONDS = 1.0


class AlreadyRunningError(BabysitError):
    """Another server uses the same home."""


async def serve(settings: Settings, clock: Clock, *, embedded: bool) -> None:
    """Serve until SIGTERM or SIGINT or, when embedded, until idle.

    Raises:
        AlreadyRunningError: Another server uses `settings.home`.
        InvalidError: The settings name a cluster or an alert channel that does not exist.
        UnsafeHomeError: Other users can read or change `settings.home`.
    """
    make_private(settings.home)
    with _only_one(settings.home / "server.lock"), _listening(settings) as listener:
        settings = _reachable(_with_token(settings), listener)
        await schema.upgrade(settings.database)
        store = await SqlStore.open(settings.database)
        try:
            async with _control_plane(settings, clock, store) as (controller, tokens):
                app = create_app(controller, clock, settings, create_gateway(controller, tokens))
                _announce(settings, listener)
                await _run(app, listener, controller, settings, clock, embedded=embedded)
        finally:
            await store.close()


@contextlib.asynccontextmanager
async def _control_plane(
    settings: Settings, clock: Clock, store: Store
) -> AsyncIterator[tuple[Controller, WorkerTokens]]:
    tokens = WorkerTokens(await store.signing_key())
    notifier, cluster = make_notifier(settings), make_cluster(settings, clock)
    controller = Controller(
        store,
        cluster,
        clock,
        settings=ControllerSettings(
            holder=f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}",
            lease_seconds=settings.lease_seconds,
            worker_lost_seconds=settings.worker_lost_seconds,
            # The lock file proves that no other server of this home lives, and so of its database.
            alone=not settings.database_url,
        ),
        agent_access=lambda run, worker: AgentAccess(settings.agent_url, tokens.make(run, worker)),
        notifier=notifier,
    )
    await controller.start()
    try:
        yield controller, tokens
    finally:
        await controller.stop()
        await cluster.close()


@contextlib.contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; the kernel releases it however this process ends."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise AlreadyRunningError(
                f"another server uses {path.parent}: stop it, or set BABYSIT_HOME"
            ) from error
        yield


@contextlib.contextmanager
def _listening(settings: Settings) -> Iterator[socket.socket]:
    """A bound socket.

    With port 0, the socket gets the port of the previous server if that is free, since agents and
    clients know it.
    """
    ports = [settings.port] if settings.port else [_last_port(settings.server_file), 0]
    for port in ports:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, port))
        except OSError as error:
            listener.close()
            if port == ports[-1]:
                raise BabysitError(
                    f"cannot listen on {settings.host}:{port}: {error.strerror}; set BABYSIT_PORT"
                ) from error
            continue
        listener.listen(128)
        try:
            yield listener
        finally:
            listener.close()
        return


def _last_port(file: Path) -> int:
    before = read_record(file)
    _, _, port = (before.url if before else "").rpartition(":")
    return int(port) if port.isdigit() else 0


def _with_token(settings: Settings) -> Settings:
    """Reuse the token of the previous server, so that clients keep their access; else make one."""
    if settings.token is not None:
        return settings
    before = read_record(settings.server_file)
    token = (before and before.token) or secrets.token_urlsafe(24)
    return settings.model_copy(update={"token": SecretStr(token)})


def _address(listener: socket.socket) -> str:
    """`host:port` at which this machine reaches the listener."""
    host, port = listener.getsockname()[:2]
    shown = "127.0.0.1" if host in {"0.0.0.0", ""} else host  # noqa: S104 (compared, not bound)
    return f"{shown}:{port}"


def _reachable(settings: Settings, listener: socket.socket) -> Settings:
    """The settings with the URL that agents use filled in."""
    if settings.agent_url:
        return settings
    return settings.model_copy(update={"agent_url": f"ws://{_address(listener)}/agent"})


def _announce(settings: Settings, listener: socket.socket) -> None:
    """Write the server's URLs and token into a file that only its owner may read."""
    record = ServerRecord(
        pid=os.getpid(),
        url=f"http://{_address(listener)}",
        agent_url=settings.agent_url,
        token=settings.token.get_secret_value() if settings.token else "",
    )
    write_record(settings.server_file, record)
    _log.info("serving", url=record.url, home=str(settings.home))


async def _run(
    app: Any,
    listener: socket.socket,
    controller: Controller,
    settings: Settings,
    clock: Clock,
    *,
    embedded: bool,
) -> None:
    config = uvicorn.Config(
        app,
        log_level="warning",
        lifespan="off",
        ws="websockets-sansio",
        ws_max_size=256 * 2**20,
        timeout_graceful_shutdown=int(settings.drain_seconds) or None,
    )
    server = uvicorn.Server(config)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, setattr, server, "should_exit", True)
    idle = asyncio.create_task(_leave_when_idle(server, app, controller, settings, clock))
    if not embedded:
        idle.cancel()
    try:
        await server.serve(sockets=[listener])
    finally:
        idle.cancel()
        await asyncio.gather(idle, return_exceptions=True)


async def _leave_when_idle(
    server: uvicorn.Server, app: Any, controller: Controller, settings: Settings, clock: Clock
) -> None:
    """Stop an embedded server after `idle_exit_seconds` without an active run or a request."""
    since, seen = clock.monotonic(), -1
    while not server.should_exit:
        await clock.sleep(_IDLE_LOOK_SECONDS)
        requests = app.state.context.requests
        if requests != seen or controller.state.runs or not controller.is_leader:
            since, seen = clock.monotonic(), requests
        elif clock.monotonic() - since > settings.idle_exit_seconds:
            _log.info("idle: leaving", after_seconds=settings.idle_exit_seconds)
            server.should_exit = True
