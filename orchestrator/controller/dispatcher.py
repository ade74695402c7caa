"""The dispatcher: carries out instructions, and is the live end of the outbox.

The problem: an instruction must be carried out although the cluster, an agent or this server may
be away, and must never be carried out before the decision behind it is stored.

The design: instructions come here when they are in the database. Each is tried until it is done;
commands wait for the agent's connection. Then its id goes to `receipts`, from which a background
loop marks it as done in the outbox. A crash in between repeats the instruction, which is harmless:
clusters and agents take each id once.

Limits: instructions run side by side, in no order; only commands to one agent keep theirs.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Coroutine, Iterable
from typing import Protocol

import structlog

from jobs.checks.results import CHECKS_RUN
from jobs.clock import Clock
from jobs.commands import AgentCommand
from orchestrator.alerts.port import CountedNotifier, NotDeliveredError
from orchestrator.clusters.errors import ClusterError
from orchestrator.clusters.port import AgentAccess, Cluster, WorkerLaunch
from orchestrator.controller.check_launches import check_launch, is_wanted
from orchestrator.controller.live_state import LiveState
from orchestrator.controller.turn_queue import TurnQueue
from orchestrator.core.messages.check_events import CheckEnded
from orchestrator.core.messages.cluster_events import LaunchRefused
from orchestrator.core.messages.events import WorkerLost
from orchestrator.core.messages.instructions import (
    BroadcastCommand,
    CheckNode,
    IncidentUpdate,
    Instruction,
    LaunchWorker,
    Notify,
    ProbeWorker,
    SendCommand,
    StopCheck,
    StopWorker,
)
from orchestrator.core.messages.notice_events import AskDelivered
from orchestrator.core.model.states import WorkerState
from orchestrator.core.policy.time_limits import grace_seconds

_log = structlog.get_logger(__name__)
LAUNCH_TRIES = 3
"""Tries of a launch. After the last one fails, the core finds another node."""
RETRY_SECONDS = 1.0
"""Between two tries of a launch."""
PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Seconds between tries of everything else; the last for ever."""


class AgentLink(Protocol):
    """An agent's connection, as the gateway holds it."""

    async def send(self, command: AgentCommand) -> None:
        """Send a command; the agent acknowledges its id.

        Raises ConnectionError when the link is down.
        """


class OutboxDispatcher:
    """Carries out instructions, each in a task of its own; commands wait for their agent.

    Attributes:
        receipts: Ids of instructions that are carried out, or have nobody left to be carried out
            for, and are not marked as done in the outbox yet.
    """

    def __init__(
        self,
        cluster: Cluster,
        notifier: CountedNotifier,
        clock: Clock,
        *,
        live: LiveState,
        queue: TurnQueue,
        agent_access: Callable[[str, str], AgentAccess],
    ) -> None:
        self._cluster, self._notifier, self._clock = cluster, notifier, clock
        self._live, self._queue, self._agent_access = live, queue, agent_access
        self.receipts: list[str] = []
        self._links: dict[str, AgentLink] = {}
        self._commands: dict[str, dict[str, SendCommand]] = {}
        """Worker to the commands that it has not acknowledged, by id, oldest first."""
        self._open: dict[str, int] = {}
        """Id of a broadcast command to the number of agents that have not acknowledged it."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = False

    async def stop(self) -> None:
        """Drop everything under way, for good; the outbox keeps it for the next leader."""
        # A transaction that ends later must not have this server act: another may lead by then.
        self._stopped = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._links.clear()
        self._commands.clear()
        self._open.clear()

    def dispatch(self, instructions: Iterable[Instruction]) -> None:
        """Carry out instructions that are in the outbox. Returns at once."""
        if self._stopped:
            return
        for instruction in instructions:
            try:
                self._dispatch(instruction)
            except Exception:  # noqa: BLE001 (one instruction must not keep back all others)
                _log.exception("instruction failed; please report this", id=instruction.id)

    def _dispatch(self, instruction: Instruction) -> None:
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
        """Connect an agent: what waits for it is sent, in order. Replaces an older connection."""
        self._links[worker] = link
        self._spawn(self._send_all(worker, link))

    def detach(self, worker: str, link: AgentLink) -> None:
        """Note that a connection is gone; commands wait for the next one."""
        if self._links.get(worker) is link:
            del self._links[worker]

    def attached(self, worker: str) -> bool:
        """True while the agent is connected, as far as this server knows."""
        return worker in self._links

    def acknowledged(self, worker: str, command: str) -> None:
        """Note that an agent has taken a command; a second time has no effect."""
        if self._commands.get(worker, {}).pop(command, None) is not None:
            self._taken(command)

    def forget(self, worker: str) -> None:
        """Note that a worker has ended: its commands are done, as nobody will take them."""
        for command in self._commands.pop(worker, {}):
            self._taken(command)

    def _taken(self, command: str) -> None:
        """One agent needs a command no more; a broadcast is done with its last agent."""
        left = self._open.pop(command, 1) - 1
        if left:
            self._open[command] = left
        else:
            self._done(command)

    def _done(self, instruction: str) -> None:
        self.receipts.append(instruction)

    def _tell(self, tell: SendCommand) -> None:
        worker = self._live.state.workers.get(tell.worker)
        if worker is None or worker.state is WorkerState.ENDED:
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
            # It stays in the outbox, for the next leader.
            _log.error("instruction failed; please report this", exc_info=task.exception())

    async def _execute(self, instruction: Instruction) -> None:
        """Try until it is done, or nobody is left to do it for.

        Errors that no port should raise are tried again too: they may pass like those foreseen.
        """
        for pause in itertools.chain(PAUSES, itertools.repeat(PAUSES[-1])):
            try:
                await self._act(instruction)
            except NotDeliveredError as error:
                _log.warning("notice not delivered", id=instruction.id, error=str(error))
                await self._clock.sleep(pause)
            except Exception:  # noqa: BLE001 (a defect of a port, or a service that is away)
                _log.exception(
                    "instruction failed, will retry", id=instruction.id, kind=instruction.kind
                )
                if not self._matters(instruction):
                    break
                await self._clock.sleep(pause)
            else:
                break
        if self._queue.closed:
            # The cluster's answer may not have been stored. The instruction has not failed, but it
            # is not done either: the new leader finds it in the outbox.
            _log.info("instruction left to the new leader", id=instruction.id)
            return
        self._done(instruction.id)

    async def _act(self, instruction: Instruction) -> None:
        match instruction:
            case LaunchWorker():
                await self._launch(instruction)
            case CheckNode():
                await self._check(instruction)
            case StopWorker() | StopCheck() | ProbeWorker():
                await self._ask_cluster(instruction)
            case Notify():
                await self._notifier.notify(instruction)
                if instruction.asks and instruction.incident is not None:
                    # If another server leads by now, this instruction is left to it.
                    told = {"run": instruction.run, "incident": instruction.incident}
                    await self._queue.decide(AskDelivered, **told)
            case IncidentUpdate():
                await self._notifier.update(instruction)

    def _matters(self, instruction: Instruction) -> bool:
        """True if the worker that the instruction addresses still exists, or it addresses none."""
        worker = getattr(instruction, "worker", None)
        if isinstance(instruction, CheckNode):
            return is_wanted(self._live.state, instruction.node, instruction.worker)
        return (
            isinstance(instruction, StopCheck)
            or worker is None
            or worker in self._live.state.workers
        )

    async def _ask_cluster(self, order: StopWorker | StopCheck | ProbeWorker) -> None:
        """Try until the cluster has answered, or the worker is over."""
        for pause in itertools.chain(PAUSES, itertools.repeat(PAUSES[-1])):
            try:
                if isinstance(order, StopCheck):
                    await self._cluster.stop(order.worker, CHECKS_RUN)
                elif isinstance(order, StopWorker):
                    await self._cluster.stop(order.worker, str(order.run))
                elif await self._cluster.alive(order.worker, str(order.run)) is False:
                    await self._worker_gone(order, "no process of it is alive")
            except ClusterError as error:
                _log.warning(
                    "cluster call failed, will retry",
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
        state = self._live.state
        worker, run = state.workers.get(order.worker), state.runs.get(str(order.run))
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
            ca=access.ca,
            bundle=run.bundle,
            checks=order.checks,
            environment=access.environment,
            grace_seconds=grace_seconds(run),
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
            except ValueError as error:  # what it was given is wrong: no other try helps
                _log.warning("launch refused", worker=worker.id, error=str(error))
                await self._queue.decide(
                    LaunchRefused, run=run.id, worker=worker.id, reason=str(error)
                )
                return
            else:
                return

    async def _check(self, order: CheckNode) -> None:
        """Start the agent of a check, once; a check that cannot start ends without results."""
        if not is_wanted(self._live.state, order.node, order.worker):
            return
        access = self._agent_access(CHECKS_RUN, order.worker)
        try:
            await self._cluster.launch(check_launch(order, access))
        except (ClusterError, ValueError) as error:
            _log.warning("check cannot start", worker=order.worker, error=str(error))
            await self._queue.decide(CheckEnded, worker=order.worker, reason=str(error))

    async def _give_up(self, order: LaunchWorker, why: str) -> None:
        """Stop a worker whose launch failed, and only then say that it is gone.

        A launch that failed may have taken effect, and only its answer was lost.
        """
        fields = order.model_dump(include={"id", "cause", "run", "worker", "node"})
        await self._ask_cluster(StopWorker(reason=why, **fields))
        with contextlib.suppress(ClusterError):  # then the cluster reports the end by itself
            if await self._cluster.alive(order.worker, str(order.run)) is False:
                await self._worker_gone(order, why)

    async def _worker_gone(self, order: LaunchWorker | StopWorker | ProbeWorker, why: str) -> None:
        await self._queue.decide(
            WorkerLost, run=order.run, worker=order.worker, confirmed=True, reason=why
        )

    def _wanted(self, worker: str) -> bool:
        """True if a worker is still to be launched."""
        entity = self._live.state.workers.get(worker)
        return entity is not None and entity.state is WorkerState.LAUNCHING
