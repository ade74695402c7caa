"""Checkpoints of a run."""

# ruff: noqa: FAST003 -- path parameters are read by dependencies, which ruff does not see through aliases

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends

from babysit.wire import Tier
from jobs.events import ShardReport
from orchestrator.core.messages.events import (
    CheckpointPinned,
    CheckpointRemovalAsked,
    CheckpointVerificationAsked,
)
from orchestrator.core.model.entities import Checkpoint
from orchestrator.core.views.build import checkpoint_view
from orchestrator.core.views.models import CheckpointDetail, CheckpointView, ShardView
from orchestrator.errors import NotFoundError
from orchestrator.server.context import Context, HasContext, Operator, TheRun

router = APIRouter(prefix="/runs/{reference}/checkpoints", tags=["checkpoints"])


async def _checkpoint(run: TheRun, checkpoint: str, here: HasContext) -> Checkpoint:
    """By id, the end of one (`2/directory/40`), or step (the directory tier's newest first)."""
    known = await here.store.checkpoints(run.id)
    for candidate in known:
        if checkpoint in (candidate.id, candidate.id.removeprefix(f"{run.id}/")):
            return candidate
    of_step = [c for c in known if checkpoint == str(c.step)]
    if of_step:
        return max(of_step, key=lambda c: (c.tier is Tier.DIRECTORY, c.attempt))
    steps = ", ".join(map(str, sorted({c.step for c in known}))) or "none"
    raise NotFoundError(
        f"{run.name} has no checkpoint {checkpoint}; it has those of steps: {steps}"
    )


TheCheckpoint = Annotated[Checkpoint, Depends(_checkpoint)]


def _shard(report: ShardReport) -> ShardView:
    return ShardView(
        rank=report.rank,
        files=len(report.files),
        bytes=sum(file.bytes for file in report.files),
        path=report.path,
        copy_seconds=report.copy_seconds,
        write_seconds=report.write_seconds,
    )


@router.get("")
async def list_checkpoints(run: TheRun, here: HasContext) -> list[CheckpointView]:
    """Newest step first."""
    now = here.clock.now()
    return [checkpoint_view(found, now) for found in await here.store.checkpoints(run.id)]


@router.get("/{checkpoint:path}")
async def show(found: TheCheckpoint, here: HasContext) -> CheckpointDetail:
    """One checkpoint with its shards. `checkpoint` is an id or a step."""
    entity, shards = await here.store.checkpoint(found.id)
    return CheckpointDetail(
        **checkpoint_view(entity, here.clock.now()).model_dump(),
        batch=entity.batch,
        shard_list=[_shard(report) for report in sorted(shards, key=lambda s: s.rank)],
    )


async def _again(found: Checkpoint, here: Context) -> CheckpointView:
    entity, _ = await here.store.checkpoint(found.id)
    return checkpoint_view(entity, here.clock.now())


@router.post("/{checkpoint:path}/verify", status_code=202)
async def verify(found: TheCheckpoint, here: HasContext, caller: Operator) -> CheckpointView:
    """Have it read back by the agents; its trust changes when they have answered."""
    await here.tell(caller, CheckpointVerificationAsked, run=found.run, checkpoint=found.id)
    return await _again(found, here)


@router.post("/{checkpoint:path}/pin")
async def pin(found: TheCheckpoint, here: HasContext, caller: Operator) -> CheckpointView:
    """Keep it for ever."""
    await here.tell(caller, CheckpointPinned, run=found.run, checkpoint=found.id, pinned=True)
    return await _again(found, here)


@router.post("/{checkpoint:path}/unpin")
async def unpin(found: TheCheckpoint, here: HasContext, caller: Operator) -> CheckpointView:
    """Let retention have it."""
    await here.tell(caller, CheckpointPinned, run=found.run, checkpoint=found.id, pinned=False)
    return await _again(found, here)


@router.delete("/{checkpoint:path}", status_code=202)
async def remove(found: TheCheckpoint, here: HasContext, caller: Operator) -> CheckpointView:
    """Delete it. The last trusted one, and one in use, are refused."""
    await here.tell(caller, CheckpointRemovalAsked, run=found.run, checkpoint=found.id)
    return await _again(found, here)
