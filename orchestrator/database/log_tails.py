"""The ends of logs of ranks that write them on nodes whose disk no server reads.

The problem: when a node is lost, so are the logs on it; and a server that does not lead has no
connection to any agent. So the last part of each log lies in the run database, where every server
reads it.

The design: a row per segment of a log (:mod:`jobs.log_messages`), compressed by the agent. The last
segment grows: its row is replaced. Rows of a log that lie before its last `tail_bytes` are deleted
with each write. Old attempts of a run go once the run takes more than its share, and all of it goes
with the history of the run.

Limits: writes are not guarded by the leader's epoch. They decide nothing, and a segment has the
same text from every writer; of two writers of one segment, the longer one stays.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import io
from collections.abc import Sequence

from sqlalchemy import ColumnElement, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import Insert as PostgresInsert
from sqlalchemy.dialects.sqlite import Insert as SqliteInsert

from jobs.log_messages import TailPiece, unpack
from jobs.log_pieces import OpenPart
from orchestrator.database.engine import Database
from orchestrator.database.mapping import table_of
from orchestrator.database.server_models import LogTailRow

_TABLE = table_of(LogTailRow)
_LOG = ("attempt", "rank")


@dataclasses.dataclass(frozen=True)
class KeptLog:
    """The end of one rank's log, as it is kept."""

    attempt: int
    rank: int
    worker: str
    """The worker that has sent it."""
    start: int
    """Place of its first kept byte in the whole log."""
    end: int
    written_at: dt.datetime


class SqlLogTails:
    """Ends of logs in the run database. Raises DatabaseUnavailableError as the store does."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def keep(
        self, run: str, worker: str, pieces: Sequence[TailPiece], *, tail_bytes: int
    ) -> None:
        """Store segments, and delete what lies more than `tail_bytes` before them."""
        ends: dict[tuple[int, int], int] = {}
        for piece in pieces:
            key = piece.attempt, piece.rank
            ends[key] = max(ends.get(key, 0), piece.end)
        rows = [
            {
                "run": run,
                "attempt": piece.attempt,
                "rank": piece.rank,
                "segment": piece.segment,
                "start": piece.start,
                "end": piece.end,
                "worker": worker,
                "written_at": dt.datetime.fromtimestamp(piece.written, dt.UTC),
                "packed": piece.packed,
            }
            for piece in pieces
            if piece.end > ends[piece.attempt, piece.rank] - tail_bytes
        ]
        async with self._database.writing() as connection:
            await connection.execute(_longest(connection.dialect.name), rows)
            for (attempt, rank), end in ends.items():
                log = [_TABLE.c.run == run, _TABLE.c.attempt == attempt, _TABLE.c.rank == rank]
                old = _TABLE.c.end <= end - tail_bytes
                await connection.execute(delete(_TABLE).where(*log, old))

    async def forget_old(self, run: str, *, most: int) -> int:
        """Delete the ends of a run's oldest attempts while all take more than `most` bytes.

        Those of its newest attempt stay. Returns the newest attempt that was deleted; 0: none was.
        """
        size = func.sum(func.length(_TABLE.c.packed))
        query = select(_TABLE.c.attempt, size).where(_TABLE.c.run == run)
        query = query.group_by(_TABLE.c.attempt).order_by(_TABLE.c.attempt.desc())
        async with self._database.writing() as connection:
            total = 0
            for place, (attempt, taken) in enumerate((await connection.execute(query)).all()):
                total += int(taken)
                if place and total > most:
                    old = _TABLE.c.attempt <= attempt
                    await connection.execute(delete(_TABLE).where(_TABLE.c.run == run, old))
                    return int(attempt)
        return 0

    async def of_run(self, run: str, attempt: int | None = None) -> list[KeptLog]:
        """Which ends are kept of a run, by attempt and rank."""
        where = [_TABLE.c.run == run, *([] if attempt is None else [_TABLE.c.attempt == attempt])]
        return await self._kept(*where)

    async def of_rank(self, run: str, attempt: int, rank: int) -> KeptLog | None:
        """The end that is kept of one log, without its text; None: nothing of it is."""
        where = _TABLE.c.run == run, _TABLE.c.attempt == attempt, _TABLE.c.rank == rank
        return next(iter(await self._kept(*where)), None)

    async def _kept(self, *where: ColumnElement[bool]) -> list[KeptLog]:
        columns = [_TABLE.c[name] for name in _LOG]
        query = select(
            *columns,
            func.max(_TABLE.c.worker),
            func.min(_TABLE.c.start),
            func.max(_TABLE.c.end),
            func.max(_TABLE.c.written_at),
        )
        query = query.where(*where).group_by(*columns).order_by(*columns)
        async with self._database.reading() as connection:
            rows = await connection.execute(query)
            names = [field.name for field in dataclasses.fields(KeptLog)]
            return [KeptLog(**dict(zip(names, row, strict=True))) for row in rows]

    async def parts(self, run: str, attempt: int, rank: int) -> list[OpenPart]:
        """The text that is kept of one log, oldest first; empty: none."""
        log = _TABLE.c.run == run, _TABLE.c.attempt == attempt, _TABLE.c.rank == rank
        query = select(_TABLE.c.start, _TABLE.c.packed).where(*log).order_by(_TABLE.c.segment)
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        texts = [(start, unpack(packed)) for start, packed in rows]
        return [OpenPart(start, len(text), io.BytesIO(text)) for start, text in texts]


@functools.lru_cache
def _longest(dialect: str) -> SqliteInsert | PostgresInsert:
    """Insert a segment; of one that is there, the longer one stays."""
    insert = sqlite.insert if dialect == "sqlite" else postgresql.insert
    statement = insert(_TABLE).inline()
    changed = ("start", "end", "worker", "written_at", "packed")
    return statement.on_conflict_do_update(
        index_elements=list(_TABLE.primary_key),
        set_={name: statement.excluded[name] for name in changed},
        where=statement.excluded.end >= _TABLE.c.end,
    )
