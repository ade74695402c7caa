"""Workers as actors: :class:`orchestrator.clusters.port.Cluster` on a Ray cluster."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Collection, Coroutine, Mapping
from pathlib import Path
from typing import Any

import structlog

from jobs.clock import Clock
from jobs.config import AgentConfig
from jobs.log_files import LogLimit
from monitors.exit_rules import RuleFile
from orchestrator.clusters.errors import ClusterError, unknown_node
from orchestrator.clusters.port import (
    Change,
    InventoryChanged,
    WorkerGone,
    WorkerLaunch,
    WorkerStuck,
)
from orchestrator.clusters.ray.edge import Edge
from orchestrator.clusters.ray.facts import Order
from orchestrator.clusters.ray.nodes import NodeNames, chosen, inventory
from orchestrator.core.messages.events import NodeInfo

_log = structlog.get_logger(__name__)
CLOSE_SECONDS = 5.0
"""How long the last acknowledgements may take; an end whose one is cut off is reported again."""
RETRY_SECONDS = 5.0
_LATER = Path("/to-be-set-on-the-node")
"""Stands for paths that only the node knows."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RaySettings:
    """Settings of the Ray cluster; see :mod:`orchestrator.ray_settings`."""

    topology: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Level -> label."""
    nodes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Labels that a node must have to be used."""
    runtime_env: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    directory: str = ""
    stop_seconds: float = 10.0
    """Seconds between SIGINT and SIGKILL when an agent is stopped."""
    log_limit: LogLimit = dataclasses.field(default_factory=LogLimit)
    log_rules: tuple[RuleFile, ...] = ()
    agent: tuple[str, ...] = ()
    """Command that takes the path of a config; empty: the agent, by the node's own Python."""


class RayCluster:
    """Implements the port on Ray."""

    ignored_fields: Mapping[str, str] = {"kubernetes": "a Ray cluster starts no Pod"}
    needed_fields: Mapping[str, str] = {}
    runs_here = False
    takes_bundles = True

    def __init__(self, edge: Edge, clock: Clock, settings: RaySettings) -> None:
        self._edge, self._clock, self._settings = edge, clock, settings
        edge.heard = self._heard
        self._names = NodeNames()
        self._changes: asyncio.Queue[Change | None] = asyncio.Queue()
        self._told: Change | None = None
        """The last yielded change, if its reader stored nothing of it; the next reader gets it."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    # --- the port ---------------------------------------------------------------------------

    async def nodes(self) -> list[NodeInfo]:
        """The inventory, without what other jobs of the Ray cluster use."""
        seen = chosen(await self._edge.ask("snapshot"), self._settings.nodes)
        self._names.update(seen.nodes)
        return inventory(seen, self._names, self._settings.topology)

    async def launch(self, launch: WorkerLaunch) -> None:
        """Create the worker's actor, and have it start the agent.

        Raises:
            ClusterError: No such node, or it is full, or Ray is away.
            ValueError: The runtime environment cannot be had, the environment of the submission is
                lost, or babysit is not installed on the nodes.
        """
        if launch.environment is None:
            raise ValueError(
                "the environment that was submitted with it is not on this server's disk: submit"
                " the run again"
            )
        node = await self._node(launch)
        resources = launch.spec.resources
        order = Order(
            worker=launch.worker,
            run=launch.run,
            node=node,
            node_name=launch.node,
            config=self._config(launch).model_dump_json(),
            environment=launch.environment.model_dump_json(),
            ca=launch.ca,
            cpus=resources.cpus_per_node,
            gpus=resources.gpus_per_node,
            memory=resources.memory_per_node or 0,
            runtime_env=self._runtime_env(launch),
            directory=self._settings.directory,
            command=self._settings.agent,
        )
        try:
            await self._edge.ask("launch", order)
        except ClusterError as error:
            raise ClusterError(str(error), node=launch.node, worker=launch.worker) from error

    async def stop(self, worker: str, run: str) -> None:
        """Have the actor end its agent: SIGINT, a time to obey, SIGKILL; its node sees to it."""
        await self._edge.ask("stop", worker, run, self._settings.stop_seconds)

    async def alive(self, worker: str, run: str) -> bool | None:
        """Ask Ray. None while Ray is away, or does not know how the worker ended."""
        try:
            alive: bool | None = await self._edge.ask("alive", worker, run)
        except ClusterError:
            return None
        return alive

    async def changes(self) -> AsyncIterator[Change]:
        """News of workers; see the port."""
        if self._closed:
            return
        self._edge.start()
        while (change := self._told or await self._changes.get()) is not None:
            self._told = change
            yield change
            self._told = None
            if isinstance(change, WorkerGone):
                self._spawn(self._acknowledge(change))

    async def keep_runs(self, runs: Collection[str]) -> None:
        """Remove the keys of other runs from Ray's store."""
        await self._edge.ask("keep_runs", tuple(runs))

    async def cordon(self, reasons: Mapping[str, str]) -> None:
        """Do nothing: Ray has no word that keeps new work off a node and leaves the old alone."""

    async def close(self) -> None:
        """Stop watching. Actors continue."""
        self._closed = True
        if self._tasks:  # what a reader has stored need not be told to the next server
            await asyncio.wait(self._tasks, timeout=CLOSE_SECONDS)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._edge.close()
        self._changes.put_nowait(None)

    # --- starting ---------------------------------------------------------------------------

    async def _node(self, launch: WorkerLaunch) -> str:
        """Ray's id of the node."""
        node = self._names.find(launch.node)
        if node is None:
            await self.nodes()
            node = self._names.find(launch.node)
        if node is None:
            raise unknown_node(launch.node, launch.worker, self._names.all())
        return node

    def _runtime_env(self, launch: WorkerLaunch) -> dict[str, Any]:
        """Ray's runtime environment of the actor: what the spec says wins over the settings."""
        found = {**self._settings.runtime_env, **launch.spec.ray.runtime_env}
        if launch.spec.image:
            found["image_uri"] = launch.spec.image
        return found

    def _config(self, launch: WorkerLaunch) -> AgentConfig:
        return AgentConfig(
            run=launch.run,
            worker=launch.worker,
            node=launch.node,
            address="",  # the node's, by the environment
            server_url=launch.server_url,
            token=launch.token,
            bundle=launch.bundle,
            checks=launch.checks,
            peer=launch.peer,
            directory=_LATER,
            log_directory=_LATER,
            memory_directory=_LATER,
            environment_file=Path("/dev/stdin"),
            spec=launch.spec,
            grace_seconds=launch.grace_seconds,
            log_limit=self._settings.log_limit,
            log_rules=self._settings.log_rules,
        )

    # --- hearing ----------------------------------------------------------------------------

    def _heard(self, facts: tuple[Any, ...]) -> None:
        kind, *rest = facts
        if kind == "gone":
            worker, run, reason = rest
            change: Change = WorkerGone(worker=worker, run=run, reason=reason)
        elif kind == "stuck":
            worker, run, reason = rest
            change = WorkerStuck(worker=worker, run=run, reason=reason, elsewhere=bool(reason))
        else:
            change = InventoryChanged()
        self._changes.put_nowait(change)

    async def _acknowledge(self, gone: WorkerGone) -> None:
        """Store in Ray that the end is stored here. Tried until it is done."""
        while True:
            try:
                await self._edge.ask("acknowledge", gone.worker, gone.run)
            except ClusterError as error:
                _log.warning("end not acknowledged", worker=gone.worker, error=str(error))
                await self._clock.sleep(RETRY_SECONDS)
            else:
                return

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
