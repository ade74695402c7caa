"""The local cluster: virtual nodes on this machine, each worker an agent in a session of its own.

Agents outlive the server, however the server ends. The next server finds them by the files of
:mod:`orchestrator.clusters.local.worker_records`. The end of an agent shows at its pidfd. The
cluster then waits for the agent's reaper (:mod:`jobs.agent.reaper`), kills every process that has
the worker's mark in its environment, and reports the worker gone only when none is left: the
controller starts the next attempt on that report.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import shutil
import signal
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from pathlib import Path

import structlog

from jobs import log_rules
from jobs.agent import command as agent_command
from jobs.agent.reaper import end_worker, strays
from jobs.checks.results import CHECKS_RUN
from jobs.clock import Clock, wait_at_most
from jobs.config import AgentConfig
from jobs.environment import Environment
from jobs.log_files import LogLimit
from jobs.processes import end_of, identify, is_alive, open_pidfd, send_signal
from jobs.yaml_file import SpecError
from monitors.exit_rules import RuleFile
from orchestrator.clusters.errors import ClusterError, unknown_node
from orchestrator.clusters.local import agent_process, hardware
from orchestrator.clusters.local.virtual_nodes import LocalClusterSettings, Node, virtual_nodes
from orchestrator.clusters.local.worker_records import Records, WorkerRecord, write_private
from orchestrator.clusters.own_nodes import OwnNodes
from orchestrator.clusters.port import Change, WorkerGone, WorkerLaunch
from orchestrator.core.messages.events import NodeInfo
from orchestrator.open_files import restore_limit
from orchestrator.settings import Settings

__all__ = ["LocalCluster", "LocalClusterSettings", "from_settings"]

_log = structlog.get_logger(__name__)
_IGNORED: Mapping[str, str] = {
    "image": "the local cluster starts no container: the command runs on this machine as it is",
    "kubernetes": "the local cluster starts no Pod",
    "ray": "the local cluster starts no actor",
}
_STUCK_SECONDS = 1.0
"""Pause between attempts to end processes that do not die (uninterruptible sleep)."""


@dataclasses.dataclass(slots=True, eq=False)
class _Watch:
    """A worker that may still have processes."""

    record: WorkerRecord
    descriptor: int | None
    """The agent's pidfd; None when the agent has ended."""
    gone: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)


def from_settings(settings: Settings, clock: Clock) -> LocalCluster:
    """The local cluster of one home, with the virtual nodes that the settings describe."""
    return LocalCluster(
        LocalClusterSettings(
            home=settings.home,
            ca=settings.agent_ca or settings.ca,
            nodes=settings.local_nodes,
            cpus_per_node=settings.local_cpus_per_node,
            gpus_per_node=settings.local_gpus_per_node,
            memory_per_node=settings.local_memory_per_node,
            log_limit=LogLimit(bytes=settings.log_bytes, files=settings.log_files),
            log_rules=_log_rules(settings.log_rules),
        ),
        clock,
    )


def _log_rules(path: Path | None) -> tuple[RuleFile, ...]:
    try:
        return () if path is None else (log_rules.read(path.expanduser()),)
    except SpecError as error:
        raise ClusterError(f"BABYSIT_LOG_RULES: {error}") from error


class LocalCluster(OwnNodes):
    """Implements :class:`orchestrator.clusters.port.Cluster` on this machine."""

    ignored_fields = _IGNORED

    runs_here, takes_bundles = True, False

    def __init__(self, settings: LocalClusterSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._records = Records(settings.home)
        self._inventory: dict[str, Node] | None = None
        self._watches: dict[str, _Watch] = {}
        self._ends: asyncio.Queue[WorkerGone | None] = asyncio.Queue()
        self._told: WorkerGone | None = None
        """The last yielded end, if its reader stored nothing of it; the next reader gets it."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._adopted = False

    # --- the port ---------------------------------------------------------------------------

    async def nodes(self) -> list[NodeInfo]:
        """The inventory. It does not change while the server runs."""
        return [node.info for node in (await self._nodes()).values()]

    async def launch(self, launch: WorkerLaunch) -> None:
        """Start an agent, unless it was started before.

        Raises:
            ClusterError: No such node, its GPUs are taken, a directory cannot be written, or
                the interpreter cannot be started.
            ValueError: The environment of the submission is lost.
        """
        environment = agent_process.required(launch.environment, self._settings.home)
        self._adopt()
        nodes = await self._nodes()
        if launch.node not in nodes:
            raise unknown_node(launch.node, launch.worker, list(nodes))
        what = f"cannot be started on {launch.node}"
        with (
            self._explained(what, launch.worker, launch.node),
            self._records.locked(launch.run, launch.worker),
        ):
            self._launch_once(launch, nodes[launch.node], environment)

    async def stop(self, worker: str, run: str) -> None:
        """SIGINT (the ranks end at once), a time to obey, SIGKILL. Returns when nothing is left."""
        self._adopt()
        watch = self._watches.get(worker) or self._never_seen(worker, run)
        if watch is None or watch.gone.is_set():
            return
        if watch.descriptor is not None:
            send_signal(watch.descriptor, signal.SIGINT)
        await wait_at_most(self._clock, watch.gone, self._settings.stop_grace_seconds)
        if not watch.gone.is_set():
            if watch.descriptor is not None:
                send_signal(watch.descriptor, signal.SIGKILL)
            await watch.gone.wait()

    async def alive(self, worker: str, run: str) -> bool | None:
        """True if the agent or any process it left is alive."""
        record = self._records.read(run, worker)
        if record and record.agent and is_alive(record.agent):
            return True
        return bool(await asyncio.to_thread(strays, worker))

    async def changes(self) -> AsyncIterator[Change]:
        """Workers that are gone; see the port."""
        self._adopt()
        while (gone := self._told or await self._ends.get()) is not None:
            self._told = gone
            yield gone
            self._told = None
            self._acknowledge(gone)

    async def close(self) -> None:
        """Stop watching. Agents continue."""
        for watch in self._watches.values():
            self._unwatch(watch)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._ends.put_nowait(None)

    async def _nodes(self) -> dict[str, Node]:
        if self._inventory is None:
            wanted = self._settings.gpus_per_node
            found = () if wanted == 0 else await asyncio.to_thread(hardware.gpu_uuids)
            nodes = virtual_nodes(self._settings, found)
            self._inventory = {node.info.id: node for node in nodes}
        return self._inventory

    # --- starting ---------------------------------------------------------------------------

    @contextlib.contextmanager
    def _explained(self, what: str, worker: str, node: str = "") -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ClusterError(
                f"worker {worker} {what}: {error}. Check that {self._settings.home} is writable "
                "and that the interpreter exists",
                node=node,
                worker=worker,
            ) from error

    def _launch_once(self, launch: WorkerLaunch, node: Node, environment: Environment) -> None:
        """Start the agent, unless its record or a running process shows an earlier start."""
        record = self._records.read(launch.run, launch.worker)
        if launch.worker in self._watches:
            return
        if record is not None:
            record = self._identified(record)
            if record.gone is not None or record.agent is not None:
                self._take_over(record)
                return
        record = WorkerRecord(
            worker=launch.worker,
            run=launch.run,
            node=launch.node,
            devices=self._free_devices(launch, node),
        )
        self._records.write(record)
        self._start(launch, record, environment)

    def _free_devices(self, launch: WorkerLaunch, node: Node) -> tuple[str, ...]:
        wanted = launch.spec.resources.gpus_per_node
        taken = {device for watch in self._watches.values() for device in watch.record.devices}
        free = [device for device in node.devices if device not in taken]
        if len(free) < wanted:
            raise ClusterError(
                f"{launch.node} has {len(free)} of its {len(node.devices)} GPUs free, and worker "
                f"{launch.worker} needs {wanted}: wait until the workers that hold them are gone",
                node=launch.node,
                worker=launch.worker,
            )
        return tuple(free[:wanted])

    def _start(self, launch: WorkerLaunch, record: WorkerRecord, environment: Environment) -> None:
        directory = self._records.directory(launch.run, launch.worker)
        config = self._config(launch)
        config.log_directory.mkdir(parents=True, exist_ok=True)
        self._records.make_memory(launch.run, launch.worker)
        path = directory / "config.json"
        write_private(path, config.model_dump_json())
        command = self._settings.agent or agent_command.HERE
        process = agent_process.start((*command, str(path)), directory, record, environment)
        restore_limit(process.pid)
        descriptor = os.pidfd_open(process.pid)
        process.returncode = 0  # reaped through the pidfd; Popen would warn that it still runs
        record = record.model_copy(update={"agent": identify(process.pid)})
        self._watch(record, descriptor)
        self._records.write(record)

    def _config(self, launch: WorkerLaunch) -> AgentConfig:
        return AgentConfig(
            run=launch.run,
            worker=launch.worker,
            node=launch.node,
            server_url=launch.server_url,
            ca=self._settings.ca,
            server_file=self._settings.home / "server.json",
            token=launch.token,
            bundle=launch.bundle,
            checks=launch.checks,
            peer=launch.peer,
            directory=self._records.directory(launch.run, launch.worker),
            log_directory=self._records.logs(launch.run),
            memory_directory=self._records.memory(launch.run, launch.worker),
            environment_file=agent_process.ENVIRONMENT_FILE,
            spec=launch.spec,
            grace_seconds=launch.grace_seconds,
            log_limit=self._settings.log_limit,
            log_rules=self._settings.log_rules,
        )

    # --- watching ---------------------------------------------------------------------------

    def _adopt(self) -> None:
        """Take over the workers of earlier servers, once."""
        if self._adopted:
            return
        self._adopted = True
        for record in self._records.unacknowledged():
            self._take_over(self._identified(record))

    def _identified(self, record: WorkerRecord) -> WorkerRecord:
        """The record with its agent: a server may die between starting one and recording it."""
        if record.agent is not None or record.gone is not None:
            return record
        config = str(self._records.directory(record.run, record.worker) / "config.json").encode()
        found = [identify(pid) for pid in strays(record.worker) if config in _arguments(pid)]
        # Forks of the agent share its arguments; it is the oldest.
        agent = min(filter(None, found), key=lambda identity: identity.start, default=None)
        return record.model_copy(update={"agent": agent})

    def _take_over(self, record: WorkerRecord) -> None:
        if record.gone is not None:
            self._report(record)
        elif record.agent is not None and record.worker not in self._watches:
            self._watch(record, open_pidfd(record.agent))
            self._records.write(record)

    def _watch(self, record: WorkerRecord, descriptor: int | None) -> None:
        watch = self._watches[record.worker] = _Watch(record, descriptor)
        if descriptor is None:
            how = "ended unobserved: no server was running" if record.agent else "never started"
            self._spawn(self._bury(watch, how))
        else:
            asyncio.get_running_loop().add_reader(descriptor, self._ended, watch)

    def _unwatch(self, watch: _Watch) -> None:
        if watch.descriptor is not None:
            asyncio.get_running_loop().remove_reader(watch.descriptor)
            os.close(watch.descriptor)
            watch.descriptor = None

    def _ended(self, watch: _Watch) -> None:
        """The pidfd is readable: the agent has ended."""
        how = end_of(watch.descriptor) if watch.descriptor is not None else "ended"
        self._unwatch(watch)
        self._spawn(self._bury(watch, how))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- ending -----------------------------------------------------------------------------

    async def _bury(self, watch: _Watch, how: str) -> None:
        """After the agent's end, remove the worker's processes and memory, then report it gone."""
        record = watch.record
        await self._sweep(record.worker)
        await self._free_memory(record)
        record = record.model_copy(update={"gone": f"agent {how}"})
        self._store(record)
        del self._watches[record.worker]
        self._report(record)
        watch.gone.set()

    async def _sweep(self, worker: str) -> None:
        clean = 0
        # Two clean scans in a row: during an exec a process shows no environment, so that one scan
        # may miss it.
        while clean < 2:
            left = await asyncio.to_thread(end_worker, worker)
            clean = 0 if left else clean + 1
            if left:
                _log.warning("processes survive SIGKILL", worker=worker, pids=left)
                await self._clock.sleep(_STUCK_SECONDS)

    async def _free_memory(self, record: WorkerRecord) -> None:
        """Remove the worker's memory tier: no other worker inherits it."""
        if not await asyncio.to_thread(self._records.free_memory, record.run, record.worker):
            path = self._records.memory(record.run, record.worker)
            _log.warning("memory directory cannot be removed", path=str(path))

    def _never_seen(self, worker: str, run: str) -> _Watch | None:
        """Record a worker that is gone or never started, so that it never starts from now on."""
        with self._explained("cannot be stopped", worker), self._records.locked(run, worker):
            record = self._records.read(run, worker)
            record = self._identified(record or WorkerRecord(worker=worker, run=run, node=""))
            if record.gone is None and record.agent is None:
                self._watch(record, None)
            else:
                self._take_over(record)
        return self._watches.get(worker)

    def _report(self, record: WorkerRecord) -> None:
        reason = record.gone or ""
        self._ends.put_nowait(WorkerGone(worker=record.worker, run=record.run, reason=reason))

    def _acknowledge(self, gone: WorkerGone) -> None:
        record = self._records.read(gone.run, gone.worker)
        if record is not None:
            self._store(record.model_copy(update={"acknowledged": True}))
        if gone.run == CHECKS_RUN:  # nobody asks for its files: the results are in the database
            shutil.rmtree(self._records.directory(gone.run, gone.worker), ignore_errors=True)

    def _store(self, record: WorkerRecord) -> None:
        try:
            self._records.write(record)
        except OSError as error:  # a full disk: the next server finds and reports it again
            _log.warning("worker record not written", worker=record.worker, error=str(error))


def _arguments(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return []
