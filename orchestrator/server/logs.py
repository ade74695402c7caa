"""Logs of ranks as the API shows them: those on the disk of this server.

Where workers do not run on this machine, :mod:`orchestrator.server.remote_logs` answers instead.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import re
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from jobs import log_pieces
from jobs.log_files import end_of, older_parts
from jobs.log_pieces import LogPiece
from orchestrator.core.model.entities import Run
from orchestrator.errors import NotFoundError
from orchestrator.settings import Settings


class LogFile(BaseModel):
    """The log of one rank of one attempt."""

    attempt: int
    rank: int
    bytes: int
    """Size of the whole log, with parts that were deleted; 0: not known yet."""
    written_at: dt.datetime
    node: str = ""
    """The node on whose disk the log lies, while an agent there can send it. Empty: the log is on
    the server's disk, or only its end is kept."""
    kept_from: int = 0
    """Where the part begins that is left when the node has gone."""


class RunLogs(Protocol):
    """The logs of runs, wherever they lie."""

    async def files(self, run: Run) -> list[LogFile]:
        """The logs of a run, by attempt and rank."""

    async def piece(
        self, run: Run, attempt: int, rank: int, *, offset: int = 0, tail: int | None = None
    ) -> LogPiece:
        """Read from `offset`, or the last `tail` lines, as :func:`jobs.log_pieces.read_piece` does.

        Raises:
            NotFoundError: There is no such log.
            TemporaryError: It cannot be read here now.
        """


class LocalLogs:
    """Implements :class:`RunLogs` over the home of the server."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def files(self, run: Run) -> list[LogFile]:
        """See the protocol."""
        return await run_in_threadpool(log_files, self._settings.log_directory(run.id))

    async def piece(
        self, run: Run, attempt: int, rank: int, *, offset: int = 0, tail: int | None = None
    ) -> LogPiece:
        """See the protocol."""
        path = log_path(self._settings.log_directory(run.id), attempt, rank)
        return await run_in_threadpool(read_piece, path, offset=offset, tail=tail)


def log_files(directory: Path) -> list[LogFile]:
    """The logs under a run's log directory, by attempt and rank."""
    found = []
    for path in directory.glob("attempt-*/rank-*.log"):
        match = re.fullmatch(r"attempt-(\d+)/rank-(\d+)\.log", str(path.relative_to(directory)))
        if match is None:
            continue
        with contextlib.suppress(FileNotFoundError):  # rotated or deleted at this moment
            status = path.stat()
            found.append(
                LogFile(
                    attempt=int(match[1]),
                    rank=int(match[2]),
                    bytes=end_of(older_parts(path)) + status.st_size,
                    written_at=dt.datetime.fromtimestamp(status.st_mtime, dt.UTC),
                )
            )
    return sorted(found, key=lambda file: (file.attempt, file.rank))


def log_path(directory: Path, attempt: int, rank: int) -> Path:
    """Where the log of one rank lies."""
    return directory / f"attempt-{attempt:04d}" / f"rank-{rank:05d}.log"


def read_piece(path: Path, *, offset: int = 0, tail: int | None = None) -> LogPiece:
    """Read from `offset`, or the last `tail` lines; see :func:`jobs.log_pieces.read_piece`.

    Raises:
        NotFoundError: There is no such log.
    """
    try:
        return log_pieces.read_piece(path, offset=offset, tail=tail)
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no log {path.parent.name}/{path.name} yet") from error
