"""Carrying instructions out: the live end of the outbox.

Entries are in the database before they come here, and are marked done after they are carried out;
a crash in between repeats
them, which is harmless: clusters and agents take each once.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Protocol

import structlog

from jobs.clock import Clock
from jobs.commands import AgentCommand
from orchestrator.alerts.port import CountedNotifier, Notifier
from orchestrator.clusters.errors import ClusterError
from orchestrator.clusters.port import AgentAccess, Cluster, WorkerLaunch
from orchestrator.core.messages.instructions import (
    BroadcastCommand,
    Instruction,
    LaunchWorker,
    Notify,
    ProbeWorker,
    SendCommand,
    StopWorker,
)
from orchestrator.core.model.state import State
from orchestrator.core.model.states import WorkerState
from orchestrator.errors import LeadershipLostError

_log = structlog.get_logger(__name__)
LAUNCH_TRIES = 3
RETRY_SECONDS = 1.0
PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Seconds between tries; the last for ever."""


class AgentLink(Protocol):
    """An agent's connection, as the gateway holds it."""

    async def send(self, command: AgentCommand) -> None:
        """Send a command; the agent acknowledges its id.

        Raises ConnectionError when the link is down.
        """


class OutboxDispatcher:
    """Carries instructions out, each in its own task; those for an agent wait for its link."""

    def __init__(
        self,
        cluster: Cluster,
        notifier: Notifier,
        clock: Clock,
        *,
        agent_access: Callable[[str, str], AgentAccess],
        worker_gone: Callable[[str, str, str], Awaitable[None]],
        done: Callable[[str], None],
    ) -> None:
        self._cluster, self._clock = cluster, clock
        self._notifier = CountedNotifier(notifier)
        self.notices = self._notifier.counts
        """Notices told since this server started, by channel and result."""
        self.ignored_fields = {**cluster.ignored_fields, **notifier.ignored_fields}
        """Fields of a run spec that have no effect here, with the reason."""
        self._agent_access, self._worker_gone, self._done = agent_access, worker_gone, done
        self._links: dict[str, AgentLink] = {}
        self._commands: dict[str, dict[str, SendCommand]] = {}
        self._open: dict[str, int] = {}
        """Agents that have not taken their part of a gang's command yet, by its id."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._state = State()

    def start(self, state: State, outbox: Iterable[Instruction]) -> None:
        """Begin with what an earlier leader left."""
        self.go_by(state)
        self._commands.clear()
        self._open.clear()
        self.dispatch(outbox)

    def go_by(self, state: State) -> None:
        """What the core knows is another object from now on."""
        self._state = state

    async def stop(self) -> None:
        """Drop everything under way; the outbox keeps it."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._links.clear()
        self._commands.clear()
        self._open.clear()

    def dispatch(self, instructions: Iterable[Instruction]) -> None:
        """Take instructions that are in the outbox."""
        for instruction in instructions:
            if isinstance(instruction, SendCommand):
                self._tell(instruction)
            elif isinstance(instruction, BroadcastCommand):
                self._open[instruction.id] = len(instruction.workers)
                for tell in instruction.each():
                    self._tell(tell)
            else:
                self._spawn(self._execute(instruction))

    # agents

    def attach(self, worker: str, link: AgentLink) -> None:
        """An agent is connected: send what waits for it, in order."""
        self._links[worker] = link
        self._spawn(self._send_all(worker, link))

    def detach(self, worker: str, link: AgentLink) -> None:
        """The connection is gone."""
        if self._links.get(worker) is link:
            del self._links[worker]

    def attached(self, worker: str) -> bool:
        """Whether the agent is connected."""
        return worker in self._links

    def acknowledged(self, worker: str, command: str) -> None:
        """The agent has taken a command."""
        if self._commands.get(worker, {}).pop(command, None) is not None:
            self._taken(command)

    def forget(self, worker: str) -> None:
        """The worker has ended: nobody will ever take its commands."""
        for command in self._commands.pop(worker, {}):
            self._taken(command)

    def _taken(self, command: str) -> None:
        """One agent needs a command no more; a gang's is done with the last of them."""
        left = self._open.pop(command, 1) - 1
        if left:
            self._open[command] = left
        else:
            self._done(command)

    def _tell(self, tell: SendCommand) -> None:
        known = self._state.workers.get(tell.worker)
        if known is None or known.state is WorkerState.ENDED:
            self._taken(tell.id)
            return
        self._commands.setdefault(tell.worker, {})[tell.id] = tell
        link = self._links.get(tell.worker)
        if link is not None:
            self._spawn(self._send(link, tell))

    async def _send_all(self, worker: str, link: AgentLink) -> None:
        for tell in list(self._commands.get(worker, {}).values()):
            await self._send(link, tell)

    async def _send(self, link: AgentLink, tell: SendCommand) -> None:
        try:
            await link.send(tell.command)
        except ConnectionError as error:
            # It stays in `_commands`, and goes out when the agent is back.
            _log.info(
                "command waits for the agent", worker=tell.worker, id=tell.id, error=str(error)
            )

    # the cluster and people

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("an instruction was not carried out", exc_info=task.exception())

    async def _execute(self, instruction: Instruction) -> None:
        """Until it is done: what nobody has foreseen may pass as well as what was."""
        for pause in itertools.chain(PAUSES, itertools.repeat(PAUSES[-1])):
            try:
                await self._act(instruction)
            except LeadershipLostError as error:
                # No failure, and nothing to try again: a server that was replaced must not act,
                # and must not note the instruction as done. The new leader finds it in the outbox.
                _log.info("left to the new leader", id=instruction.id, error=str(error))
                return
            except Exception:  # noqa: BLE001 (a defect of a port, or a service that is away)
                _log.exception("not carried out yet", id=instruction.id, kind=instruction.kind)
                if not self._matters(instruction):
                    break
                await self._clock.sleep(pause)
            else:
                break
        self._done(instruction.id)

    async def _act(self, instruction: Instruction) -> None:
        match instruction:
            case LaunchWorker():
                await self._launch(instruction)
            case StopWorker() | ProbeWorker():
                await self._ask_cluster(instruction)
            case Notify():
                await self._notifier.notify(instruction)

    def _matters(self, instruction: Instruction) -> bool:
        """Whether there still is somebody to do it to."""
        worker = getattr(instruction, "worker", None)
        return worker is None or worker in self._state.workers

    async def _ask_cluster(self, order: StopWorker | ProbeWorker) -> None:
        """Until the cluster has answered, or nothing is left to be asked about."""
        for pause in itertools.chain(PAUSES, itertools.repeat(PAUSES[-1])):
            try:
                if isinstance(order, StopWorker):
                    await self._cluster.stop(order.worker, str(order.run))
                elif await self._cluster.alive(order.worker, str(order.run)) is False:
                    gone = "no process of it is alive"
                    await self._worker_gone(order.worker, str(order.run), gone)
            except ClusterError as error:
                _log.warning(
                    "the cluster did not do it",
                    kind=order.kind,
                    worker=order.worker,
                    error=str(error),
                )
                if not self._matters(order):
                    return
                await self._clock.sleep(pause)
            else:
                return

    async def _launch(self, order: LaunchWorker) -> None:
        worker, run = self._state.workers.get(order.worker), self._state.runs.get(str(order.run))
        if worker is None or run is None or not self._wanted(worker.id):
            return
        access = self._agent_access(run.id, worker.id)
        launch = WorkerLaunch(
            worker=worker.id,
            run=run.id,
            node=worker.node,
            spec=run.spec,
            server_url=access.server_url,
            token=access.token,
        )
        for left in reversed(range(LAUNCH_TRIES)):
            try:
                await self._cluster.launch(launch)
            except ClusterError as error:
                _log.warning("launch failed", worker=worker.id, error=str(error), tries_left=left)
                if not left:
                    await self._give_up(order, str(error))
                    return
                await self._clock.sleep(RETRY_SECONDS)
                if not self._wanted(worker.id):
                    return
            else:
                return

    async def _give_up(self, order: LaunchWorker, why: str) -> None:
        """A launch that failed may have taken effect: an agent is gone once the cluster ends it."""
        fields = order.model_dump(include={"id", "cause", "run", "worker", "node"})
        await self._ask_cluster(StopWorker(reason=why, **fields))
        with contextlib.suppress(ClusterError):  # then the cluster tells by itself
            if await self._cluster.alive(order.worker, str(order.run)) is False:
                await self._worker_gone(order.worker, str(order.run), why)

    def _wanted(self, worker: str) -> bool:
        """Whether a worker is still to be launched."""
        known = self._state.workers.get(worker)
        return known is not None and known.state is WorkerState.LAUNCHING
