"""A real controller over a store and a cluster in memory, with scripted agents and its own time.

The controller can be killed at any call it makes of the world outside, before or after the call
took effect; the next one starts on the same store. No process runs, and no wall time passes.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import heapq
import itertools
from collections.abc import Callable, Coroutine
from typing import Any

from jobs.commands import AgentCommand, FindCheckpoints, Shutdown, StartAttempt, StopAttempt
from jobs.events import (
    AttemptStopped,
    CheckpointsFound,
    Event,
    Heartbeat,
    RankBeat,
    RankExited,
    RankReady,
    RankRestored,
    RankSamples,
    RanksStarted,
    Report,
    WorkerJoined,
)
from monitors.failures import Failure, FailureClass
from orchestrator.alerts.port import Notifier
from orchestrator.clusters.port import AgentAccess
from orchestrator.clusters.simulated import SimulatedCluster
from orchestrator.controller.controller import Controller
from orchestrator.controller.settings import ControllerSettings
from orchestrator.core.messages.events import NodeInfo, RunSubmitted
from orchestrator.core.model.entities import Run
from orchestrator.core.model.states import RunState
from orchestrator.database.memory_store import MemoryStore
from orchestrator.database.port import Batch
from orchestrator.errors import LeadershipLostError, NotFoundError, NotLeaderError
from tests.world import on_its_own, spec

_SPINS = 25
"""Turns of the event loop after which everything that can happen now has happened."""
STEPS = 5
"""Steps of each attempt of the scripted training."""


class VirtualClock:
    """Stands still while anything can happen; then goes to where the next sleeper wakes."""

    def __init__(self) -> None:
        self._elapsed = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()

    def now(self) -> dt.datetime:
        """Starts with 2026."""
        return dt.datetime(2026, 1, 1, tzinfo=dt.UTC) + dt.timedelta(seconds=self._elapsed)

    def monotonic(self) -> float:
        """Seconds since the start."""
        return self._elapsed

    async def sleep(self, seconds: float) -> None:
        """Until the clock is there."""
        waker: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._elapsed + seconds, next(self._numbers), waker))
        await waker

    async def settle(self) -> None:
        """Let everything happen that needs no time."""
        for _ in range(_SPINS):
            await asyncio.sleep(0)  # noqa: TID251 (no time passes)

    async def tick(self) -> None:
        """Go to the next moment at which somebody wakes."""
        await self.settle()
        if self._sleepers:
            due = self._sleepers[0][0]
            self._elapsed = max(self._elapsed, due)
            while self._sleepers and self._sleepers[0][0] <= due:
                _, _, waker = heapq.heappop(self._sleepers)
                if not waker.done():
                    waker.set_result(None)
        await self.settle()


class Fate:
    """Counts the calls a controller makes of the world outside, and kills it at one of them."""

    def __init__(self, call: int | None = None, *, after: bool = False) -> None:
        self._call, self._after = call, after
        self.calls: list[str] = []
        self.dead = asyncio.Event()

    async def meet(self, name: str, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Do the work, unless the controller dies before it; it never returns from a death."""
        self.calls.append(name)
        fatal = len(self.calls) - 1 == self._call
        if self.dead.is_set() or (fatal and not self._after):
            await self._die()
        result = await work()
        if fatal or self.dead.is_set():
            await self._die()
        return result

    async def _die(self) -> None:
        self.dead.set()
        await asyncio.Event().wait()


class Mortal:
    """A port whose calls the controller may not live through."""

    def __init__(self, inner: Any, fate: Fate, *names: str) -> None:
        self._inner, self._fate, self._names = inner, fate, names

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if name not in self._names:
            return method

        async def call(*args: Any, **kwargs: Any) -> Any:
            return await self._fate.meet(name, lambda: method(*args, **kwargs))

        return call


class OnceStore(MemoryStore):
    """Notices an event that is handled twice, which the real one forgives."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[Batch] = []

    async def commit(self, batch: Batch, *, epoch: int) -> int:
        """See the port."""
        twice = [entry.id for entry in batch.journal if entry.id in self._journal]
        refused = await super().commit(batch, epoch=epoch)
        self.batches.append(batch)
        assert not twice, f"handled twice: {twice}"
        return refused

    def left(self) -> list[str]:
        """Instructions that nobody has noted down as carried out."""
        return [id_ for id_ in self._outbox if id_ not in self._done]


class Agent:
    """Trains `STEPS` steps an attempt; one rank dies at the end of the first, all end the second.

    Like the real one: it keeps reports until they are acknowledged, takes each command once, and
    lives on when the controller dies.
    """

    def __init__(self, harness: Harness, worker: str, run: str, node: str) -> None:
        self.harness, self.worker, self.run, self.node = harness, worker, run, node
        self.spool: list[Report] = []
        self.started: list[int] = []
        """Attempts whose ranks were started here."""
        self.attempt = 0
        """The attempt whose ranks are alive here; 0: none."""
        self.newest = 0
        self.beats: tuple[RankBeat, ...] = ()
        """Signs of life of ranks, in each heartbeat."""
        self._seen: set[str] = set()
        self._sequence = 0
        self._said = asyncio.Event()
        self.say(0, self.event(WorkerJoined, node=node, address=node, port=1))

    def event(self, kind: type[Event], attempt: int = 0, **fields: Any) -> Any:
        fields |= {"run": self.run, "worker": self.worker, "attempt": attempt}
        return self.harness.event(kind, **fields)

    def say(self, attempt: int, *events: Any, samples: tuple[RankSamples, ...] = ()) -> None:
        self._sequence += 1
        self.spool.append(
            Report(sequence=self._sequence, attempt=attempt, samples=samples, events=events)
        )
        self._said.set()

    async def session(self) -> None:
        """With one controller, from its first word to its last."""
        controller, clock = self.harness.controller, self.harness.clock
        while True:
            try:
                await controller.attach(self.worker, self.run, self)  # and says all of it again
                await asyncio.gather(self._report(controller), self._beat(controller))
            except NotFoundError:
                self.harness.cluster.die(self.worker, "left: not expected any more")
                return
            except (NotLeaderError, LeadershipLostError):
                await clock.sleep(0.2)

    async def _report(self, controller: Controller) -> None:
        while True:
            self._said.clear()
            while self.spool:
                await controller.report(self.worker, self.spool[0])
                self.spool.pop(0)
            await self._said.wait()

    async def _beat(self, controller: Controller) -> None:
        clock = self.harness.clock
        while not self.harness.cluster.workers[self.worker].gone:
            now = clock.now().timestamp()
            heartbeat = Heartbeat(attempt=self.newest, time=now, beats=self.beats)
            await controller.heartbeat(self.worker, heartbeat)
            await clock.sleep(1.0)

    async def send(self, command: AgentCommand) -> None:
        """The link: take a command."""
        await self.harness.fate.meet(f"send {command.kind}", lambda: self._take(command))
        self.harness.controller.acknowledged(self.worker, command.id)

    async def _take(self, command: AgentCommand) -> None:
        if command.id in self._seen or self.harness.cluster.workers[self.worker].gone:
            return
        self._seen.add(command.id)
        match command:
            case StartAttempt():
                if command.attempt > self.newest and not self.harness.silent:
                    self._train(command)
            case StopAttempt():
                self.newest = max(self.newest, command.attempt)
                self.attempt = 0 if self.attempt <= command.attempt else self.attempt
                stopped = self.event(AttemptStopped, command.attempt, port=2, last_step=STEPS)
                self.say(command.attempt, stopped)
            case FindCheckpoints():
                self.say(command.attempt, self.event(CheckpointsFound, command.attempt))
            case Shutdown() if not self.harness.deaf:
                self.harness.cluster.die(self.worker, "left")

    def _train(self, command: StartAttempt) -> None:
        number = self.attempt = self.newest = command.attempt
        self.started.append(number)
        self.harness.check_alone(self.run, number)
        (rank,) = command.ranks
        first = (number - 1) * STEPS
        up = (
            self.event(RanksStarted, number, ranks=command.ranks),
            self.event(RankReady, number, rank=rank),
            self.event(RankRestored, number, rank=rank, step=first),
        )
        for events in [up] if self.harness.together else [(event,) for event in up]:
            self.say(number, *events)
        for step in range(first + 1, first + STEPS + 1):
            self.say(number, samples=(samples(rank, step),))
        last = {"rank": rank, "last_step": first + STEPS}
        if number > 1:
            self.say(number, self.event(RankExited, number, code=0, **last))
            self.attempt = 0
        elif rank == 1:
            killed = Failure(failure_class=FailureClass.SIGNAL, reason="SIGKILL", signature="9")
            self.say(number, self.event(RankExited, number, code=-9, failure=killed, **last))


def samples(rank: int, step: int) -> RankSamples:
    """One step."""
    one = {"batch": [step], "time": [float(step)], "loss": [2.0], "grad_norm": [1.0]}
    more = {"tokens": [1.0], "seconds": [1.0], "blocked_seconds": [0.25], "learning_rate": [0.1]}
    return RankSamples.model_validate({"rank": rank, "step": [step], **one, **more})


class Harness:
    """Store and cluster that outlive controllers, the agents, and the controller of the hour."""

    def __init__(
        self, nodes: int = 2, *, together: bool = False, deaf: bool = False, silent: bool = False
    ) -> None:
        self.together, self.deaf, self.silent = together, deaf, silent
        """Whether agents say several things in one report; whether they stay when told to go;
        whether they say nothing of their ranks."""
        self.clock = VirtualClock()
        self.store = OnceStore()
        infos = [NodeInfo(id=f"node-{i + 1}", cpus=1) for i in range(nodes)]
        self.cluster = SimulatedCluster(infos, self.clock)
        self.agents: dict[str, Agent] = {}
        self.fate = Fate()
        self.notifier: Notifier | None = None
        """Of controllers that open from now on; None: the log."""
        self._ids = itertools.count(1)
        self._tasks: list[asyncio.Task[None]] = []

    def event(self, kind: type[Event], **fields: Any) -> Any:
        """An event of somebody outside the controller."""
        return kind.model_validate(
            {"id": f"E{next(self._ids):06d}", "at": self.clock.now()} | fields
        )

    async def open(self, fate: Fate | None = None) -> Controller:
        """A new controller leads, and the agents find it."""
        self.fate = fate or Fate()
        self.controller = Controller(
            Mortal(self.store, self.fate, "commit", "carried_out", "load"),
            Mortal(self.cluster, self.fate, "launch", "stop", "alive"),
            self.clock,
            settings=ControllerSettings(holder=f"c{next(self._ids)}", alone=True),
            agent_access=lambda run, worker: AgentAccess("ws://127.0.0.1:1/agent", "token"),
            notifier=self.notifier,
        )
        self.cluster.reopen()
        await self.controller.start()
        self._tasks = [asyncio.create_task(self._connect())]
        return self.controller

    async def kill(self) -> None:
        """SIGKILL: not one more line of it runs, and nobody is told."""
        self.fate.dead.set()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _connect(self) -> None:
        """Start an agent for each worker that the cluster has launched."""
        sessions: dict[str, asyncio.Task[None]] = {}
        while True:
            for name, worker in self.cluster.workers.items():
                if worker.launch is not None and worker.gone is None and name not in sessions:
                    if name not in self.agents:
                        self.agents[name] = Agent(self, name, worker.run, worker.node)
                    sessions[name] = asyncio.create_task(self.agents[name].session())
            await self.clock.sleep(0.1)

    async def until(self, done: Callable[[], bool], ticks: int = 3000) -> bool:
        """Let time pass until something holds; False when it never does, or the controller dies."""
        for _ in range(ticks):
            if self.fate.dead.is_set():
                return False
            if done():
                return True
            await self.clock.tick()
        return False

    def check_alone(self, run: str, number: int) -> None:
        """No rank of another attempt is alive."""
        alive = {a.attempt for a in self.agents.values() if a.run == run and a.attempt}
        assert alive <= {number}, f"attempts {alive} are alive together"

    async def submit(self, run: str = "run-1", **fields: Any) -> None:
        """Submit a run, once however often it is said (its id makes it so)."""
        request = RunSubmitted(
            id=f"submit-{run}",
            at=self.clock.now(),
            run=run,
            spec=on_its_own(spec(**fields), run),
        )
        await self.until(lambda: self.controller.is_leader and bool(self.controller.state.nodes))
        if not self.fate.dead.is_set():
            asking = asyncio.create_task(self.controller.submit(request))
            await self.until(asking.done)

    def state_of(self, run: str = "run-1") -> RunState | None:
        """The run's state as stored; None: it is not."""
        known = self.store._entities[Run].get(run)
        return known and known.state
