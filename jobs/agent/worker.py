"""The agent: one event loop that carries out commands; one lock orders starts and stops."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
from collections.abc import Coroutine
from typing import Any

import structlog

from jobs.agent import inventory, on_demand, reaper
from jobs.agent.connection import Connection
from jobs.agent.errors import LaunchError, StandbyLostError
from jobs.agent.fork_client import Launcher
from jobs.agent.gang import Gang, RankProcess, memory_checkpoints
from jobs.agent.network import free_port
from jobs.agent.outbox import Outbox
from jobs.agent.reporter import Reporter
from jobs.agent.spool import Spool
from jobs.clock import Clock
from jobs.commands import (
    CaptureStacks,
    Command,
    DeleteCheckpoint,
    Shutdown,
    StartAttempt,
    StopAttempt,
    VerifyCheckpoint,
)
from jobs.config import AgentConfig
from jobs.events import (
    AttemptStopped,
    Heartbeat,
    Hello,
    RanksStarted,
    WorkerJoined,
)
from monitors.failures import Failure, FailureClass

_DRAIN_SECONDS = 0.05
_SECOND = 1.0
_KILLED = -9


class Agent:
    """One worker. `run` returns when the run is over for it."""

    def __init__(self, config: AgentConfig, clock: Clock, chance: random.Random) -> None:
        self._config = config
        self._clock = clock
        self._chance = chance
        self._log = structlog.get_logger(part="agent")
        self._spool = Spool(config.directory / "spool" / "reports")
        self._launcher = Launcher(config, self)
        self._connection = Connection(config, self._spool, self, clock, chance)
        outbox = Outbox(self._spool, clock, self._connection.wake)
        self._reporter = Reporter(config, clock, outbox)
        self._warden = reaper.Warden(config.worker)
        self._gang: Gang | None = None
        self._newest = 0
        """Highest attempt started or stopped; older starts are stale."""
        self._lifecycle = asyncio.Lock()
        self._seen: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._over = asyncio.Event()
        self._crash: BaseException | None = None

    # --- life -----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until shut down, fenced, orphaned or told to leave; then leave nothing behind."""
        self._launcher.start()
        for work in (self._connection.run(), self._pump(), self._mind_orphanhood(), self._join()):
            self._spawn(work)
        try:
            await self._over.wait()
        finally:
            await self._leave()
        if self._crash is not None:
            raise self._crash

    def leave(self, reason: str) -> None:
        """Kill the ranks, remove what is on tmpfs, and return from :meth:`run`."""
        self._log.info("leaving", reason=reason)
        self._over.set()

    async def _leave(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._gang is not None:
            self._gang.kill()
        self._launcher.close()
        await asyncio.to_thread(self._warden.finish)
        await asyncio.to_thread(shutil.rmtree, self._config.memory_directory, ignore_errors=True)
        self._spool.close()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        """A task that failed is a bug: better to end, and say so, than to go on half alive."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._crash = self._crash or error
            self._over.set()

    async def _join(self) -> None:
        await self._launcher.ready.wait()
        config = self._config
        self._reporter.say(
            WorkerJoined(
                node=config.node,
                address=config.address,
                port=free_port(self._chance),
                pid=os.getpid(),
                **self._reporter.fields(0),
            )
        )

    async def _mind_orphanhood(self) -> None:
        """Nobody may ever come back for a worker that has nothing to do and hears from no one."""
        while True:
            await self._clock.sleep(_SECOND)
            idle = self._gang is None or self._gang.dead.is_set()
            silence = self._clock.monotonic() - self._connection.last_contact
            if idle and silence > self._config.orphan_seconds:
                self.leave(f"idle, and no word from the control plane for {silence:.0f} s")

    # --- what the connection asks ---------------------------------------------------------------

    def hello(self) -> Hello:
        """Who is calling."""
        config = self._config
        return Hello(
            run=config.run,
            worker=config.worker,
            node=config.node,
            attempt=self._newest,
            next_sequence=self._spool.first_sequence,
        )

    def heartbeat(self) -> Heartbeat:
        """Signs of life of the ranks."""
        gang = self._gang
        return Heartbeat(
            attempt=gang.attempt if gang else self._newest,
            time=self._clock.now().timestamp(),
            beats=gang.beats() if gang else (),
        )

    def fenced(self, reason: str) -> None:
        """Nothing of this worker counts any more."""
        self.leave(f"fenced: {reason}")

    def handle(self, command: Command) -> None:
        """Carry out a command, once."""
        if command.id in self._seen:
            return
        self._seen.add(command.id)
        self._log.info("command", command=command.kind, id=command.id, attempt=command.attempt)
        self._spawn(self._execute(command))

    async def _execute(self, command: Command) -> None:
        match command:
            case StartAttempt():
                await self._start(command)
            case StopAttempt():
                await self._stop(command)
            case CaptureStacks():
                await on_demand.capture_stacks(command, self._gang, self._reporter)
            case VerifyCheckpoint():
                await on_demand.verify_checkpoint(command, self._newest, self._reporter)
            case DeleteCheckpoint():
                await on_demand.delete_checkpoint(command, self._newest, self._reporter)
            case Shutdown():
                self.leave("the run is over")

    # --- attempts -------------------------------------------------------------------------------

    async def _start(self, command: StartAttempt) -> None:
        while True:  # waits outside the lock, so that a stop need not wait for a cold standby
            await self._launcher.ready.wait()
            async with self._lifecycle:
                if command.attempt <= self._newest:
                    self._log.warning("stale start", attempt=command.attempt, newest=self._newest)
                    return
                if self._launcher.ready.is_set():
                    self._newest = command.attempt
                    await self._end_gang()
                    await self._launch(command)
                    return

    async def _launch(self, command: StartAttempt) -> None:
        gang = Gang(command, self._config, self._clock.now().timestamp())
        self._gang = gang
        try:
            gang.prepare()
        except OSError as error:
            for rank in command.ranks:
                self._failed_to_start(gang, rank, FailureClass.STORAGE, str(error))
            return
        starts = (self._launch_rank(gang, process) for process in gang.ranks.values())
        await asyncio.gather(*starts)
        if gang.running:
            self._reporter.say(
                RanksStarted(ranks=command.ranks, **self._reporter.fields(gang.attempt, command.id))
            )

    async def _launch_rank(self, gang: Gang, process: RankProcess) -> None:
        key = f"{gang.attempt}/{process.rank}"
        try:
            await self._launcher.launch(key, gang.environment(process), process.log)
        except (LaunchError, StandbyLostError) as error:
            self._failed_to_start(gang, process.rank, FailureClass.UNKNOWN, str(error))

    def _failed_to_start(self, gang: Gang, rank: int, kind: FailureClass, why: str) -> None:
        reason = f"rank {rank} could not be started: {why}"
        failure = Failure(failure_class=kind, reason=reason, signature=f"{kind}:start")
        self._ended(gang, rank, 1, failure)

    async def _stop(self, command: StopAttempt) -> None:
        async with self._lifecycle:
            self._newest = max(self._newest, command.attempt)
            last_step = 0
            if self._gang is not None and self._gang.attempt <= command.attempt:
                gang = self._gang
                await self._end_gang(command.grace_seconds)
                last_step = gang.last_step if gang.attempt == command.attempt else 0
            if self._gang is None:
                await self._sweep()
            shards = await asyncio.to_thread(
                inventory.memory_shards, memory_checkpoints(self._config)
            )
            self._reporter.say(
                AttemptStopped(
                    memory_shards=shards,
                    port=free_port(self._chance),
                    last_step=last_step,
                    **self._reporter.fields(command.attempt, command.id),
                )
            )

    async def _end_gang(self, grace_seconds: float = 0.0) -> None:
        """Nothing of the gang is alive when this returns."""
        gang = self._gang
        if gang is None:
            return
        gang.stopping = True
        if grace_seconds > 0:
            gang.ask_to_leave()
            await self._either(gang.dead, grace_seconds)
        gang.kill()
        await gang.dead.wait()
        gang.close()
        self._gang = None

    async def _either(self, event: asyncio.Event, seconds: float) -> None:
        """Wait for the event, at most so long."""
        waits = [
            asyncio.ensure_future(event.wait()),
            asyncio.ensure_future(self._clock.sleep(seconds)),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _sweep(self) -> None:
        """Kill what left its group; one stuck in the kernel keeps us here: it is not dead."""
        spare = (self._launcher.pid, self._warden.pid)
        while left := await asyncio.to_thread(reaper.kill_strays, self._config.worker, spare):
            self._log.error("processes do not die of SIGKILL (stuck in the kernel?)", pids=left)
            await self._clock.sleep(_SECOND)

    # --- what the launcher tells ----------------------------------------------------------------

    def rank_started(self, key: str, pid: int) -> None:
        """A rank was forked."""
        gang, rank = self._find(key)
        if gang is not None:
            gang.started(rank, pid)

    def rank_exited(self, key: str, code: int) -> None:
        """A rank has ended, and its group with it."""
        gang, rank = self._find(key)
        if gang is not None:
            self._ended(gang, rank, code)

    def standby_lost(self, *, was_warm: bool) -> None:
        """The standby has ended, which its ranks do not survive."""
        self._spawn(self._replace_standby(was_warm=was_warm))

    async def _replace_standby(self, *, was_warm: bool) -> None:
        gang = self._gang
        await self._sweep()
        if gang is not None:
            for rank in [p.rank for p in gang.ranks.values() if p.alive]:
                self._ended(gang, rank, _KILLED)
        if not was_warm:
            await self._clock.sleep(_SECOND)
        self._launcher.start()

    def _find(self, key: str) -> tuple[Gang | None, int]:
        attempt, rank = map(int, key.split("/"))
        gang = self._gang
        return (gang if gang is not None and gang.attempt == attempt else None), rank

    def _ended(self, gang: Gang, rank: int, code: int, failure: Failure | None = None) -> None:
        """Kill the peers first; then report what the rank still had to say, and its end."""
        process = gang.ended(rank, code)
        if process is None:
            return
        if code != 0 and not gang.stopping:
            gang.kill()
        self._reporter.exited(gang, process, failure)

    async def _pump(self) -> None:
        """Carry samples and notes from the ranks to the outbox."""
        while True:
            await self._clock.sleep(_DRAIN_SECONDS)
            self._reporter.collect(self._gang)
