"""A controller on a simulated cluster, for benchmarks whose agents are scripted."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from jobs.clock import SystemClock
from orchestrator.alerts.port import Notifier
from orchestrator.clusters.port import AgentAccess
from orchestrator.clusters.simulated import SimulatedCluster
from orchestrator.controller.controller import Controller
from orchestrator.controller.settings import ControllerSettings
from orchestrator.core.messages.events import NodeInfo
from orchestrator.database.sql_store import SqlStore


@contextlib.asynccontextmanager
async def running_controller(
    url: str, nodes: int, gpus: int, *, alone: bool = True, notifier: Notifier | None = None
) -> AsyncIterator[tuple[Controller, SimulatedCluster]]:
    """The real controller, core and store, as the leader; workers start and send nothing.

    Args:
        url: A database with the schema.
        nodes: Number of nodes.
        gpus: GPUs of each node.
        alone: False: the controller competes for the lead, as with several of them.
        notifier: The alert channel; None: the log.
    """
    store = await SqlStore.open(url)
    clock = SystemClock()
    cluster = SimulatedCluster([NodeInfo(id=f"n{i:05d}", gpus=gpus) for i in range(nodes)], clock)
    controller = Controller(
        store,
        cluster,
        clock,
        settings=ControllerSettings(holder="benchmark", alone=alone, worker_lost_seconds=3600.0),
        agent_access=lambda _run, _worker: AgentAccess("ws://127.0.0.1:1/agent", "token"),
        notifier=notifier,
    )
    await controller.start()
    try:
        await until(lambda: controller.is_leader and len(controller.state.nodes) == nodes)
        yield controller, cluster
    finally:
        await controller.stop()
        await cluster.close()
        await store.close()


async def until(done: Callable[[], bool]) -> None:
    """Wait until something is true."""
    while not done():  # noqa: ASYNC110 (what is waited for tells nobody)
        await asyncio.sleep(0.005)
