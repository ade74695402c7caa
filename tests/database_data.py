"""Things to put into a run database."""

from __future__ import annotations

import datetime as dt
from typing import Any

from babysit.wire import Tier
from jobs.events import RankSamples
from jobs.shards import ShardFile, ShardReport
from jobs.spec import RunSpec
from monitors.types import FindingKind, Severity
from orchestrator.core.model.entities import (
    Attempt,
    Checkpoint,
    Incident,
    Run,
    Seat,
    Worker,
)
from orchestrator.core.model.time_ledger import Ledger
from orchestrator.database.port import Batch, JournalEntry, ShardRecord, Store, WorkerSamples

NOW = dt.datetime(2026, 1, 1, 12, 0, 0, 123456, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)
RUN = "01JRUN0000000000000000AAAA"


def run(key: str = RUN, name: str = "tiny", **changes: Any) -> Run:
    """A run."""
    defaults: dict[str, Any] = {
        "spec": RunSpec(name=name, command=("python", "train.py")),
        "submitted_at": NOW,
        "ledger": Ledger(since=NOW),
    }
    return Run(id=key, name=name, **(defaults | changes))


def attempt(number: int = 1, run: str = RUN, **changes: Any) -> Attempt:
    """An attempt."""
    defaults: dict[str, Any] = {
        "seats": (Seat(worker="w1", node="node-1", ranks=(0, 1)),),
        "world_size": 2,
        "started_at": NOW,
    }
    return Attempt(run=run, number=number, **(defaults | changes))


def worker(key: str = "w1", run: str = RUN, **changes: Any) -> Worker:
    """A worker."""
    return Worker(**({"id": key, "run": run, "node": "node-1", "launched_at": NOW} | changes))


def checkpoint(step: int = 20, run: str = RUN, **changes: Any) -> Checkpoint:
    """A checkpoint."""
    defaults: dict[str, Any] = {
        "id": f"{run}/1/directory/{step}",
        "attempt": 1,
        "tier": Tier.DIRECTORY,
        "world_size": 2,
        "path": f"/data/step-{step}",
        "created_at": NOW,
    }
    return Checkpoint(run=run, step=step, **(defaults | changes))


def shard(rank: int, checkpoint: Checkpoint) -> ShardRecord:
    """One rank's shard."""
    report = ShardReport(
        attempt=checkpoint.attempt,
        step=checkpoint.step,
        rank=rank,
        world_size=checkpoint.world_size,
        tier=checkpoint.tier,
        path=checkpoint.path,
        batch=checkpoint.step,
        files=(ShardFile(name="a.distcp", bytes=1 << 33, blake2b="00" * 16),),
    )
    return ShardRecord(checkpoint=checkpoint.id, shard=report)


def incident(key: str = "01JINCIDENT00000000000ABCD", run: str = RUN, **changes: Any) -> Incident:
    """An incident."""
    defaults: dict[str, Any] = {
        "attempt": 1,
        "kind": FindingKind.HANG,
        "severity": Severity.CRITICAL,
        "reason": "no step for 90 s",
        "opened_at": NOW,
    }
    return Incident(id=key, run=run, **(defaults | changes))


def entry(key: str, run: str | None = RUN, **changes: Any) -> JournalEntry:
    """A journal entry."""
    defaults: dict[str, Any] = {
        "at": NOW,
        "actor": "controller",
        "kind": "event",
        "name": "rank_exited",
        "cause": None,
        "reason": "",
        "payload": {"id": key},
    }
    return JournalEntry(id=key, run=run, **(defaults | changes))


def columns(first: int, last: int, *, rank: int = 0, loss: float | None = None) -> RankSamples:
    """Samples of the steps `first` to `last`; the loss falls with the step, or is as given."""
    steps = list(range(first, last + 1))
    return RankSamples(
        rank=rank,
        step=steps,
        batch=steps,
        time=[1.7e9 + step / 3 for step in steps],
        loss=[loss if loss is not None else 10 / step for step in steps],
        grad_norm=[1 / (step + 7) for step in steps],
        tokens=[1024.0] * len(steps),
        seconds=[0.1] * len(steps),
        blocked_seconds=[0.0] * len(steps),
        learning_rate=[3e-4] * len(steps),
    )


def samples(
    *ranks: RankSamples, attempt: int = 1, worker: str = "", sequence: int | None = None
) -> WorkerSamples:
    """A report's samples."""
    return WorkerSamples(run=RUN, attempt=attempt, ranks=ranks, worker=worker, sequence=sequence)


async def lead(store: Store, holder: str = "server-1") -> int:
    """Take the lease; returns its epoch."""
    lease = await store.acquire(holder, 30.0, NOW)
    assert lease is not None
    return lease.epoch


async def begin(store: Store) -> int:
    """A run with its first attempt and a worker; returns the epoch to write with."""
    epoch = await lead(store)
    await store.commit(Batch(entities=[run(attempt=1), attempt(), worker()]), epoch=epoch)
    return epoch
