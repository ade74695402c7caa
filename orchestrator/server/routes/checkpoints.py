"""Checkpoints of a run, live or ended."""

# ruff: noqa: FAST003 -- path parameters are read by dependencies, which ruff does not see through aliases

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.concurrency import run_in_threadpool

from babysit.wire import Tier
from jobs.agent import inventory
from jobs.agent.errors import RefusedPathError
from jobs.commands import VerifyCheckpoint
from jobs.shards import ShardReport
from orchestrator.core.messages.events import (
    CheckpointPinned,
    CheckpointRemovalAsked,
    CheckpointVerificationAsked,
)
from orchestrator.core.messages.instructions import SendCommand
from orchestrator.core.model.entities import Checkpoint, Run
from orchestrator.core.model.states import TERMINAL_RUN_STATES
from orchestrator.core.views.build import checkpoint_view
from orchestrator.core.views.models import CheckpointDetail, CheckpointView, ShardView
from orchestrator.errors import ConflictError, NotFoundError
from orchestrator.server.context import Context, HasContext, Operator, TheRun

router = APIRouter(prefix="/runs/{reference}/checkpoints", tags=["checkpoints"])


async def _checkpoint(run: TheRun, checkpoint: str, here: HasContext) -> Checkpoint:
    """By id, the end of one (`2/directory/40`), or step (the directory tier's newest first)."""
    done = await here.done_before()
    if done is not None and done.run == run.id and "checkpoint" in done.payload:
        return (await here.store.checkpoint(done.payload["checkpoint"]))[0]
    checkpoints = await here.store.checkpoints(run.id)
    for candidate in checkpoints:
        if checkpoint in (candidate.id, candidate.id.removeprefix(f"{run.id}/")):
            return candidate
    of_step = [c for c in checkpoints if checkpoint == str(c.step)]
    if of_step:
        return max(of_step, key=lambda c: (c.tier is Tier.DIRECTORY, c.attempt))
    steps = ", ".join(map(str, sorted({c.step for c in checkpoints}))) or "none"
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
async def verify(
    run: TheRun, found: TheCheckpoint, here: HasContext, caller: Operator
) -> CheckpointView:
    """Have a checkpoint read back: by its agents, in the background, or by this server.

    The server reads it once the run has ended, and answers with the result.
    """
    fault = await _read_back(run, found) if run.state in TERMINAL_RUN_STATES else None
    await here.tell(
        caller, CheckpointVerificationAsked, run=found.run, checkpoint=found.id, fault=fault
    )
    return await _again(found, here)


async def _read_back(run: Run, found: Checkpoint) -> str:
    """The first fault of a checkpoint of an ended run; empty when there is none.

    Raises:
        ConflictError: This server cannot read the checkpoint.
    """
    command = VerifyCheckpoint(
        id=found.id,
        attempt=found.attempt,
        checkpoint=found.id,
        path=found.path,
        ranks=tuple(range(found.world_size)),
    )
    try:
        fault, _ = await run_in_threadpool(inventory.verify, command, run.id)
    except OSError as error:
        raise ConflictError(
            f"{run.name} has ended, and this server cannot read {error.filename}: {error.strerror}",
            run=run.id,
            state=run.state,
        ) from error
    return fault


@router.post("/{checkpoint:path}/pin")
async def pin(found: TheCheckpoint, here: HasContext, caller: Operator) -> CheckpointView:
    """Exempt a checkpoint from retention."""
    await here.tell(caller, CheckpointPinned, run=found.run, checkpoint=found.id, pinned=True)
    return await _again(found, here)


@router.post("/{checkpoint:path}/unpin")
async def unpin(found: TheCheckpoint, here: HasContext, caller: Operator) -> CheckpointView:
    """End a pin: retention may delete the checkpoint again."""
    await here.tell(caller, CheckpointPinned, run=found.run, checkpoint=found.id, pinned=False)
    return await _again(found, here)


@router.delete("/{checkpoint:path}", status_code=202)
async def remove(
    run: TheRun, found: TheCheckpoint, here: HasContext, caller: Operator
) -> CheckpointView:
    """Delete a checkpoint. Pinned ones are refused; of a live run also the last trusted one.

    After the end of the run this server removes the files.
    """
    instructions = await here.tell(
        caller, CheckpointRemovalAsked, run=found.run, checkpoint=found.id
    )
    if not any(isinstance(each, SendCommand) for each in instructions):
        await _remove_files(run, found)
    return await _again(found, here)


async def _remove_files(run: Run, found: Checkpoint) -> None:
    """Remove the files of a deleted checkpoint whose run has no agents any more.

    Raises:
        ConflictError: The files could not be removed; the checkpoint stays deleted.
    """
    try:
        await run_in_threadpool(inventory.delete, Path(found.path), found.attempt, run.id)
    except (RefusedPathError, OSError) as error:
        raise ConflictError(
            f"{found.id} is deleted, but this server could not remove its files; remove"
            f" {found.path} yourself: {error}",
            run=run.id,
            state=run.state,
        ) from error
