"""Backup and retention."""

from __future__ import annotations

import dataclasses
import datetime as dt
import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from orchestrator.core.model.entities import Fleet
from orchestrator.core.model.states import AttemptState, RunState, WorkerState
from orchestrator.database import maintenance, retention, schema
from orchestrator.database.engine import Database
from orchestrator.database.port import Batch
from orchestrator.database.retention import Removed
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
    checkpoint,
    columns,
    entry,
    lead,
    run,
    samples,
    shard,
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
                entry("A1", at=NOW - DAY, actor="operator:mia"),
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


async def prune(url: str, until: dt.datetime, now: dt.datetime, **more: Any) -> Removed:
    database = Database(url)
    try:
        return await retention.prune(database, until=until, now=now, **more)
    finally:
        await database.close()


async def test_retention_removes_what_is_old_of_runs_that_ended(database_url: str) -> None:
    await fill(database_url)
    soon = NOW + dt.timedelta(minutes=1)
    assert await prune(database_url, NOW, soon) == Removed()  # it ended at, not before
    expected = Removed(runs=1, journal=3, samples=2)  # one of them of no run
    assert await prune(database_url, soon, soon, dry_run=True) == expected

    assert await prune(database_url, soon, soon) == expected
    assert await prune(database_url, soon, soon) == Removed()  # nothing is left of it
    store = await SqlStore.open(database_url)
    try:
        assert [each.id for each in await store.journal()] == ["A1", "E3", "E5"]
        assert await store.sample_total(RUN) == 0
        assert await store.sample_tail(RUN) == []
        assert (await store.run(RUN)).state is RunState.SUCCEEDED
        last = (await store.journal())[-1].position
        await store.commit(Batch(journal=[entry("E6")]), epoch=1)
        assert (await store.journal())[-1].position > last
    finally:
        await store.close()


async def test_a_database_above_its_size_loses_the_oldest_history_first(
    sqlite_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "ROWS", 1)  # each row in a transaction of its own
    await fill(sqlite_database)
    later = NOW + 3 * DAY
    assert await prune(sqlite_database, NOW, later, max_bytes=2**40) == Removed()
    assert (await prune(sqlite_database, NOW, later, max_bytes=1)).runs == 1
    assert await prune(sqlite_database, NOW, NOW + DAY / 2, max_bytes=1) == Removed()


async def test_shards_of_deleted_checkpoints_go_also_of_a_live_run(database_url: str) -> None:
    store = await SqlStore.open(database_url)
    try:
        epoch = await begin(store)
        for step, deleted in ((10, NOW), (20, NOW + 3 * DAY), (30, None)):
            whole = checkpoint(step, world_size=2, deleted_at=deleted)
            both = [shard(0, whole), shard(1, whole)]
            await store.commit(Batch(entities=[whole], shards=both), epoch=epoch)
        removed = await prune(database_url, NOW + 2 * DAY, NOW + 3 * DAY)
        assert removed == Removed(shards=2)
        confirmed = checkpoint(10, world_size=2, deleted_at=NOW, reason="its deletion is confirmed")
        await store.commit(Batch(entities=[confirmed]), epoch=epoch)
        database = Database(database_url)
        async with database.reading() as connection:
            left = await connection.execute(text("SELECT DISTINCT checkpoint FROM shards"))
            assert {checkpoint(20).id, checkpoint(30).id} == set(left.scalars())
        await database.close()
    finally:
        await store.close()


async def test_a_run_with_a_worker_left_keeps_its_history(database_url: str) -> None:
    """Its worker cannot be confirmed dead, and is found by the files of the run."""
    await fill(database_url)
    store, database = await SqlStore.open(database_url), Database(database_url)
    try:
        await store.commit(Batch(entities=[worker("w9", state=WorkerState.LOST)]), epoch=1)
        later = NOW + 2 * DAY
        assert await retention.ended_runs(database, until=later) == []
        assert (await prune(database_url, later, later, max_bytes=1)).runs == 0
        assert await store.sample_total(RUN) == 600
        await store.commit(Batch(entities=[worker("w9", state=WorkerState.ENDED)]), epoch=1)
        assert await retention.ended_runs(database, until=later) == [RUN]
        assert (await prune(database_url, later, later)).runs == 1
    finally:
        await database.close()
        await store.close()


async def test_positions_are_not_given_again(database_url: str) -> None:
    await fill(database_url)
    store = await SqlStore.open(database_url)
    try:
        last = (await store.journal())[-1].position
        await prune(database_url, NOW + 2 * DAY, NOW + 2 * DAY)
        await store.commit(Batch(journal=[entry("E6")]), epoch=1)
        assert (await store.journal())[-1].position > last
    finally:
        await store.close()


async def test_retention_does_not_open_the_journal_to_others(database_url: str) -> None:
    await fill(database_url)
    await prune(database_url, NOW, NOW)
    database = Database(database_url)
    try:
        with pytest.raises(InvariantError, match="only the retention command"):
            async with database.writing() as connection:
                await connection.execute(text("DELETE FROM journal WHERE id = 'E2'"))
    finally:
        await database.close()


async def test_retention_does_not_reach_into_the_future(sqlite_database: str) -> None:
    with pytest.raises(InvalidError, match="future"):
        await prune(sqlite_database, NOW + DAY, NOW)


async def test_large_payloads_are_compressed_and_read_back(database_url: str) -> None:
    hashes = [{"rank": rank, "hash": f"{rank:064x}"} for rank in range(1000)]
    store = await SqlStore.open(database_url)
    try:
        epoch = await begin(store)
        entries = [entry("L", payload={"shards": hashes}), entry("S", payload={"step": 1})]
        await store.commit(Batch(journal=entries), epoch=epoch)
        back = {each.id: each.payload for each in await store.journal()}
        assert back["L"] == {"shards": hashes}
        assert back["S"] == {"step": 1}
    finally:
        await store.close()
    database = Database(database_url)
    try:
        async with database.reading() as connection:
            rows = await connection.execute(text("SELECT id, packed FROM journal"))
            packed = {row.id: row.packed for row in rows}
    finally:
        await database.close()
    assert packed["S"] is None
    assert len(packed["L"]) < 0.2 * len(str(hashes))


async def test_a_backup_is_restored_and_what_was_there_is_kept(
    sqlite_database: str, tmp_path: Path
) -> None:
    store = await SqlStore.open(sqlite_database)
    try:
        epoch = await begin(store)
        await store.commit(Batch(journal=[entry("E1")]), epoch=epoch)
        await maintenance.backup(sqlite_database, tmp_path / "copy.db")
        await store.commit(Batch(journal=[entry("E2")]), epoch=epoch)
    finally:
        await store.close()
    kept = await maintenance.restore(sqlite_database, tmp_path / "copy.db", now=NOW)
    assert kept is not None
    for file, there in ((sqlite_database, ["E1"]), (f"sqlite:///{kept}", ["E1", "E2"])):
        opened = await SqlStore.open(file)
        try:
            assert [each.id for each in await opened.journal()] == there
        finally:
            await opened.close()


async def test_a_restore_is_noted_and_changes_nothing_else(database_url: str) -> None:
    store = await SqlStore.open(database_url)
    try:
        epoch = await lead(store)
        for fleet in (None, Fleet(hold="a look", spares=2)):
            if fleet is not None:
                await store.commit(Batch(entities=[fleet]), epoch=epoch)
            await maintenance.note_restored(database_url, NOW)
            expected = dataclasses.replace(fleet or Fleet(), restored_at=NOW)
            assert (await store.load()).fleet == expected
    finally:
        await store.close()


async def test_a_restore_cut_short_leaves_the_database_that_was_there(
    sqlite_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(sqlite_database)
    await maintenance.backup(sqlite_database, tmp_path / "copy.db")

    def power_cut(_self: Path, _target: Path) -> Path:
        raise OSError("the last step")

    monkeypatch.setattr(Path, "replace", power_cut)
    with pytest.raises(DatabaseUnavailableError, match="the last step"):
        await maintenance.restore(sqlite_database, tmp_path / "copy.db", now=NOW)
    store = await SqlStore.open(sqlite_database)
    try:
        assert len(await store.journal()) == 6
    finally:
        await store.close()


class _KilledError(BaseException):
    """The process ends here."""


def _kill_at(monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """End the process at a change of a file's name."""
    calls = itertools.count()

    def of(change: Callable[..., None]) -> Callable[..., None]:
        def killed(*arguments: Any, **more: Any) -> None:
            if next(calls) == call:
                raise _KilledError
            change(*arguments, **more)

        return killed

    for name in ("rename", "replace", "link"):
        monkeypatch.setattr(os, name, of(getattr(os, name)))


async def test_a_restore_that_is_killed_leaves_a_whole_database(
    sqlite_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, copy = tmp_path / "killed", tmp_path / "copy.db"
    home.mkdir()
    store = await SqlStore.open(sqlite_database)
    try:
        epoch = await begin(store)
        await store.commit(Batch(journal=[entry("E1")]), epoch=epoch)
        await maintenance.backup(sqlite_database, copy)
        await store.commit(Batch(journal=[entry("E2")]), epoch=epoch)
        source = Path(sqlite_database.removeprefix("sqlite:///"))
        for file in source.parent.glob(source.name + "*"):  # as a killed server leaves them
            shutil.copy(file, home)
    finally:
        await store.close()
    target = home / source.name
    assert target.with_name(target.name + "-wal").stat().st_size > 0
    for call in itertools.count():
        with monkeypatch.context() as patched:
            _kill_at(patched, call)
            try:
                await maintenance.restore(
                    f"sqlite:///{target}", copy, now=NOW + dt.timedelta(seconds=call)
                )
            except _KilledError:
                expected = ["E1", "E2"]
            else:
                expected = ["E1"]
        opened = await SqlStore.open(f"sqlite:///{target}")
        assert [each.id for each in await opened.journal()] == expected
        await opened.close()
        if expected == ["E1"]:
            break
    assert call > 0


async def test_a_restore_replaces_a_damaged_database(sqlite_database: str, tmp_path: Path) -> None:
    await fill(sqlite_database)
    await maintenance.backup(sqlite_database, tmp_path / "copy.db")
    file = Path(sqlite_database.removeprefix("sqlite:///"))
    damage = b"no database at all" * 1000
    file.write_bytes(damage)
    kept = await maintenance.restore(sqlite_database, tmp_path / "copy.db", now=NOW)
    assert kept is not None
    assert kept.read_bytes() == damage
    store = await SqlStore.open(sqlite_database)
    try:
        assert len(await store.journal()) == 6
    finally:
        await store.close()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such file"),
        (b"not a database, but a long enough text to be taken for one", "not a backup"),
        (b"", "not one of babysit"),
    ],
)
async def test_what_is_no_backup_changes_nothing(
    sqlite_database: str, tmp_path: Path, content: bytes | None, said: str
) -> None:
    await fill(sqlite_database)
    file = tmp_path / "other.db"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InvalidError, match=said):
        await maintenance.restore(sqlite_database, file, now=NOW)
    store = await SqlStore.open(sqlite_database)
    try:
        assert len(await store.journal()) > 1
    finally:
        await store.close()


async def test_a_backup_of_sqlite_is_a_database(sqlite_database: str, tmp_path: Path) -> None:
    store = await SqlStore.open(sqlite_database)
    try:
        epoch = await begin(store)
        await store.commit(Batch(journal=[entry("E1")]), epoch=epoch)
        copy = tmp_path / "copy.db"
        await maintenance.backup(sqlite_database, copy)  # while it is open
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
        await maintenance.backup(sqlite_database, copy)
    assert sorted(each.name for each in tmp_path.glob("copy*")) == ["copy.db"]


async def test_a_backup_of_postgresql_can_be_restored(
    postgres_database: Callable[[], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    programs = Path(find_binary("pg_dump")).parent
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    url, target = postgres_database(), postgres_database()
    await fill(url)
    dump = tmp_path / "dump"
    await maintenance.backup(url, dump)
    await fill(target)  # something is there already, and a server leads
    with pytest.raises(ConflictError, match="leads"):
        await maintenance.restore(target, dump, now=NOW)
    later = NOW + DAY
    assert await maintenance.restore(target, dump, now=later) is None
    restored = await SqlStore.open(target)
    try:
        assert (await restored.run(RUN)).state is RunState.SUCCEEDED
        assert len(await restored.journal()) == 6
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
        await maintenance.backup(postgres_url.replace("/postgres", "/nothing"), target)
    with pytest.raises(DatabaseUnavailableError, match="could not be copied"):
        await maintenance.backup(f"sqlite:///{tmp_path}/nothing.db", target)
    with pytest.raises(InvalidError, match="memory"):
        await maintenance.backup("sqlite://", target)
    for elsewhere in (tmp_path / "missing" / "dump", Path("/dev/null/dump")):
        with pytest.raises(InvalidError, match=f"{elsewhere} cannot be written"):
            await maintenance.backup(postgres_url, elsewhere)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConflictError, match="pg_dump is not installed"):
        await maintenance.backup(postgres_url, target)
    assert list(tmp_path.iterdir()) == []
