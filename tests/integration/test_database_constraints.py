"""Invariants stand in the database itself: SQL that breaks one is refused, whoever sends it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text

from orchestrator.core.model.states import AttemptState, IncidentState, RunState, Trust, WorkerState
from orchestrator.database.engine import Database
from orchestrator.database.port import Batch
from orchestrator.database.sql_store import SqlStore
from orchestrator.errors import InvariantError
from tests.database_data import (
    NOW,
    RUN,
    attempt,
    checkpoint,
    columns,
    entry,
    incident,
    lead,
    run,
    samples,
    shard,
    worker,
)

OVER = "01JOVER000000000000000ZZZZ"


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A database with something in it."""
    store = await SqlStore.open(database_url)
    half, bad = checkpoint(20), checkpoint(40, trust=Trust.BAD)
    batch = Batch(
        entities=[
            run(attempt=2),
            run(OVER, "over", state=RunState.FAILED, ended_at=NOW),
            attempt(1, state=AttemptState.ENDED),
            attempt(2),
            worker("w1", state=WorkerState.ENDED),
            half,
            bad,
            incident(state=IncidentState.RESOLVED),
        ],
        shards=[shard(0, half)],
        journal=[entry("E1")],
        samples=[samples(columns(1, 3), attempt=2)],
    )
    await store.commit(batch, epoch=await lead(store))
    await store.close()
    database = Database(database_url)
    yield database
    await database.close()


BODY = "'{}'"
TIME = "'2026-01-01 00:00:00.000000+00:00'"
REFUSED = {
    "a live attempt beside another": f"INSERT INTO attempts (run, number, state, started_at, body) "
    f"VALUES ('{RUN}', 3, 'starting', {TIME}, {BODY})",
    "an ended attempt revived": "UPDATE attempts SET state = 'running' WHERE number = 1",
    "attempt 0": f"INSERT INTO attempts (run, number, state, started_at, body) "
    f"VALUES ('{OVER}', 0, 'ended', {TIME}, {BODY})",
    "an attempt of no run": f"INSERT INTO attempts (run, number, state, started_at, body) "
    f"VALUES ('nothing', 1, 'ended', {TIME}, {BODY})",
    "an attempt twice": f"INSERT INTO attempts (run, number, state, started_at, body) "
    f"VALUES ('{RUN}', 2, 'ended', {TIME}, {BODY})",
    "a failed run revived": "UPDATE runs SET state = 'running' WHERE name = 'over'",
    "a run's attempt falls": "UPDATE runs SET attempt = 1 WHERE name = 'tiny'",
    "a state that is no word": "UPDATE runs SET state = 'spot' WHERE name = 'tiny'",
    "an attempt state that is no word": "UPDATE attempts SET state = 'odd' WHERE number = 2",
    "an ended worker revived": "UPDATE workers SET state = 'ready'",
    "a worker state that is no word": f"INSERT INTO workers (id, run, node, state, launched_at, "
    f"body) VALUES ('w5', '{RUN}', 'n', 'odd', {TIME}, {BODY})",
    "a node state that is no word": "INSERT INTO nodes (id, state, body) VALUES ('n', 'x', '{}')",
    "an incident reopened": "UPDATE incidents SET state = 'open'",
    "a severity that is no word": "UPDATE incidents SET severity = 'meh'",
    "complete with a shard missing": "UPDATE checkpoints SET trust = 'complete' WHERE step = 20",
    "good without any shard": f"INSERT INTO checkpoints (id, run, attempt, step, tier, world_size, "
    f"trust, created_at, body) VALUES ('c', '{RUN}', 2, 60, 'memory', 1, 'good', {TIME}, {BODY})",
    "bad made good": "UPDATE checkpoints SET trust = 'good' WHERE step = 40",
    "a tier that is no word": "UPDATE checkpoints SET tier = 'tape'",
    "a world of no rank": "UPDATE checkpoints SET world_size = 0",
    "a checkpoint of no attempt": "UPDATE checkpoints SET attempt = 9",
    "a shard of no checkpoint": f"INSERT INTO shards (checkpoint, rank, bytes, body) "
    f"VALUES ('nothing', 0, 1, {BODY})",
    "a shard twice": f"INSERT INTO shards (checkpoint, rank, bytes, body) "
    f"VALUES ('{RUN}/1/directory/20', 0, 1, {BODY})",
    "a shard without hashes": f"INSERT INTO shards (checkpoint, rank, bytes) "
    f"VALUES ('{RUN}/1/directory/20', 1, 1)",
    "a negative rank": f"INSERT INTO shards (checkpoint, rank, bytes, body) "
    f"VALUES ('{RUN}/1/directory/20', -1, 1, {BODY})",
    "the journal rewritten": "UPDATE journal SET reason = 'it was not me'",
    "the journal deleted": "DELETE FROM journal",
    "a journal entry twice": f"INSERT INTO journal (id, at, actor, kind, name, reason, payload) "
    f"VALUES ('E1', {TIME}, 'a', 'event', 'n', '', {BODY})",
    "a record in the outbox": f"INSERT INTO outbox (id, kind, body) VALUES ('r', 'record', {BODY})",
    "an epoch that falls": "UPDATE leader SET epoch = epoch - 1",
    "a second leader": f"INSERT INTO leader (id, holder, epoch, expires_at) "
    f"VALUES (2, 'b', 9, {TIME})",
    "a second fleet": f"INSERT INTO fleet (id, body) VALUES ('other', {BODY})",
    "a role that is no word": f"INSERT INTO tokens (id, name, role, hash, created_at) "
    f"VALUES ('t', 'n', 'root', 'h', {TIME})",
    "a chunk that is too long": "UPDATE samples SET count = 513",
    "samples of no attempt": "UPDATE samples SET attempt = 9",
    "a second tail": f"INSERT INTO samples (run, rank, attempt, chunk, tail, first_step, "
    f"last_step, count, lost) VALUES ('{RUN}', 0, 2, 1, true, 4, 4, 1, 0)",
}


@pytest.mark.parametrize("what", REFUSED)
async def test_refused(database: Database, what: str) -> None:
    with pytest.raises(InvariantError):
        async with database.writing() as connection:
            await connection.execute(text(REFUSED[what]))


ALLOWED = {
    "a run's reason": "UPDATE runs SET body = '{}' WHERE name = 'over'",
    "the same end again": "UPDATE attempts SET state = 'ended' WHERE number = 1",
    "the next attempt, ended": f"INSERT INTO attempts (run, number, state, started_at, body) "
    f"VALUES ('{RUN}', 3, 'ended', {TIME}, {BODY})",
    "the last shard, then complete": f"INSERT INTO shards (checkpoint, rank, bytes, body) VALUES "
    f"('{RUN}/1/directory/20', 1, 1, {BODY}); "
    "UPDATE checkpoints SET trust = 'complete' WHERE step = 20",
    "an epoch that grows": "UPDATE leader SET epoch = epoch + 1",
    "a second chunk": f"UPDATE samples SET tail = false; INSERT INTO samples (run, rank, attempt, "
    f"chunk, tail, first_step, last_step, count, lost) VALUES ('{RUN}', 0, 2, 1, true, 4, 4, 1, 0)",
}


@pytest.mark.parametrize("what", ALLOWED)
async def test_allowed(database: Database, what: str) -> None:
    """The statements above are refused for what they do, not for how they are written."""
    async with database.writing() as connection:
        for statement in ALLOWED[what].split("; "):
            assert (await connection.execute(text(statement))).rowcount == 1
