"""A control plane in a thread: real controller and API, over a store and a cluster in memory."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import hashlib
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import SecretStr

from babysit.wire import MANIFEST_FILE, Tier, rank_directory
from jobs.clock import Clock, SystemClock
from jobs.events import RankSamples
from jobs.shards import ShardFile, ShardReport
from jobs.spec import RunSpec
from monitors.failures import Cause, FailureClass
from monitors.types import Severity
from orchestrator.clusters.port import AgentAccess, Cluster
from orchestrator.clusters.simulated import SimulatedCluster
from orchestrator.controller.controller import Controller
from orchestrator.controller.settings import ControllerSettings
from orchestrator.core.messages.events import NodeInfo
from orchestrator.core.model.decisions import Restart
from orchestrator.core.model.entities import (
    Attempt,
    Checkpoint,
    Incident,
    Run,
    Seat,
)
from orchestrator.core.model.states import AttemptState, IncidentState, RunState, Trust
from orchestrator.core.model.time_ledger import Bucket, Ledger
from orchestrator.core.model.vocabulary import Remedy
from orchestrator.database.memory_store import MemoryStore
from orchestrator.database.port import Batch, ShardRecord, WorkerSamples
from orchestrator.server.app import create_app
from orchestrator.server.context import Context
from orchestrator.server.gateway import WorkerTokens, create_gateway
from orchestrator.server.hardware.routes import node_routes
from orchestrator.server.hardware.tokens import NodeTokens
from orchestrator.server.http_server import HttpServers
from orchestrator.server.listeners import listening
from orchestrator.server.routes.bundles import agents_route
from orchestrator.settings import Settings

SECRET = "first-token"
NODE_SECRET = "secret-of-node-monitors"
T = TypeVar("T")
START = dt.datetime(2026, 3, 1, 3, 12, tzinfo=dt.UTC)
RUN_ID = "01JNB00000000000000000DONE"


class Plane:
    """Serves until stopped. Workers of its cluster never join: runs get as far as `starting`."""

    def __init__(self, home: Path, **settings: Any) -> None:
        self.settings = Settings(home=home, token=SecretStr(SECRET), local_nodes=2, **settings)
        self.url = ""
        self.worker_tokens = WorkerTokens("a key")
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()))

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._servers.stop)
        self._thread.join(30)

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run something on the plane's own loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def write(self, **batch: Any) -> None:
        """Write straight into the run database."""

        async def commit() -> None:
            lease = await self.store.leader()
            assert lease is not None
            await self.store.commit(Batch(**batch), epoch=lease.epoch)

        self.do(commit())

    def make_cluster(self, clock: Clock) -> Cluster:
        """The cluster that the plane has."""
        return SimulatedCluster([NodeInfo(id=f"node-{i}", cpus=2) for i in (1, 2)], clock)

    def access(self, run: str, worker: str) -> AgentAccess:
        """How an agent reaches the plane: not at all."""
        return AgentAccess("ws://127.0.0.1:1/agent", f"{run} {worker}")

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        clock = SystemClock()
        self.store = MemoryStore()
        cluster = self.make_cluster(clock)
        self.controller = Controller(
            self.store,
            cluster,
            clock,
            settings=ControllerSettings(holder="test", checks=self.settings.check_policy),
            agent_access=self.access,
        )
        gateway = create_gateway(self.controller, self.worker_tokens)
        gateway.include_router(agents_route(self.worker_tokens))
        gateway.include_router(node_routes(NodeTokens(await self.store.signing_key(), NODE_SECRET)))
        app = create_app(self.controller, clock, self.settings, gateway)
        self.context: Context = app.state.context
        await self.controller.start()
        with listening(self.settings, embedded=False) as listeners:
            self._servers = HttpServers(app, self.settings, listeners)
            serving = asyncio.create_task(self._servers.serve())
            while not (
                self._servers.started and self.controller.is_leader and self.controller.state.nodes
            ):
                await clock.sleep(0.005)
            scheme = "https" if self.settings.tls_certificate else "http"
            self.url = f"{scheme}://{listeners.address}"
            self._ready.set()
            await serving
        await self.controller.stop()
        await cluster.close()


def at(seconds: float) -> dt.datetime:
    """So long after the finished run was submitted."""
    return START + dt.timedelta(seconds=seconds)


def spec(**fields: Any) -> RunSpec:
    """A small run's spec."""
    return RunSpec.model_validate(
        {"name": "tiny", "command": ["python", "train.py"], "resources": {"nodes": 2}, **fields}
    )


def restart(**fields: Any) -> Restart:
    """Rank 1 was killed at 60 s; 1.4 s later the first new step ended."""
    return Restart(
        **{
            "attempt": 2,
            "cause": Cause.INFRASTRUCTURE,
            "failure_class": FailureClass.SIGNAL,
            "reason": "rank 1 on node-2 was killed by SIGKILL (sender unknown)",
            "node": "node-2",
            "rank": 1,
            "incident": "01JNB0000000000000INCIDENT",
            "failed_at": at(60),
            "detected_at": at(60.1),
            "stopped_at": at(60.2),
            "placed_at": at(60.2),
            "ready_at": at(60.7),
            "restored_at": at(60.9),
            "recovered_at": at(61.4),
            "best_step": 57,
            "resumed_step": 57,
            **fields,
        }
    )


def attempts() -> list[Attempt]:
    """Two attempts: killed, and well."""
    seats = (
        Seat(worker="w1", node="node-1", ranks=(0,)),
        Seat(worker="w2", node="node-2", ranks=(1,)),
    )
    first = Attempt(
        run=RUN_ID,
        number=1,
        state=AttemptState.ENDED,
        seats=seats,
        world_size=2,
        step=57,
        started_at=at(2),
        first_step_at=at(5),
        ended_at=at(60.2),
    )
    second = Attempt(
        run=RUN_ID,
        number=2,
        state=AttemptState.ENDED,
        seats=seats,
        world_size=2,
        restart=restart(),
        restored=f"{RUN_ID}/1/memory/57",
        restored_ranks=frozenset({0, 1}),
        start_step=57,
        step=200,
        started_at=at(60.2),
        first_step_at=at(61.4),
        ended_at=at(200),
    )
    return [first, second]


def finished_run(**fields: Any) -> Run:
    """A run that was restarted once and succeeded."""
    return Run(
        **{
            "id": RUN_ID,
            "name": "tiny",
            "spec": spec(),
            "owner": "mia",
            "submitted_at": at(0),
            "state": RunState.SUCCEEDED,
            "reason": "every rank ended well after step 200",
            "attempt": 2,
            "best_step": 200,
            "started_at": at(2),
            "ended_at": at(200),
            "ledger": Ledger(
                bucket=Bucket.QUEUED,
                since=at(200),
                seconds={Bucket.PRODUCTIVE: 190.0, Bucket.STARTING: 8.0, Bucket.QUEUED: 2.0},
            ),
            **fields,
        }
    )


def incident(**fields: Any) -> Incident:
    """What the restart was for."""
    return Incident(
        **{
            "id": "01JNB0000000000000INCIDENT",
            "run": RUN_ID,
            "attempt": 1,
            "kind": FailureClass.SIGNAL,
            "severity": Severity.WARNING,
            "state": IncidentState.RESOLVED,
            "subject": "rank 1 on node-2",
            "onset_step": 57,
            "remedy": Remedy.RETRY,
            "reason": "rank 1 on node-2 was killed by SIGKILL (sender unknown)",
            "opened_at": at(60.1),
            "resolved_at": at(61.4),
            **fields,
        }
    )


def checkpoint(step: int, trust: Trust = Trust.GOOD, **fields: Any) -> Checkpoint:
    """A checkpoint of the finished run, in its directory."""
    return Checkpoint(
        **{
            "id": f"{RUN_ID}/1/directory/{step}",
            "run": RUN_ID,
            "attempt": 1,
            "step": step,
            "tier": Tier.DIRECTORY,
            "world_size": 2,
            "path": f"/checkpoints/step-{step:09d}",
            "trust": trust,
            "ranks": frozenset({0, 1}),
            "bytes": 2048,
            "created_at": at(step),
            **fields,
        }
    )


def shard(step: int, rank: int) -> ShardReport:
    """A shard of it."""
    return ShardReport(
        attempt=1,
        step=step,
        rank=rank,
        world_size=2,
        tier=Tier.DIRECTORY,
        path=f"/checkpoints/step-{step:09d}",
        batch=step,
        files=(ShardFile(name="data", bytes=1024, blake2b="0" * 32),),
    )


def finished(plane: Plane) -> Run:
    """Write the finished run, and all that belongs to it, into the plane's database."""
    run, (first, second) = finished_run(), attempts()
    samples = RankSamples(
        rank=0,
        step=[199, 200],
        batch=[199, 200],
        time=[1.0, 2.0],
        loss=[2.5, float("nan")],
        grad_norm=[1.0, 1.0],
        tokens=[0.0, 0.0],
        seconds=[1.0, 1.0],
        blocked_seconds=[0.0, 0.0],
        learning_rate=[-1.0, -1.0],
        metrics={"accuracy": [0.5, float("nan")], "reward": [float("nan"), float("inf")]},
    )
    plane.write(entities=[finished_run(attempt=1, state=RunState.RUNNING, ended_at=None), first])
    plane.write(
        entities=[checkpoint(20), checkpoint(40, Trust.BAD)],
        shards=[ShardRecord(checkpoint=checkpoint(20).id, shard=shard(20, r)) for r in (0, 1)],
    )
    plane.write(entities=[second, incident()])
    plane.write(samples=[WorkerSamples(run=RUN_ID, attempt=2, ranks=[samples])])
    plane.write(entities=[run])
    return run


def saved(plane: Plane, root: Path, step: int, **fields: Any) -> Path:
    """A checkpoint of the finished run, with its files; returns its directory."""
    directory, reports = root / f"step-{step:09d}", []
    for rank in (0, 1):
        home = rank_directory(str(directory), rank)
        home.mkdir(parents=True)
        (home / "data").write_bytes(bytes(1024))
        digest = hashlib.blake2b(bytes(1024), digest_size=16).hexdigest()
        report = shard(step, rank).model_copy(
            update={
                "run": RUN_ID,
                "path": str(directory),
                "files": (ShardFile(name="data", bytes=1024, blake2b=digest),),
            }
        )
        (home / MANIFEST_FILE).write_text(report.model_dump_json())
        reports.append(report)
    known = checkpoint(step, Trust.COMPLETE, path=str(directory), homes={0: "w1", 1: "w2"})
    plane.write(
        entities=[dataclasses.replace(known, **fields)],
        shards=[ShardRecord(checkpoint=known.id, shard=report) for report in reports],
    )
    return directory
