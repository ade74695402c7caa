"""Backup and retention."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text

from orchestrator.core.model.states import AttemptState, RunState, WorkerState
from orchestrator.database import schema
from orchestrator.database.engine import Database
from orchestrator.database.port import Batch
from orchestrator.database.sql_store import SqlStore
from orchestrator.errors import (
    ConflictError,
    DatabaseUnavailableError,
    InvalidError,
    InvariantError,
)
from tests.database_data import (
    DAY,
    NOW,
    RUN,
    attempt,
    begin,
    columns,
    entry,
    run,
    samples,
    worker,
)
from tests.postgres import find_binary


async def fill(url: str) -> None:
    """A run that ended at NOW and one that goes on, with journal and samples."""
    store = await SqlStore.open(url)
    epoch = await begin(store)
    other = "01JOTHER00000000000000BBBB"
    await store.commit(
        Batch(
            entities=[run(other, "on"), attempt(run=other), worker("w2", other)],
            journal=[
                entry("E1", at=NOW - DAY),
                entry("E2"),
                entry("E3", run=other),
                entry("E4", run=None),
                entry("E5", at=NOW + DAY),
            ],
            samples=[samples(columns(1, 600))],
            sequences={"w1": 0},
        ),
        epoch=epoch,
    )
    ended = [
        run(attempt=1, state=RunState.SUCCEEDED, ended_at=NOW),
        attempt(state=AttemptState.ENDED),
        worker(state=WorkerState.ENDED),
    ]
    await store.commit(Batch(entities=ended), epoch=epoch)
    await store.close()


async def test_retention_removes_what_is_old_of_runs_that_ended(database_url: str) -> None:
    await fill(database_url)
    soon = NOW + dt.timedelta(minutes=1)
    removed = await schema.retention(database_url, until=NOW, now=soon)
    assert removed == schema.Removed(runs=0, journal=0, samples=0)  # it ended at, not before

    removed = await schema.retention(database_url, until=soon, now=soon)
    assert removed == schema.Removed(runs=1, journal=2, samples=2)
    store = await SqlStore.open(database_url)
    try:
        assert [each.id for each in await store.journal()] == ["E3", "E4", "E5"]
        assert await store.sample_total(RUN) == 0
        assert await store.sample_tail(RUN) == []
        assert (await store.run(RUN)).state is RunState.SUCCEEDED
        last = (await store.journal())[-1].position
        await store.commit(Batch(journal=[entry("E6")]), epoch=1)
        assert (await store.journal())[-1].position > last
    finally:
        await store.close()


async def test_positions_are_not_given_again(database_url: str) -> None:
    await fill(database_url)
    store = await SqlStore.open(database_url)
    try:
        last = (await store.journal())[-1].position
        await schema.retention(database_url, until=NOW + 2 * DAY, now=NOW + 2 * DAY)
        await store.commit(Batch(journal=[entry("E6")]), epoch=1)
        assert (await store.journal())[-1].position > last
    finally:
        await store.close()


async def test_retention_does_not_open_the_journal_to_others(database_url: str) -> None:
    await fill(database_url)
    await schema.retention(database_url, until=NOW, now=NOW)
    database = Database(database_url)
    try:
        with pytest.raises(InvariantError, match="only the retention command"):
            async with database.writing() as connection:
                await connection.execute(text("DELETE FROM journal WHERE id = 'E2'"))
    finally:
        await database.close()


async def test_retention_does_not_reach_into_the_future(sqlite_database: str) -> None:
    with pytest.raises(InvalidError, match="future"):
        await schema.retention(sqlite_database, until=NOW + DAY, now=NOW)


async def test_a_backup_of_sqlite_is_a_database(sqlite_database: str, tmp_path: Path) -> None:
    store = await SqlStore.open(sqlite_database)
    try:
        epoch = await begin(store)
        await store.commit(Batch(journal=[entry("E1")]), epoch=epoch)
        copy = tmp_path / "copy.db"
        await schema.backup(sqlite_database, copy)  # while it is open
        await store.commit(Batch(journal=[entry("E2")]), epoch=epoch)
    finally:
        await store.close()
    saved = await SqlStore.open(f"sqlite:///{copy}")
    try:
        assert [each.id for each in await saved.journal()] == ["E1"]
        assert await schema.check(f"sqlite:///{copy}") == []
    finally:
        await saved.close()
    with pytest.raises(ConflictError, match="there already"):
        await schema.backup(sqlite_database, copy)
    assert sorted(each.name for each in tmp_path.glob("copy*")) == ["copy.db"]


async def test_a_backup_of_postgresql_can_be_restored(
    postgres_database: Callable[[], str],
    empty_postgres: Callable[[], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    programs = Path(find_binary("pg_dump")).parent
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    url, target = postgres_database(), empty_postgres()
    await fill(url)
    dump = tmp_path / "dump"
    await schema.backup(url, dump)
    await asyncio.to_thread(
        subprocess.run,
        [find_binary("pg_restore"), f"--dbname={target}", "--exit-on-error", str(dump)],
        check=True,
        capture_output=True,
    )
    restored = await SqlStore.open(target)
    try:
        assert (await restored.run(RUN)).state is RunState.SUCCEEDED
        assert len(await restored.journal()) == 5
        assert await restored.sample_total(RUN) == 600
    finally:
        await restored.close()
    assert await schema.check(target) == []


async def test_backups_that_cannot_be_made_leave_nothing(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = Path(find_binary("pg_dump")).parent
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    target = tmp_path / "dump"
    with pytest.raises(DatabaseUnavailableError, match="does not exist"):
        await schema.backup(postgres_url.replace("/postgres", "/nothing"), target)
    with pytest.raises(DatabaseUnavailableError, match="could not be copied"):
        await schema.backup(f"sqlite:///{tmp_path}/nothing.db", target)
    with pytest.raises(InvalidError, match="memory"):
        await schema.backup("sqlite://", target)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConflictError, match="pg_dump is not installed"):
        await schema.backup(postgres_url, target)
    assert list(tmp_path.iterdir()) == []
