"""Agents: each holds a spool, takes each command once, and outlives servers.

They say what the real agent says, in the same frames, to the real gateway (see
:mod:`jobs.agent.connection`); the processes that they start are played by
:mod:`orchestrator.fuzz.training`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from pydantic import TypeAdapter

from babysit.wire import Phase
from jobs.commands import (
    AgentCommand,
    CaptureStacks,
    Command,
    DeleteCheckpoint,
    FindCheckpoints,
    Shutdown,
    StartAttempt,
    StopAttempt,
    VerifyCheckpoint,
)
from jobs.events import (
    AttemptStopped,
    CheckpointChecked,
    CheckpointDeleted,
    CheckpointsFound,
    Event,
    Heartbeat,
    Hello,
    Place,
    RankBeat,
    RankSamples,
    RanksStarted,
    RankStack,
    Report,
    StacksCaptured,
    StorageTrouble,
    WorkerJoined,
)
from jobs.shards import ShardReport
from orchestrator.clusters.port import WorkerLaunch
from orchestrator.fuzz import versions
from orchestrator.fuzz.environment import Environment
from orchestrator.fuzz.event_loop import ProcessClock
from orchestrator.fuzz.gangs import Gangs
from orchestrator.fuzz.network import AgentEnd
from orchestrator.fuzz.servers import Server
from orchestrator.fuzz.training import Share

_COMMAND: TypeAdapter[AgentCommand] = TypeAdapter(AgentCommand)
_SAMPLES_SECONDS = 5.0
"""Samples wait at most this long for others, so that a run of the fuzzer has fewer reports; the
real agent's wait a quarter of a second."""


class Agent:
    """One worker, from its launch to its end. A :class:`orchestrator.fuzz.training.Host`.

    Attributes:
        share: The ranks that are alive here.
        seen: Ids of the commands it was given.
        ignores_stops: True if it does not obey stops: a rank is stuck in the kernel.
        hand: How it writes its frames.
        acknowledged: The sequence up to which it keeps no reports.
    """

    def __init__(
        self,
        environment: Environment,
        launch: WorkerLaunch,
        servers: Sequence[Server],
        gangs: Gangs,
        on_report: Callable[[str, Report], None],
    ) -> None:
        self.spec = launch.spec
        self.worker, self.run, self.node = launch.worker, launch.run, launch.node
        self.clock = ProcessClock(environment.loop)
        self.rng = environment.random(f"agent {launch.worker}")
        self._environment, self._servers, self._gangs = environment, servers, gangs
        self._token, self._on_report = launch.token, on_report
        self.alive, self.ignores_stops = True, False
        self.hand = versions.Hand(self.rng)
        self.share: Share | None = None
        self.memory: dict[tuple[int, int, int], ShardReport] = {}
        """Shards in memory, by attempt, step and rank."""
        self._newest = 0
        self._spool: deque[Report] = deque()
        self._sequence = self.acknowledged = 0
        self._grown = asyncio.Event()
        self._samples: dict[int, RankSamples] = {}
        self._sampled = 0
        self.seen: set[str] = set()
        self._lifecycle = asyncio.Lock()

    # --- life -----------------------------------------------------------------------------------

    async def live(self) -> None:
        """Start, and keep connected to one server or another, for ever."""
        await self.clock.sleep(self.rng.uniform(0.1, 3.0))
        self.say(0, WorkerJoined, node=self.node, address=self.node, port=20000)
        while True:
            server = self.rng.choice(self._servers)
            try:
                await self._environment.network.reach(self.node)
                await self._converse(server.connect(self.node, self.worker, self._token))
            except ConnectionError:
                pass
            await self.clock.sleep(self.rng.uniform(0.1, 1.5))

    def end(self) -> None:
        """Kill every process of the worker: the agent and its ranks."""
        if self.alive:
            self.alive = False
            if self.share is not None:
                self.share.die()
            self._environment.loop.kill(self.worker)
            self._environment.network.hang_up(self.worker)

    def _leave(self, why: str) -> None:
        self._environment.cluster.die(self.worker, why)

    # --- the connection -------------------------------------------------------------------------

    async def _converse(self, wire: AgentEnd) -> None:
        first = self._spool[0].sequence if self._spool else self._sequence + 1
        hello = Hello(
            run=self.run,
            worker=self.worker,
            node=self.node,
            attempt=self._newest,
            next_sequence=first,
            address=self.node,
        )
        wire.send("hello", self.hand.frame("hello", hello))
        speaking: list[asyncio.Task[None]] = []
        try:
            while True:
                await self._take(wire, speaking)
        finally:
            for task in speaking:
                task.cancel()
            wire.close()

    async def _take(self, wire: AgentEnd, speaking: list[asyncio.Task[None]]) -> None:
        """Take one frame; ConnectionError when the connection is over."""
        kind, body = await wire.receive()
        match kind:
            case "welcome":
                self._acknowledged(body["last_sequence"])
                speaking += [
                    asyncio.create_task(_speak(w, wire)) for w in (self._report, self._beat)
                ]
            case "ack":
                self._acknowledged(body["sequence"])
            case "command":
                command = _COMMAND.validate_python(body)
                # Acknowledged as soon as it is here: an agent that dies over it is lost anyway.
                wire.send("ack_command", {"id": command.id})
                self._obey(command)
            case "refused" if body["fenced"]:
                self._leave("agent exited with code 0")

    async def _report(self, wire: AgentEnd) -> None:
        """Send what is in the spool, and what comes; it stays there until it is acknowledged."""
        sent = 0
        while True:
            self._grown.clear()
            for report in [report for report in self._spool if report.sequence > sent]:
                wire.send("report", self.hand.frame("report", report))
                sent = report.sequence
            await self._grown.wait()

    async def _beat(self, wire: AgentEnd) -> None:
        while True:
            wire.send("heartbeat", self.hand.frame("heartbeat", self._heartbeat()))
            await self.clock.sleep(1.0)

    def _heartbeat(self) -> Heartbeat:
        share = self.share
        beats: tuple[RankBeat, ...] = ()
        if share is not None and share.phase is not Phase.STARTING:
            fields = {"step": share.step, "phase": share.phase, "beat": share.beat, "alive": True}
            beats = tuple(RankBeat(rank=rank, **fields) for rank in share.ranks)
        attempt = share.attempt if share is not None else self._newest
        return Heartbeat(attempt=attempt, time=self.clock.now().timestamp(), beats=beats)

    def _acknowledged(self, sequence: int) -> None:
        self.acknowledged = max(self.acknowledged, sequence)
        while self._spool and self._spool[0].sequence <= sequence:
            self._spool.popleft()

    # --- what it says ---------------------------------------------------------------------------

    def event(self, attempt: int, kind: type[Event], **fields: Any) -> Any:
        """An event of this worker."""
        return kind.model_validate(
            {
                "id": self._environment.new_id("A"),
                "at": self.clock.now(),
                "actor": f"worker:{self.worker}",
                "run": self.run,
                "worker": self.worker,
                "attempt": attempt,
                **fields,
            }
        )

    def say(self, attempt: int, kind: type[Event], **fields: Any) -> None:
        """Report an event, after the samples before it."""
        if not self.alive:
            return
        if attempt != self._sampled:
            self._flush()
        self._flush(attempt, self.event(attempt, kind, **fields))

    def sampled(self, attempt: int, samples: RankSamples) -> None:
        """A rank ended a step."""
        if attempt != self._sampled:
            self._flush()
            self._sampled = attempt
        if not self._samples:
            self._environment.loop.call_later(_SAMPLES_SECONDS, self._flush)
        old = self._samples.get(samples.rank)
        self._samples[samples.rank] = samples if old is None else _joined(old, samples)

    def _flush(self, attempt: int | None = None, *events: Any) -> None:
        if not self._samples and not events:
            return
        self._sequence += 1
        report = Report(
            sequence=self._sequence,
            attempt=self._sampled if attempt is None else attempt,
            samples=tuple(self._samples.values()),
            events=events,
        )
        self._samples = {}
        self.hand.write(report)
        self._spool.append(report)
        self._on_report(self.worker, report)
        self._grown.set()

    # --- commands -------------------------------------------------------------------------------

    def _obey(self, command: Command) -> None:
        if command.id not in self.seen:
            self.seen.add(command.id)
            self._environment.loop.spawn(self.worker, self._execute(command))

    async def _execute(self, command: Command) -> None:
        match command:
            case StartAttempt():
                await self._start(command)
            case StopAttempt():
                await self._stop(command)
            case CaptureStacks():
                await self._capture(command)
            case VerifyCheckpoint():
                await self._verify(command)
            case DeleteCheckpoint():
                await self._delete(command)
            case FindCheckpoints():
                await self._find(command)
            case Shutdown():
                self._leave("agent exited with code 0")

    def _answer(self, command: Command, kind: type[Event], **fields: Any) -> None:
        self.say(max(self._newest, command.attempt), kind, cause=command.id, **fields)

    async def _start(self, command: StartAttempt) -> None:
        async with self._lifecycle:
            if command.attempt <= self._newest:
                return
            self._newest = command.attempt
            if self.share is not None:
                self.share.die()
            await self.clock.sleep(self.rng.uniform(0.05, 0.5))
            self.share = self._gangs.start(self, self.run, command)
            self.say(command.attempt, RanksStarted, ranks=command.ranks, cause=command.id)
            self._environment.loop.spawn(self.worker, self.share.come_up())

    async def _stop(self, command: StopAttempt) -> None:
        async with self._lifecycle:
            self._newest = max(self._newest, command.attempt)
            last_step = 0
            share = self.share
            if share is not None and share.attempt <= command.attempt:
                if share.attempt == command.attempt:
                    last_step = share.step
                await share.leave(command.grace_seconds)
                while self.ignores_stops:
                    await self.clock.sleep(5.0)
                share.die()
            self._say_stopped(command, last_step)

    def _say_stopped(self, command: StopAttempt, last_step: int) -> None:
        self.say(
            command.attempt,
            AttemptStopped,
            memory_shards=tuple(self.memory.values()),
            port=20001,
            last_step=last_step,
            cause=command.id,
        )

    async def _capture(self, command: CaptureStacks) -> None:
        await self.clock.sleep(self.rng.uniform(0.1, 1.0))
        share = self.share
        ranks = share.ranks if share is not None and share.attempt == command.attempt else ()
        stacks = tuple(RankStack(rank=r, process_state="S", frames=("f (x:1)",)) for r in ranks)
        self.say(command.attempt, StacksCaptured, stacks=stacks, cause=command.id)

    async def _delete(self, command: DeleteCheckpoint) -> None:
        storage = self._environment.storage
        await self.clock.sleep(self.rng.uniform(0.01, 1.0))
        if storage.busy:
            storage.busy -= 1
            fields: dict[str, Any] = {"error": "[Errno 16] Device or resource busy"}
        elif storage.delete(command.path, command.attempt):
            fields = {}
        else:
            fields = {"error": "a later attempt has saved there since", "refused": True}
        self._answer(command, CheckpointDeleted, checkpoint=command.checkpoint, **fields)

    async def _find(self, command: FindCheckpoints) -> None:
        await self.clock.sleep(self.rng.uniform(0.01, 1.0))
        found = self._environment.storage.whole(self.run, command.attempt, command.above)
        self.say(command.attempt, CheckpointsFound, shards=found, cause=command.id)

    def lose_memory(self) -> None:
        """A person clears /dev/shm: checkpoints in memory are gone, and the agent says so."""
        self.memory.clear()
        attempt = self.share.attempt if self.share is not None else self._newest
        fields = {"place": Place.RANKS, "path": "/memory", "error": "has vanished"}
        for over in (False, True):
            self.say(attempt, StorageTrouble, over=over, **fields)

    async def have_full_home(self, seconds: float) -> None:
        """The home has no room for a while: lines of logs are lost, and reports stay in memory."""
        fields = {"path": "/home", "error": "No space left on device", "full": True}
        for over in (False, True):
            for place in (Place.LOGS, Place.SPOOL):
                self.say(self._newest, StorageTrouble, place=place, over=over, **fields)
            await self.clock.sleep(seconds)

    async def _verify(self, command: VerifyCheckpoint) -> None:
        await self.clock.sleep(self.rng.uniform(0.1, 2.0))
        fault = self._environment.storage.fault(command.path, command.attempt, command.ranks)
        self._answer(
            command, CheckpointChecked, checkpoint=command.checkpoint, ok=not fault, error=fault
        )


async def _speak(work: Callable[[AgentEnd], Coroutine[None, None, None]], wire: AgentEnd) -> None:
    """Speak until the connection is known to be broken; the task that listens hears of it too."""
    with contextlib.suppress(ConnectionError):
        await work(wire)


def _joined(old: RankSamples, new: RankSamples) -> RankSamples:
    whole = {"rank", "lost", "metrics"}  # the ranks that are played report no metrics
    columns = [name for name in RankSamples.model_fields if name not in whole]
    joined = {name: getattr(old, name) + getattr(new, name) for name in columns}
    return RankSamples.model_construct(rank=old.rank, lost=old.lost + new.lost, **joined)
