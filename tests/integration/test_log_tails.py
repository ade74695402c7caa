"""The ends of logs in each run database: bounded, and gone with the history of the run."""

from __future__ import annotations

import datetime as dt
import io
from collections.abc import AsyncIterator

import pytest

from jobs.log_messages import SEGMENT_BYTES, TailPiece, pack
from jobs.log_pieces import piece_of
from orchestrator.core.model.states import RunState
from orchestrator.database import retention
from orchestrator.database.log_tails import KeptLog
from orchestrator.database.port import Batch
from orchestrator.database.sql_store import SqlStore
from tests.database_data import NOW, RUN, lead, run

WRITTEN = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


@pytest.fixture
async def sql(store_url: str | None) -> AsyncIterator[SqlStore]:
    if store_url is None:
        pytest.skip("the store in memory keeps no logs")
    opened = await SqlStore.open(store_url)
    yield opened
    await opened.close()


def piece(text: bytes, start: int = 0, *, attempt: int = 1, rank: int = 0) -> TailPiece:
    """A segment with this text."""
    return TailPiece(
        attempt=attempt,
        rank=rank,
        start=start,
        end=start + len(text),
        written=WRITTEN.timestamp(),
        packed=pack(text),
    )


async def text(sql: SqlStore, attempt: int = 1, rank: int = 0) -> str:
    """All that is kept of a log."""
    return piece_of(await sql.log_tails.parts(RUN, attempt, rank)).text


async def test_a_segment_grows_and_what_lies_before_the_end_goes(sql: SqlStore) -> None:
    tails, tail = sql.log_tails, 2 * SEGMENT_BYTES
    await tails.keep(RUN, "w-1", [piece(b"one\n")], tail_bytes=tail)
    await tails.keep(RUN, "w-1", [piece(b"one\ntwo\n")], tail_bytes=tail)
    await tails.keep(RUN, "w-1", [piece(b"one\n")], tail_bytes=tail)  # an old frame comes late
    await tails.keep(RUN, "w-2", [piece(b"other", rank=7)], tail_bytes=tail)
    assert await text(sql) == "one\ntwo\n"
    line = b"x" * 63 + b"\n"
    full = [piece(line * (SEGMENT_BYTES // 64), i * SEGMENT_BYTES) for i in range(4)]
    await tails.keep(RUN, "w-1", [*full, piece(b"last\n", 4 * SEGMENT_BYTES)], tail_bytes=tail)
    kept = await tails.of_rank(RUN, 1, 0)
    end = 4 * SEGMENT_BYTES + 5
    assert kept == KeptLog(1, 0, "w-1", 2 * SEGMENT_BYTES, end, WRITTEN), "whole segments"
    assert (await text(sql)).startswith("x")
    assert [(log.rank, log.worker) for log in await tails.of_run(RUN)] == [(0, "w-1"), (7, "w-2")]


async def test_old_attempts_go_when_a_run_takes_more_than_its_share(sql: SqlStore) -> None:
    tails = sql.log_tails
    for attempt in range(1, 6):
        for rank in range(3):
            noise = bytes((i * 7919 * (attempt + rank)) % 251 for i in range(5000))
            one = piece(noise, attempt=attempt, rank=rank)
            await tails.keep(RUN, "w-1", [one], tail_bytes=2**20)
    sizes = [len(part.file.read()) for part in await tails.parts(RUN, 5, 0)]
    assert sizes == [5000]
    taken = len(pack(bytes((i * 7919 * 5) % 251 for i in range(5000))))
    await tails.forget_old(RUN, most=int(7.5 * taken))
    assert {log.attempt for log in await tails.of_run(RUN)} == {4, 5}
    await tails.forget_old(RUN, most=1)
    assert {log.attempt for log in await tails.of_run(RUN)} == {5}, "the newest attempt stays"


async def test_ends_of_logs_go_with_the_history_of_the_run(sql: SqlStore) -> None:
    epoch = await lead(sql)
    ended = run(state=RunState.SUCCEEDED, ended_at=NOW - dt.timedelta(days=40))
    await sql.commit(Batch(entities=[ended]), epoch=epoch)
    await sql.log_tails.keep(RUN, "w-1", [piece(b"words")], tail_bytes=2**20)
    await sql.log_tails.keep("another", "w-2", [piece(b"words")], tail_bytes=2**20)
    until = NOW - dt.timedelta(days=30)
    await retention.prune(sql._database, until=until, now=NOW)
    assert await sql.log_tails.of_run(RUN) == []
    assert len(await sql.log_tails.of_run("another")) == 1


def test_a_packed_segment_never_unpacks_to_more_than_a_segment() -> None:
    """An agent is not trusted: a few kilobytes may unpack to gigabytes."""
    from jobs.log_messages import unpack

    assert len(unpack(pack(bytes(50 * 2**20)))) == SEGMENT_BYTES
    assert unpack(b"no zlib at all") == b""
    assert io.BytesIO(unpack(pack(b"a"))).read() == b"a"
