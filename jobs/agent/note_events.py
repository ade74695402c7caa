"""Translation of a rank's notes into events."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from babysit.wire import Note
from jobs.agent.engine_failures import failure_of_process
from jobs.agent.errors import NoteError
from jobs.engine_events import EngineFailed, EngineNamed, EngineResumed, EngineSaved
from jobs.events import (
    AgentEvent,
    ChangeAnnounced,
    RankReady,
    RankRestored,
    SaveFailed,
    SaveResumed,
    ShardWritten,
)
from jobs.shards import ShardFile, ShardReport

Fields = Mapping[str, Any]
"""Fields common to all events of the worker: id, time, actor, run, worker, attempt."""
_LONGEST_CHANGE = 200
"""Characters of an announcement that are kept."""


def _ready(_note: dict[str, Any], author: Author, fields: Fields) -> RankReady:
    return RankReady(rank=author.rank, **fields)


def _restored(note: dict[str, Any], author: Author, fields: Fields) -> RankRestored:
    return RankRestored(
        rank=author.rank,
        step=note["step"],
        checkpoint=note.get("checkpoint") or "",
        seconds=note.get("seconds", 0.0),
        rejected=note.get("rejected", ()),
        **fields,
    )


def _shard(note: dict[str, Any], author: Author, fields: Fields) -> ShardWritten:
    seconds = note.get("seconds") or {}
    shard = ShardReport(
        attempt=fields["attempt"],
        step=note["step"],
        rank=author.rank,
        world_size=author.world_size,
        tier=note["tier"],
        path=note["path"],
        batch=note.get("batch", 0),
        files=tuple(ShardFile.model_validate(file) for file in note["files"]),
        copy_seconds=seconds.get("copy", 0.0),
        write_seconds=seconds.get("write", 0.0),
        run=fields["run"],
    )
    return ShardWritten(shard=shard, **fields)


def _save_failed(note: dict[str, Any], author: Author, fields: Fields) -> SaveFailed:
    return SaveFailed(
        rank=author.rank,
        step=note["step"],
        tier=note["tier"],
        error=str(note["error"]),
        full=bool(note.get("full", False)),
        **fields,
    )


def _save_resumed(note: dict[str, Any], author: Author, fields: Fields) -> SaveResumed:
    return SaveResumed(rank=author.rank, step=note["step"], tier=note["tier"], **fields)


def _change(note: dict[str, Any], author: Author, fields: Fields) -> ChangeAnnounced:
    return ChangeAnnounced(
        rank=author.rank,
        change=str(note["change"])[:_LONGEST_CHANGE],
        step=note["step"],
        until_step=note["until_step"],
        **fields,
    )


def _engine(note: dict[str, Any], _author: Author, fields: Fields) -> EngineNamed:
    return EngineNamed(engine=note["engine"], **fields)


def _engine_failed(note: dict[str, Any], _author: Author, fields: Fields) -> EngineFailed:
    failures = tuple(failure_of_process(each) for each in note["failures"])
    return EngineFailed(engine=note["engine"], step=note["step"], failures=failures, **fields)


def _engine_resumed(note: dict[str, Any], _author: Author, fields: Fields) -> EngineResumed:
    return EngineResumed(engine=note["engine"], step=note["step"], **fields)


def _engine_saved(note: dict[str, Any], _author: Author, fields: Fields) -> EngineSaved:
    return EngineSaved(
        engine=note["engine"],
        step=note["step"],
        path=note["path"],
        bytes=note.get("bytes", 0),
        gone=note.get("gone", ()),
        **fields,
    )


_TRANSLATIONS: dict[str, Callable[[dict[str, Any], Author, Fields], AgentEvent]] = {
    Note.STARTED: _ready,
    Note.RESTORED: _restored,
    Note.SHARD: _shard,
    Note.SAVE_FAILED: _save_failed,
    Note.SAVE_RESUMED: _save_resumed,
    Note.CHANGE: _change,
    Note.ENGINE: _engine,
    Note.ENGINE_FAILED: _engine_failed,
    Note.ENGINE_RESUMED: _engine_resumed,
    Note.ENGINE_SAVED: _engine_saved,
}
_SILENT = {Note.LOOPING, Note.LEFT, Note.FINISHED, Note.RAISED, Note.EXITING, Note.FINGERPRINT}
"""Notes without an event (yet)."""


@dataclasses.dataclass(frozen=True)
class Author:
    """The rank that wrote the notes."""

    rank: int
    world_size: int


def translate(line: str, author: Author, fields: Fields) -> AgentEvent | None:
    """The event for a note; None: this kind has no event.

    Raises:
        NoteError: The line is not a valid note of this version.
    """
    try:
        note = json.loads(line)
        kind = note["kind"]
        if kind in _SILENT:
            return None
        return _TRANSLATIONS[kind](note, author, fields)
    except (ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
        raise NoteError(
            f"rank {author.rank} wrote an invalid note: {line[:200]!r}: {error}"
        ) from error
