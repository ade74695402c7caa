"""The agent: one event loop that executes commands; one lock orders starts and stops.

A command may arrive twice, late, or out of order. Ids make it run once, and the attempt number
makes an old start harmless.
"""

from __future__ import annotations

import asyncio
import random
import shutil

import structlog

from jobs.agent import departure, inventory, leftovers, on_demand, reaper
from jobs.agent.code import Code
from jobs.agent.connection import Connection
from jobs.agent.errors import ForkServerLostError, LaunchError
from jobs.agent.fork_client import ForkClient
from jobs.agent.gang import Gang, RankProcess, follow_files, memory_checkpoints
from jobs.agent.log_pump import LogPump
from jobs.agent.log_sender import LogSender
from jobs.agent.network import free_port
from jobs.agent.outbox import Outbox
from jobs.agent.rank_end import failure_to_start
from jobs.agent.reporter import Reporter
from jobs.agent.script_checkpoints import Resumption, ScriptCheckpoints
from jobs.agent.spool import Spool
from jobs.agent.storage_watch import StorageWatch
from jobs.agent.tasks import Tasks
from jobs.checks.worker import preflight
from jobs.clock import Clock, wait_at_most
from jobs.commands import (
    CaptureStacks,
    Command,
    DeleteCheckpoint,
    FindCheckpoints,
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
)
from jobs.log_messages import LOGS_VERSION
from monitors.failures import Failure, FailureClass

_DRAIN_SECONDS = 0.05
_SECOND = 1.0
_KILLED = -9


class Agent:
    """One worker. `run` returns when the worker's part in the run is over."""

    def __init__(self, config: AgentConfig, clock: Clock, chance: random.Random) -> None:
        self._config = config
        self._clock = clock
        self._chance = chance
        self._log = structlog.get_logger(part="agent")
        self._spool = Spool(config.directory / "spool" / "reports")
        self._reaper = reaper.Reaper(config.worker)
        code = Code(config, lambda: self._connection.urls, clock, chance)
        self._fork_client = ForkClient(config, self, code, self._reaper.group)
        self.log_sender = LogSender(clock)
        self._connection = Connection(config, self._spool, self, clock, chance)
        outbox = Outbox(self._spool, clock, self._connection.wake)
        self._logs = LogPump(clock, config.log_limit)
        self._reporter = Reporter(config, clock, outbox, self._logs)
        self._storage = StorageWatch(config, self._logs, self._spool, self._reporter)
        self._scripts = ScriptCheckpoints(config, self._reporter, clock)
        self._gang: Gang | None = None
        self._newest = 0  # highest attempt started or stopped; starts of older ones are ignored
        self._departing = False
        """True once it has to leave: no attempt starts any more."""
        self._lifecycle = asyncio.Lock()
        self._seen: set[str] = set()
        self._tasks = Tasks()

    # --- lifecycle ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until shut down, fenced, orphaned or stopped; then leave no process or tmpfs file.

        Raises:
            Exception: A task of the agent failed, which is a bug.
        """
        connection = self._tasks.spawn(self._connection.run())
        for work in (
            self._fork_client.start(),
            self._collect_reports(),
            self._watch(),
            follow_files(lambda: self._gang, self._clock),
            self._scripts.watch(),
            self._join(),
        ):
            self._tasks.spawn(work)
        try:
            await self._tasks.over.wait()
        finally:
            await self._leave(connection)
        if self._tasks.crash is not None:
            raise self._tasks.crash

    def leave(self, reason: str) -> None:
        """End: kill the ranks, remove the files on tmpfs, and return from :meth:`run`."""
        self._log.info("leaving", reason=reason)
        self._tasks.over.set()

    def depart(self, reason: str) -> None:
        """Let the ranks save, and then leave; at once when it is called again."""
        if self._departing or self._gang is None or self._config.grace_seconds == 0:
            self.leave(reason)
            return
        self._departing = True
        self._log.info("the ranks may save before this agent leaves", reason=reason)
        self._tasks.spawn(self._depart(reason, self._gang))

    async def _depart(self, reason: str, gang: Gang) -> None:
        ends = await departure.save_first(gang, self._config.grace_seconds, self._clock)
        await self._scripts.look()
        await departure.tell(self._spool, self._lifecycle, ends, self._clock)
        self.leave(reason)

    async def _leave(self, connection: asyncio.Task[None]) -> None:
        await self._tasks.cancel(spare=connection)  # the last words of the ranks need it
        if self._gang is not None:
            self._gang.kill()
        self._fork_client.close()
        await asyncio.to_thread(self._reaper.finish)
        await asyncio.to_thread(self._logs.finish)
        await self.log_sender.finish()
        await self._tasks.cancel()
        await asyncio.to_thread(shutil.rmtree, self._config.memory_directory, ignore_errors=True)
        self._spool.close()

    async def _join(self) -> None:
        checks = await preflight(self._config, self._fork_client.ready)
        self._reporter.joined(free_port(self._chance), checks)

    async def _watch(self) -> None:
        """Watch the directories. Leave after `orphan_seconds` without ranks and without contact."""
        while True:
            await self._clock.sleep(_SECOND)
            self._storage.look(self._gang)
            self._reaper.ensure()
            idle = self._gang is None or self._gang.dead.is_set()
            silence = self._clock.monotonic() - self._connection.last_contact
            if idle and silence > self._config.orphan_seconds:
                self.leave(f"idle, and no contact with the control plane for {silence:.0f} s")

    # --- called by the connection ---------------------------------------------------------------

    def hello(self) -> Hello:
        """The first frame of a connection."""
        config = self._config
        return Hello(
            run=config.run,
            worker=config.worker,
            node=config.node,
            attempt=self._newest,
            next_sequence=self._spool.first_sequence,
            address=config.address,
            logs=LOGS_VERSION,
        )

    def heartbeat(self) -> Heartbeat:
        """The current progress of the ranks."""
        gang = self._gang
        return Heartbeat(
            attempt=gang.attempt if gang else self._newest,
            time=self._clock.now().timestamp(),
            beats=gang.beats() if gang else (),
        )

    def fenced(self, reason: str) -> None:
        """Stop, since the control plane accepts nothing from this worker any more."""
        self.leave(f"fenced: {reason}")

    def handle(self, command: Command) -> None:
        """Execute a command once."""
        if command.id in self._seen or self._tasks.over.is_set():
            return
        self._seen.add(command.id)
        self._log.info(
            "executing command", command=command.kind, id=command.id, attempt=command.attempt
        )
        self._tasks.spawn(self._execute(command))

    async def _execute(self, command: Command) -> None:
        match command:
            case StartAttempt():
                await self._start(command)
            case StopAttempt():
                await self._stop(command)
            case CaptureStacks():
                await on_demand.capture_stacks(command, self._gang, self._reporter)
            case VerifyCheckpoint() | DeleteCheckpoint() | FindCheckpoints():
                await on_demand.look_after(command, self._newest, self._config, self._reporter)
            case Shutdown():
                self.leave("the run is over")

    # --- attempts -------------------------------------------------------------------------------

    async def _start(self, command: StartAttempt) -> None:
        while True:  # wait outside the lock, so that a stop does not wait for a cold fork server
            await self._fork_client.ready.wait()
            async with self._lifecycle:
                # A stop that overtook this start has raised `_newest`: the start must not run.
                if command.attempt <= self._newest or self._departing:
                    self._log.warning(
                        "start of an old attempt, or of an agent that leaves, ignored",
                        attempt=command.attempt,
                        newest=self._newest,
                    )
                    return
                if self._fork_client.ready.is_set():
                    self._newest = command.attempt
                    await self._end_gang()
                    await self._launch(command)
                    return

    async def _launch(self, command: StartAttempt) -> None:
        gang = Gang(command, self._config, self._clock, self._fork_client.workdir)
        self._gang = gang
        self.log_sender.follow(gang.attempt, {p.rank: p.log for p in gang.ranks.values()})
        try:
            gang.prepare()
            await asyncio.to_thread(gang.look_around)
            resumption = await self._scripts.begin(command)
        except OSError as error:
            for rank in command.ranks:
                self._failed_to_start(gang, rank, FailureClass.STORAGE, str(error))
            return
        starts = (self._launch_rank(gang, each, resumption) for each in gang.ranks.values())
        await asyncio.gather(*starts)
        if self._fork_client.refused:  # and said so: the next attempt has another try
            self._tasks.spawn(self._fork_client.start())
        if gang.running:
            self._reporter.say(
                RanksStarted(ranks=command.ranks, **self._reporter.fields(gang.attempt, command.id))
            )
            self._scripts.started(command, resumption)
        # Read while the ranks start, so that the first death waits for nothing.
        await asyncio.to_thread(lambda: self._reporter.log_rules)
        await asyncio.to_thread(leftovers.sweep_before, command, self._config)

    async def _launch_rank(self, gang: Gang, process: RankProcess, resumed: Resumption) -> None:
        key = f"{gang.attempt}/{process.rank}"
        environment = gang.environment(process) | resumed.variables
        try:
            with self._logs.pipe(process.log) as output:
                await self._fork_client.launch(key, environment, output, resumed.arguments)
        except LaunchError as error:
            self._ended(gang, process.rank, 1, error.failure(process.rank))
        except (ForkServerLostError, OSError) as error:
            self._failed_to_start(gang, process.rank, FailureClass.UNKNOWN, str(error))

    def _failed_to_start(self, gang: Gang, rank: int, kind: FailureClass, why: str) -> None:
        self._ended(gang, rank, 1, failure_to_start(rank, kind, why))

    async def _stop(self, command: StopAttempt) -> None:
        async with self._lifecycle:
            self._newest = max(self._newest, command.attempt)
            last_step = 0
            if self._gang is not None and self._gang.attempt <= command.attempt:
                gang = self._gang
                await self._end_gang(command.grace_seconds)
                last_step = gang.last_step if gang.attempt == command.attempt else 0
            # Without this, a process that left its group could still write to the checkpoint
            # directory while the next attempt runs elsewhere.
            if self._gang is None:
                await _sweep(self._reaper, self._fork_client, self._clock)
            await self._scripts.look(last=True)
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
        """Stop the gang; no process of it is alive when this returns."""
        gang = self._gang
        if gang is None:
            return
        gang.stopping = True
        if grace_seconds > 0:
            gang.request_stop()
            await wait_at_most(self._clock, gang.dead, grace_seconds)
        gang.kill()
        # No time limit: a report that the attempt has stopped must be true.
        await gang.dead.wait()
        gang.close(self._logs)
        self._gang = None

    # --- called by the fork client --------------------------------------------------------------

    def rank_started(self, key: str, pid: int) -> None:
        """Record that a rank was forked."""
        gang, rank = self._find(key)
        if gang is not None:
            gang.started(rank, pid)

    def rank_exited(self, key: str, code: int) -> None:
        """Record that a rank, and its group, has ended."""
        gang, rank = self._find(key)
        if gang is not None:
            self._ended(gang, rank, code)

    def fork_server_lost(self, *, was_warm: bool) -> None:
        """Replace the fork server; its ranks have died with it."""
        self._tasks.spawn(self._replace_fork_server(was_warm=was_warm))

    async def _replace_fork_server(self, *, was_warm: bool) -> None:
        gang = self._gang
        await _sweep(self._reaper, self._fork_client, self._clock)
        if gang is not None:
            for rank in [p.rank for p in gang.ranks.values() if p.alive]:
                self._ended(gang, rank, _KILLED)
        if not was_warm:
            await self._clock.sleep(_SECOND)
        await self._fork_client.start()

    def _find(self, key: str) -> tuple[Gang | None, int]:
        attempt, rank = map(int, key.split("/"))
        gang = self._gang
        return (gang if gang is not None and gang.attempt == attempt else None), rank

    def _ended(self, gang: Gang, rank: int, code: int, failure: Failure | None = None) -> None:
        """Kill the peers first, then report the rank's last samples and its exit."""
        process = gang.ended(rank, code)
        if process is None:
            return
        # Peers would hang in their collectives, and their errors would hide the first cause.
        if code != 0 and not gang.stopping:
            gang.kill()
        self._reporter.exited(gang, process, failure)
        self.log_sender.hurry()

    async def _collect_reports(self) -> None:
        """Move samples and notes from the ranks to the outbox."""
        while True:
            await self._clock.sleep(_DRAIN_SECONDS)
            self._reporter.collect(self._gang)
            if self._gang is not None:
                self._gang.end_misfits()


async def _sweep(reaper_: reaper.Reaper, fork_client: ForkClient, clock: Clock) -> None:
    """Kill processes that left their group; one stuck in the kernel blocks this."""
    log = structlog.get_logger(part="agent")
    while left := await asyncio.to_thread(reaper_.sweep, (fork_client.pid, reaper_.pid)):
        log.error("processes survive SIGKILL (stuck in the kernel?), will retry", pids=left)
        await clock.sleep(_SECOND)
