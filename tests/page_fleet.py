"""A server with a fleet of a thousand runs that is made up, for the page.

The application, its database and its stream are the real ones; the leader's state and the numbers
of its runs are written by the test, which moves them on by :meth:`Fleet.go_on`.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import math
import threading
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self, TypeVar

from pydantic import SecretStr

from jobs.clock import SystemClock
from jobs.events import RankSamples, Report
from jobs.spec import RunSpec
from monitors.failures import FailureClass
from monitors.types import FindingKind, Severity
from orchestrator.controller.attention import Lag
from orchestrator.controller.database_trouble import DatabaseTrouble
from orchestrator.controller.live_numbers import LiveNumbers
from orchestrator.core.model.entities import Attempt, Entity, Incident, Node, Run, Seat
from orchestrator.core.model.state import State
from orchestrator.core.model.states import AttemptState, NodeState, RunState
from orchestrator.core.model.time_ledger import Bucket, Ledger
from orchestrator.core.model.vocabulary import Remedy, Response
from orchestrator.core.scheduling import Pending
from orchestrator.database.memory_store import MemoryStore
from orchestrator.database.port import Batch, WorkerSamples
from orchestrator.server.app import create_app
from orchestrator.server.http_server import HttpServers
from orchestrator.server.listeners import listening
from orchestrator.settings import Settings

SECRET = "first-token"
T = TypeVar("T")
NAMES = (
    "llama-70b",
    "moe-16x8b",
    "vision-encoder",
    "dpo-sweep",
    "code-30b",
    "speech-asr",
    "eval-ft",
)
OWNERS = ("mia", "jonas", "ada", "li", "operator")
PROJECTS = ("llm", "vision", "speech")
POINTS = 400


def samples_of(rank: int, first: int, last: int, *, seed: int) -> RankSamples:
    """A falling, slightly noisy curve."""
    steps = list(range(first, last + 1))
    loss = [
        2.1 + 8.5 * math.exp(-s / (60.0 + seed % 50)) + 0.06 * math.sin(s * 12.9898 + seed)
        for s in steps
    ]
    return RankSamples(
        rank=rank,
        step=steps,
        batch=steps,
        time=[1.7e9 + s for s in steps],
        loss=loss,
        grad_norm=[1.0] * len(steps),
        tokens=[4096.0] * len(steps),
        seconds=[0.7] * len(steps),
        blocked_seconds=[0.0] * len(steps),
        learning_rate=[3e-4] * len(steps),
    )


class Fleet:
    """Serves a made-up fleet until it is left."""

    def __init__(self, home: Path, runs: int = 1000) -> None:
        self.settings = Settings(home=home, token=SecretStr(SECRET))
        self.state, self.numbers = State(), LiveNumbers()
        self.count, self.step, self.url = runs, POINTS, ""
        self.now = SystemClock().now()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()))

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._servers.stop)
        self._thread.join(30)

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run something on the server's own loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def put(self, *entities: Entity) -> None:
        """Put entities into the state and the database."""

        async def write() -> None:
            for entity in entities:
                self.state.put(entity)
            await self.store.commit(Batch(entities=entities), epoch=self._epoch)

        self.do(write())

    def go_on(self, steps: int = 1) -> None:
        """Every live run reports some steps."""

        async def report() -> None:
            first, self.step = self.step + 1, self.step + steps
            for number, attempt in enumerate(self.state.attempts.values()):
                samples = (samples_of(0, first, self.step, seed=number),)
                sent = Report(sequence=self.step, attempt=attempt.number, samples=samples)
                self.numbers.take(attempt.run, attempt.seats[0].node, sent)

        self.do(report())

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.store = MemoryStore()
        lease = await self.store.acquire("test", 3600.0, self.now, force=True)
        assert lease is not None
        self._epoch = lease.epoch
        await self._fill()
        plane: Any = SimpleNamespace(
            store=self.store,
            state=self.state,
            numbers=self.numbers,
            is_leader=True,
            lag=Lag(),
            notices={},
            alerts_trouble={},
            set_aside=Counter(),
            database=DatabaseTrouble(),
            runs_here=True,
            takes_bundles=False,
            ignored_fields={},
            needed_fields={},
        )
        self.plane = plane
        app = create_app(plane, SystemClock(), self.settings)
        with listening(self.settings, embedded=False) as listeners:
            self._servers = HttpServers(app, self.settings, listeners)
            serving = asyncio.create_task(self._servers.serve())
            while not self._servers.started:
                await SystemClock().sleep(0.01)
            self.url = f"http://{listeners.address}"
            self._ready.set()
            await serving

    async def _fill(self) -> None:
        live: list[Entity] = [
            Node(
                id=f"node-{n:03}",
                gpus=8,
                labels={"pool": "h100" if n < 150 else "a100"},
                state=NodeState.CORDONED if n % 41 == 7 else NodeState.READY,
            )
            for n in range(256)
        ]
        written: list[WorkerSamples] = []
        for number in range(self.count):
            run, more = self._run(number)
            (live if run.ended_at is None else more).append(run)
            live += more if run.ended_at is None else []
            if run.ended_at is not None:
                await self.store.commit(Batch(entities=more), epoch=self._epoch)
            if run.attempt:
                curve = samples_of(0, 1, POINTS, seed=number)
                written.append(WorkerSamples(run=run.id, attempt=run.attempt, ranks=[curve]))
                if run.ended_at is None:
                    sent = Report(sequence=1, attempt=run.attempt, samples=(curve,))
                    self.numbers.take(run.id, f"node-{number % 256:03}", sent)
        order = {Node: 0, Run: 1, Attempt: 2, Incident: 3}
        live.sort(key=lambda entity: order[type(entity)])
        for entity in live:
            self.state.put(entity)
        await self.store.commit(Batch(entities=live, samples=written), epoch=self._epoch)

    def _run(self, number: int) -> tuple[Run, list[Entity]]:
        state = self._state(number)
        begun = self.now - dt.timedelta(minutes=7 * number % 5000 + 3)
        over = state in {RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED}
        waits = state is RunState.QUEUED
        nodes = (1, 2, 4, 8, 16)[number % 5]
        name = f"{NAMES[number % len(NAMES)]}-{number:03}"
        book = {Bucket.QUEUED: 60.0, Bucket.STARTING: 30.0 * (number % 9), Bucket.LOST: number % 40}
        run = Run(
            id=f"01J{number:023}",
            name=name,
            spec=RunSpec.model_validate(
                {
                    "name": name,
                    "command": ["python"],
                    "project": PROJECTS[number % 3],
                    "resources": {"nodes": nodes, "gpus_per_node": 8},
                }
            ),
            owner=OWNERS[number % 5],
            submitted_at=begun,
            started_at=None if waits else begun,
            ended_at=self.now if over else None,
            state=state,
            reason=_REASONS[state].format(n=nodes, s=number),
            pending=Pending.NO_CAPACITY if waits else None,
            attempt=0 if waits else 1 + number % 3,
            best_step=0 if waits else POINTS,
            ledger=Ledger(
                bucket=Bucket.QUEUED if waits or over else Bucket.PRODUCTIVE,
                since=self.now,
                seconds=book if waits else {**book, Bucket.PRODUCTIVE: 4000.0},
            ),
        )
        more: list[Entity] = []
        if run.attempt:
            more.append(
                Attempt(
                    run=run.id,
                    number=run.attempt,
                    state=AttemptState.ENDED if over else AttemptState.RUNNING,
                    seats=(Seat(worker=f"w{number}", node=f"node-{number % 256:03}", ranks=(0,)),),
                    world_size=1,
                    started_at=begun,
                    ended_at=self.now if over else None,
                )
            )
        if state is RunState.RECOVERING or number % 97 == 5:
            more.append(self.incident(run, number))
        return run, more if not over else [run, *more]

    def incident(self, run: Run, number: int, **fields: Any) -> Incident:
        """An open incident of a run."""
        asks = number % 2 == 1
        return Incident(
            **{
                "id": f"01JINC{number:020}",
                "run": run.id,
                "attempt": max(1, run.attempt),
                "kind": FindingKind.LOSS_SPIKE if asks else FailureClass.SIGNAL,
                "severity": Severity.CRITICAL if number % 3 == 0 else Severity.WARNING,
                "subject": f"rank 3 on node-{number % 256:03}",
                "reason": "loss 5.545 against a median of 2.445 for 3 steps, since step 150"
                if asks
                else "rank 3 was killed by SIGKILL, sender unknown",
                "onset_step": 150,
                "remedy": Remedy.ROLL_BACK if asks else Remedy.RETRY,
                "response": Response.ASKED if asks else Response.ACTED,
                "remedy_at": self.now + dt.timedelta(minutes=20) if asks else None,
                "remedy_seconds": 1200.0 if asks else None,
                "opened_at": self.now - dt.timedelta(minutes=4),
                **fields,
            }
        )

    def _state(self, number: int) -> RunState:
        if number % 10 == 9:
            return (RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED)[number // 10 % 3]
        if number % 10 >= 7:
            return RunState.QUEUED
        if number % 100 == 42:
            return RunState.HELD
        return RunState.RECOVERING if number % 150 == 3 else RunState.RUNNING


_REASONS = {
    RunState.SUCCEEDED: "every rank ended well after step 400",
    RunState.FAILED: "RuntimeError: CUDA error: an illegal memory access, on {n} ranks",
    RunState.CANCELLED: "cancelled by operator:mia: wrong data",
    RunState.QUEUED: "needs {n} nodes; 2 are free",
    RunState.HELD: "held by operator:ada: looking at the loss",
    RunState.RECOVERING: "rank 3 on node-{s} was killed by SIGKILL, sender unknown",
    RunState.RUNNING: "every rank trains",
}
