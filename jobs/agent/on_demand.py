"""Commands that inspect a run or its checkpoints without starting or stopping ranks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import structlog

from jobs.agent import flight_records, inventory, stacks
from jobs.agent.build_locks import waited_for
from jobs.agent.errors import RefusedPathError
from jobs.agent.gang import Gang
from jobs.agent.reporter import Reporter
from jobs.agent.script_checkpoints import records_of
from jobs.commands import CaptureStacks, DeleteCheckpoint, FindCheckpoints, VerifyCheckpoint
from jobs.config import AgentConfig
from jobs.events import CheckpointChecked, CheckpointDeleted, CheckpointsFound, StacksCaptured
from jobs.shards import ShardReport

_DELETE_PAUSES = (0.5, 2.0, 5.0)
"""Seconds between tries to delete a checkpoint; then the control plane tries again later."""


async def capture_stacks(command: CaptureStacks, gang: Gang | None, reporter: Reporter) -> None:
    """Report the stacks of the attempt's living ranks; empty if it does not run here."""
    pids: dict[int, int] = {}
    directories: dict[int, Path] = {}
    if gang is not None and gang.attempt == command.attempt:
        pids = {rank.rank: rank.python_pid for rank in gang.ranks.values() if rank.alive}
        directories = {rank: gang.ranks[rank].reader.directory for rank in pids}
    # Before the looks: a thread that dumps would pass for one that works.
    groups = await flight_records.capture(directories, reporter.clock)
    looks = await stacks.capture(pids, reporter.clock, directories)
    locks = {
        look.rank: await asyncio.to_thread(waited_for, pids[look.rank], look.frames)
        for look in looks
    }
    # The exit of a rank that ended meanwhile is reported: as a look it would be a death.
    found = tuple(
        look.model_copy(
            update={
                "raised": gang.ranks[look.rank].words.trace,
                "groups": groups[look.rank],
                "waits_for": locks[look.rank],
            }
        )
        for look in looks
        if gang is not None and gang.ranks[look.rank].alive
    )
    reporter.say(StacksCaptured(stacks=found, **reporter.fields(command.attempt, command.id)))


async def look_after(
    command: VerifyCheckpoint | DeleteCheckpoint | FindCheckpoints,
    newest: int,
    config: AgentConfig,
    reporter: Reporter,
) -> None:
    """Carry out a command about checkpoints on disk, and report what came of it.

    `newest` is the newest attempt of this worker.
    """
    shelf = _shelf_of(config)
    match command:
        case VerifyCheckpoint():
            await verify_checkpoint(command, newest, shelf, reporter)
        case DeleteCheckpoint():
            await delete_checkpoint(command, newest, shelf, reporter)
        case FindCheckpoints():
            await find_checkpoints(command, shelf, reporter)


class _Shelf(NamedTuple):
    """How checkpoints on disk are read: those of babysit, or those of the script. All of it blocks.

    The functions are those of :mod:`jobs.agent.inventory`, for this run.
    """

    verify: Callable[[VerifyCheckpoint], tuple[str, str]]
    delete: Callable[[DeleteCheckpoint], None]
    find: Callable[[FindCheckpoints], tuple[ShardReport, ...]]


def _shelf_of(config: AgentConfig) -> _Shelf:
    records, run, root = records_of(config), config.run, config.spec.checkpoint.directory
    if records is None:
        return _Shelf(
            lambda c: inventory.verify(c, run),
            lambda c: inventory.delete(Path(c.path), c.attempt, run),
            lambda c: (
                inventory.whole_checkpoints(Path(root), run, c.attempt, c.above) if root else ()
            ),
        )
    return _Shelf(
        lambda c: records.verify(c.path, c.attempt) if 0 in c.ranks else ("", ""),
        lambda c: records.delete(Path(c.path), c.attempt),
        lambda c: records.whole(c.attempt, c.above),
    )


async def verify_checkpoint(
    command: VerifyCheckpoint, attempt: int, shelf: _Shelf, reporter: Reporter
) -> None:
    """Verify a checkpoint's shards in a thread, and report the result.

    Args:
        command: Names the shards.
        attempt: Newest attempt of this worker; the checkpoint may be of an older one.
        shelf: Reads them.
        reporter: Receives the answer.
    """
    begun = reporter.clock.monotonic()
    unreadable = False
    try:
        fault, medium = await asyncio.to_thread(shelf.verify, command)
    except OSError as error:
        fault, medium, unreadable = f"{error.filename}: {error.strerror}", "", True
    reporter.say(
        CheckpointChecked(
            checkpoint=command.checkpoint,
            ok=not fault,
            error=fault,
            unreadable=unreadable,
            medium=medium,
            seconds=reporter.clock.monotonic() - begun,
            **reporter.fields(max(attempt, command.attempt), command.id),
        )
    )


async def find_checkpoints(command: FindCheckpoints, shelf: _Shelf, reporter: Reporter) -> None:
    """Look for checkpoints of the run on disk in a thread, and report what was found."""
    shards: tuple[ShardReport, ...] = ()
    error = ""
    try:
        shards = await asyncio.to_thread(shelf.find, command)
    except OSError as why:
        error = f"{why.filename}: {why.strerror}"
    fields = reporter.fields(command.attempt, command.id)
    reporter.say(CheckpointsFound(shards=shards, error=error, **fields))


async def delete_checkpoint(
    command: DeleteCheckpoint, attempt: int, shelf: _Shelf, reporter: Reporter
) -> None:
    """Delete a checkpoint in a thread, and report what came of it.

    A directory that is busy or not empty (another client of NFS has a file open, say) is tried
    again for some seconds.
    """
    log = structlog.get_logger(part="on_demand")
    error, refused = "", False
    for pause in (*_DELETE_PAUSES, 0.0):
        try:
            await asyncio.to_thread(shelf.delete, command)
        except RefusedPathError as why:
            error, refused = str(why), True
            break
        except OSError as why:
            error = str(why)
            await reporter.clock.sleep(pause)
        else:
            error = ""
            break
    if error:
        log.warning("checkpoint not deleted", path=command.path, reason=error)
    fields = reporter.fields(max(attempt, command.attempt), command.id)
    answer = {"checkpoint": command.checkpoint, "error": error, "refused": refused}
    reporter.say(CheckpointDeleted(**answer, **fields))
