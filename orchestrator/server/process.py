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
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import structlog
from fastapi import APIRouter

from jobs import unix_socket
from jobs.checks.results import CHECKS_RUN
from jobs.clock import Clock
from jobs.environment import Environment
from orchestrator.alerts import dead_man
from orchestrator.alerts.factory import make_notifier
from orchestrator.alerts.port import RunningChannel, TendedChannel
from orchestrator.clusters.factory import make_cluster
from orchestrator.clusters.kubernetes import leader_label
from orchestrator.clusters.port import AgentAccess
from orchestrator.controller.background_loops import cancel
from orchestrator.controller.controller import Controller
from orchestrator.controller.settings import ControllerSettings
from orchestrator.database import schema
from orchestrator.database.leadership import application_name
from orchestrator.database.port import Store
from orchestrator.database.sql_store import SqlStore
from orchestrator.database.time_limits import ServerLimits
from orchestrator.errors import BabysitError, InvalidError
from orchestrator.network_address import is_loopback, is_plain
from orchestrator.private_home import UnsafeHomeError, make_private, network_file_system
from orchestrator.registry import make
from orchestrator.server import daily_summary, slack_clicks
from orchestrator.server.agent_logs import LogDesk
from orchestrator.server.app import create_app
from orchestrator.server.bundles.cleanup import keep_clean
from orchestrator.server.bundles.in_database import MOST_BYTES
from orchestrator.server.bundles.store import BundleStore
from orchestrator.server.context import Context
from orchestrator.server.environments import Environments, keep_swept
from orchestrator.server.gateway import WorkerTokens, create_gateway
from orchestrator.server.hardware import own_machine
from orchestrator.server.hardware.routes import node_routes
from orchestrator.server.hardware.tokens import NodeTokens
from orchestrator.server.housekeeping import keep_tidy
from orchestrator.server.http_server import HttpServers
from orchestrator.server.listeners import Listeners, listening
from orchestrator.server.one_host import refuse_other_host
from orchestrator.server.remote_logs import RemoteLogs
from orchestrator.server.routes.bundles import agents_route
from orchestrator.server.server_file import ServerRecord, this_process, write_record
from orchestrator.settings import Settings

_log = structlog.get_logger(__name__)
_IDLE_LOOK_SECONDS = 1.0
_RELEASE_PODS = "orchestrator.clusters.kubernetes.release_pods:from_settings"
"""Imported where it is needed only: its client is an optional extra."""


class AlreadyRunningError(BabysitError):
    """Another server uses the same home."""


async def serve(settings: Settings, clock: Clock, *, embedded: bool) -> None:
    """Serve until SIGTERM or SIGINT or, when embedded, until idle.

    Raises:
        AlreadyRunningError: Another server uses `settings.home`.
        InvalidError: The settings name a cluster or an alert channel that does not exist.
        UnsafeHomeError: Other users can read or change `settings.home`, or its file system is not
            one for SQLite.
        BabysitError: Tokens would cross the network unencrypted.
    """
    make_private(settings.home)
    _refuse_unsafe(settings)
    with (
        only_one(settings.home / "server.lock"),
        listening(settings, embedded=embedded) as listeners,
    ):
        settings = _reachable(settings, listeners)
        await schema.upgrade(settings.database)
        holder = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        limits = ServerLimits(
            lease_seconds=settings.lease_seconds, application_name=application_name(holder)
        )
        store = await SqlStore.open(settings.database, limits)
        stores = store, store.for_readers()
        try:
            await refuse_other_host(store, settings, clock.now())
            async with _control_plane(settings, clock, stores, holder) as (controller, tokens):
                desk = None if controller.runs_here else LogDesk(store.log_tails, settings)
                gateway = create_gateway(controller, tokens, desk)
                gateway.include_router(agents_route(tokens))
                gateway.include_router(await _node_routes(store, settings))
                app = create_app(controller, clock, settings, gateway)
                app.state.context.bundles = BundleStore(settings, clock, stores[1].bundles)
                if desk is not None:
                    app.state.context.logs = RemoteLogs(desk, controller)
                servers = HttpServers(app, settings, listeners)
                _announce(settings, listeners)
                async with own_machine.watched(app.state.context):
                    await _run(servers, app.state.context, controller, embedded=embedded)
        finally:
            for each in reversed(stores):
                await each.close()


async def _node_routes(store: Store, settings: Settings) -> APIRouter:
    secret = settings.node_token.get_secret_value() if settings.node_token else ""
    return node_routes(NodeTokens(await store.signing_key(), secret))


def _refuse_unsafe(settings: Settings) -> None:
    """Refuse what would lose data, or give secrets away."""
    if not settings.database_url and (kind := network_file_system(settings.home)):
        raise UnsafeHomeError(
            f"{settings.home} is on a network file system ({kind}), where two hosts would damage a"
            " SQLite database: set BABYSIT_HOME to a directory on a local disk, or"
            " BABYSIT_DATABASE_URL to PostgreSQL"
        )
    if settings.allow_http:
        return
    if not (settings.tls_certificate or is_loopback(settings.host)):
        raise BabysitError(
            f"BABYSIT_HOST={settings.host} without TLS: tokens would cross the network unencrypted."
            " Set BABYSIT_TLS_CERTIFICATE and BABYSIT_TLS_KEY, or, behind a proxy that encrypts,"
            " BABYSIT_ALLOW_HTTP=1"
        )
    if is_plain(settings.agent_url):
        raise BabysitError(
            f"BABYSIT_AGENT_URL={settings.agent_url}: tokens of agents would cross the network"
            " unencrypted. Use wss://, or, if the network encrypts, set BABYSIT_ALLOW_HTTP=1"
        )


def _refuse_unreachable(settings: Settings) -> None:
    """Refuse to start workers that could not reach this server, and warn of lost code."""
    if settings.agent_url.startswith(unix_socket.AGENT_SCHEME):
        raise InvalidError(
            f"BABYSIT_CLUSTER={settings.cluster} starts agents on other machines: set"
            " BABYSIT_AGENT_URL to the URL at which they reach this server, such as"
            " wss://babysit.example.org/agent, and BABYSIT_HOST and BABYSIT_PORT to where it"
            " listens"
        )
    if settings.database_url and not settings.bundles:
        _log.warning(
            "code of runs that is too large for the database is in this home alone: set"
            " BABYSIT_BUNDLES to a URL that all servers reach",
            home=str(settings.home),
            most_bytes=MOST_BYTES,
        )


def agent_authorities(settings: Settings) -> str | None:
    """PEM text of the authorities that agents trust; None: those of their own system.

    Raises:
        BabysitError: The file is unreadable, or has no certificate: agents could not connect.
    """
    name, path = "BABYSIT_AGENT_CA", settings.agent_ca
    if path is None:
        name, path = "BABYSIT_CA", settings.ca
    if path is None:
        return None
    try:
        text = path.expanduser().read_text(encoding="ascii", errors="replace")
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except (OSError, ValueError) as error:  # an SSLError is an OSError
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise BabysitError(
            f"{name}={path}: {why}; expected a PEM file with the certificates of the authorities"
        ) from error
    return text


@contextlib.asynccontextmanager
async def _control_plane(
    settings: Settings, clock: Clock, stores: tuple[SqlStore, Store], holder: str
) -> AsyncIterator[tuple[Controller, WorkerTokens]]:
    store, readers = stores
    tokens = WorkerTokens(await store.signing_key())
    environments, authorities = Environments(settings.home), agent_authorities(settings)
    notifier, cluster = make_notifier(settings), make_cluster(settings, clock)
    if cluster.takes_bundles:
        _refuse_unreachable(settings)
    if isinstance(notifier, RunningChannel):
        await notifier.start(store.alert_memory, clock)
    controller = Controller(
        store,
        cluster,
        clock,
        settings=ControllerSettings(
            holder=holder,
            address=settings.agent_url,
            lease_seconds=settings.lease_seconds,
            worker_lost_seconds=settings.worker_lost_seconds,
            checks=settings.check_policy,
            # The lock file proves that no other server of this home lives, and so of its database.
            alone=not settings.database_url,
        ),
        agent_access=lambda run, worker: AgentAccess(
            settings.agent_url,
            tokens.make(run, worker),
            Environment() if run == CHECKS_RUN else environments.read(run),
            authorities,
        ),
        notifier=notifier,
    )
    controller.store = readers
    await controller.start()
    background = [
        asyncio.create_task(keep_swept(environments, controller, clock)),
        asyncio.create_task(keep_tidy(settings, clock, lambda: controller.is_leader)),
    ]
    if cluster.takes_bundles:
        background.append(
            asyncio.create_task(keep_clean(settings, clock, lambda: controller.is_leader))
        )
    if isinstance(notifier, TendedChannel):
        background.append(asyncio.create_task(notifier.tend(lambda: controller.is_leader)))
    if settings.pod:
        pods = make("BABYSIT_POD", "kubernetes", {"kubernetes": _RELEASE_PODS})(settings, clock)
        labelling = leader_label.keep(pods.own, pods, lambda: controller.is_leader, clock)
        background.append(asyncio.create_task(labelling))
    if settings.alerts_summary:
        summary = daily_summary.keep(settings.alerts_summary, controller, clock)
        background.append(asyncio.create_task(summary))
    if settings.slack_app_token:
        background.append(asyncio.create_task(slack_clicks.listen(settings, controller, clock)))
    if settings.watcher_url:
        background.append(asyncio.create_task(_hold_dead_man(settings, clock, controller)))
    try:
        yield controller, tokens
    finally:
        await cancel(background)
        await controller.stop()
        await cluster.close()
        if isinstance(notifier, RunningChannel):
            await notifier.close()


async def _hold_dead_man(settings: Settings, clock: Clock, controller: Controller) -> None:
    await dead_man.hold(
        str(settings.watcher_url and settings.watcher_url.get_secret_value()),
        settings.watcher_seconds,
        clock,
        lambda: controller.is_leader and not controller.database.reason,
    )


@contextlib.contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; the kernel releases it however this process ends."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise AlreadyRunningError(
                f"a server of {path.parent} is running: stop it with `babysit server stop`, or set"
                " another BABYSIT_HOME"
            ) from error
        yield


def _reachable(settings: Settings, listeners: Listeners) -> Settings:
    """The settings with the URL that agents use filled in.

    The agents of one machine use its socket. Where several servers share a database, the next one
    to lead has another home: its agents need a port.
    """
    if settings.agent_url:
        return settings
    scheme = "wss" if settings.tls_certificate else "ws"
    url = f"{unix_socket.AGENT_SCHEME}{listeners.path}"
    if settings.database_url and listeners.address is not None:
        url = f"{scheme}://{listeners.address}/agent"
    return settings.model_copy(update={"agent_url": url})


def _announce(settings: Settings, listeners: Listeners) -> None:
    """Write where the server is into a file of the home."""
    scheme = "https" if settings.tls_certificate else "http"
    record = ServerRecord(
        process=this_process(),
        host=socket.gethostname(),
        url=f"{unix_socket.HTTP_SCHEME}{listeners.path}",
        port_url=f"{scheme}://{listeners.address}" if listeners.address else "",
        agent_url=settings.agent_url,
    )
    write_record(settings.server_file, record)
    _log.info("serving", url=record.url, port=record.port_url, home=str(settings.home))


async def _run(
    servers: HttpServers,
    context: Context,
    controller: Controller,
    *,
    embedded: bool,
) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, servers.stop)
    idle = asyncio.create_task(_leave_when_idle(servers, context, controller))
    if not embedded:
        idle.cancel()
    try:
        await servers.serve()
    finally:
        idle.cancel()
        await asyncio.gather(idle, return_exceptions=True)


async def _leave_when_idle(servers: HttpServers, context: Context, controller: Controller) -> None:
    """Stop an embedded server after `idle_exit_seconds` without an active run or a request."""
    clock, limit = context.clock, context.settings.idle_exit_seconds
    since, seen = clock.monotonic(), -1
    while not servers.stopping:
        await clock.sleep(_IDLE_LOOK_SECONDS)
        requests = context.requests
        if requests != seen or controller.state.runs or not controller.is_leader:
            since, seen = clock.monotonic(), requests
        elif clock.monotonic() - since > limit:
            _log.info("idle: leaving", after_seconds=limit)
            servers.stop()
