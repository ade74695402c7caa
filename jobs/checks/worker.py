"""The agent of a check: it measures its node, reports once, and leaves.

It connects as any agent does, so that a check needs nothing of a cluster that a run does not need.
Its report stays in the spool until the control plane has stored it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random

import structlog

from jobs import frames
from jobs.agent.connection import Connection
from jobs.agent.log_sender import LogSender
from jobs.agent.network import free_port
from jobs.agent.spool import Spool
from jobs.agent.tasks import Tasks
from jobs.checks.measurement import Task
from jobs.checks.results import ALL, CLOCK, LINK, CheckReport, CheckResult, Listening
from jobs.checks.runner import PREFLIGHT_SECONDS, run_checks
from jobs.clock import Clock
from jobs.commands import Command
from jobs.config import AgentConfig
from jobs.events import Heartbeat, Hello

LONGEST_SECONDS = 900.0
"""The agent leaves after this time, whether or not its report was taken: nobody waits longer."""
LINK_SECONDS = 600.0
"""Time of the measurement of a link, with the wait for its partner; its own limits are below."""
_LOOK_SECONDS = 0.05


class CheckWorker:
    """Measures one node. `run` returns when the report is stored, or nobody wants it."""

    def __init__(self, config: AgentConfig, clock: Clock, chance: random.Random) -> None:
        self._config, self._clock, self._chance = config, clock, chance
        self._log = structlog.get_logger(part="checks")
        self._spool = Spool(config.directory / "spool" / "reports")
        self.log_sender = LogSender(clock)
        self._connection = Connection(config, self._spool, self, clock, chance)
        self._tasks = Tasks()

    async def run(self) -> None:
        """Connect and measure side by side; leave when the report is stored."""
        for work in (self._connection.run(), self._measure(), self._leave_in_time()):
            self._tasks.spawn(work)
        try:
            await self._tasks.over.wait()
        finally:
            await self._tasks.cancel()
            self._spool.close()
        if self._tasks.crash is not None:
            raise self._tasks.crash

    def leave(self, reason: str) -> None:
        """End at once; a program under way is killed."""
        self._log.info("leaving", reason=reason)
        self._tasks.over.set()

    depart = leave

    async def _measure(self) -> None:
        config = self._config
        if LINK in config.checks:
            results = await self._measure_link()
        else:
            names = [name for name in config.checks or ALL if name != CLOCK]  # made by the server
            results = await run_checks(names, task_for(config, thorough=True))
        report = CheckReport(sequence=self._spool.next_sequence, node=config.node, results=results)
        self._spool.append(frames.encode("report", report))
        self._connection.wake()
        while self._spool.first_sequence < self._spool.next_sequence:
            await self._clock.sleep(_LOOK_SECONDS)
        self.leave("the results are stored")

    async def _measure_link(self) -> tuple[CheckResult, ...]:
        """Connect to the peer, or say where to connect and wait for it."""
        config = self._config
        task = task_for(config, thorough=True)
        if not config.peer:
            task = dataclasses.replace(task, port=free_port(self._chance))
            listening = Listening(sequence=self._spool.next_sequence, port=task.port)
            self._spool.append(frames.encode("listening", listening))
            self._connection.wake()
        return await run_checks([LINK], task, LINK_SECONDS)

    async def _leave_in_time(self) -> None:
        await self._clock.sleep(LONGEST_SECONDS)
        self.leave(f"nobody took the results within {LONGEST_SECONDS:.0f} s")

    # --- called by the connection ---------------------------------------------------------------

    def hello(self) -> Hello:
        """The first frame of a connection."""
        config = self._config
        return Hello(
            run=config.run,
            worker=config.worker,
            node=config.node,
            attempt=0,
            next_sequence=self._spool.first_sequence,
            address=config.address,
        )

    def heartbeat(self) -> Heartbeat:
        """The node's clock, by which the server measures its skew."""
        return Heartbeat(attempt=0, time=self._clock.now().timestamp())

    def handle(self, command: Command) -> None:
        """Ignore a command: none is sent to the agent of a check."""
        self._log.warning("command ignored", command=command.kind)

    def fenced(self, reason: str) -> None:
        """Leave: the check is over, or gave way to a run."""
        self.leave(f"fenced: {reason}")


async def preflight(config: AgentConfig, ready: asyncio.Event) -> tuple[CheckResult, ...]:
    """Run the checks that a worker makes before it joins, and wait until its ranks can start."""
    task = task_for(config, thorough=False)
    found = await run_checks(config.checks, task, PREFLIGHT_SECONDS)
    await ready.wait()
    return found


def task_for(config: AgentConfig, *, thorough: bool) -> Task:
    """The task of the check programs of a worker, in its own directories."""
    return Task(
        disk=str(config.directory),
        memory=str(config.memory_directory),
        gpus=config.spec.resources.gpus_per_node,
        thorough=thorough,
        peer=config.peer,
        address=config.address,
    )
