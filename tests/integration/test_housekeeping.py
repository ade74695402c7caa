"""Housekeeping of a home: files of old runs, and the log of an embedded server."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli.main import app
from orchestrator.core.model.states import AttemptState, RunState
from orchestrator.database import schema
from orchestrator.database.engine import Database
from orchestrator.database.port import Batch
from orchestrator.database.sql_store import SqlStore
from orchestrator.server import housekeeping
from orchestrator.server.housekeeping import tidy
from orchestrator.settings import Settings
from tests.database_data import DAY, NOW, attempt, begin, entry, run

OLD, NEW, LIVE = (f"01J{name}00000000000000AAAA" for name in ("OLDRUN", "NEWRUN", "LIVERU"))


@pytest.fixture
async def settings(tmp_path: Path) -> Settings:
    """A home with the files of a run that ended 40 days ago, of one 2 days ago, and a live one."""
    made = Settings(home=tmp_path / "home")
    made.home.mkdir(mode=0o700)
    await schema.upgrade(made.database)
    store = await SqlStore.open(made.database)
    epoch = await begin(store)
    for key, ended in ((OLD, NOW - 40 * DAY), (NEW, NOW - 2 * DAY), (LIVE, None)):
        state = RunState.SUCCEEDED if ended else RunState.RUNNING
        over = AttemptState.ENDED if ended else AttemptState.RUNNING
        entities = [
            run(key, key.lower(), attempt=1, state=state, ended_at=ended),
            attempt(run=key, state=over),
        ]
        event = entry(f"E-{key}", run=key, at=NOW - 41 * DAY)
        await store.commit(Batch(entities=entities, journal=[event]), epoch=epoch)
        logs = made.log_directory(key) / "attempt-0001"
        logs.mkdir(parents=True)
        (logs / "rank-00000.log").write_text("x" * 1000)
    await store.close()
    return made


def left(settings: Settings) -> set[str]:
    """Runs whose files are there."""
    return {path.name for path in (settings.home / "runs").iterdir()}


async def tidied(settings: Settings, now: dt.datetime, *, dry_run: bool = False) -> tuple[int, int]:
    """Runs that lost their journal, and those that lost their files."""
    database = Database(settings.database)
    try:
        done = await tidy(settings, database, now, dry_run=dry_run)
    finally:
        await database.close()
    return done.rows.runs, done.directories


async def test_only_what_is_old_and_over_is_removed(settings: Settings) -> None:
    assert await tidied(settings, NOW, dry_run=True) == (1, 1)
    assert left(settings) == {OLD, NEW, LIVE}
    assert await tidied(settings, NOW) == (1, 1)
    assert left(settings) == {NEW, LIVE}
    assert await tidied(settings, NOW) == (0, 0)


async def test_the_oldest_goes_first_where_files_take_too_much(settings: Settings) -> None:
    tight = settings.model_copy(update={"retention_bytes": 1500, "retention_days": 365.0})
    assert (await tidied(tight, NOW))[1] == 1
    assert left(settings) == {NEW, LIVE}
    tighter = tight.model_copy(update={"retention_bytes": 1})
    assert (await tidied(tighter, NOW - DAY * 1.5))[1] == 0  # it ended within the day
    assert (await tidied(tighter, NOW))[1] == 1
    assert left(settings) == {LIVE}


async def test_zero_days_keep_everything(settings: Settings) -> None:
    assert await tidied(settings.model_copy(update={"retention_days": 0}), NOW) == (0, 0)
    assert left(settings) == {OLD, NEW, LIVE}


@contextlib.contextmanager
def errors_in(file: Path) -> Iterator[None]:
    """This process writes its errors to a file, as an embedded server does."""
    before = os.dup(2)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


def test_the_log_of_the_server_is_rotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "LOG_BYTES", 100)
    log = tmp_path / "server.log"
    with errors_in(log):
        os.write(2, b"short\n")
        housekeeping.rotate(log)
        assert log.read_text() == "short\n"
        os.write(2, b"x" * 200 + b"\n")
        housekeeping.rotate(log)
        assert log.read_bytes() == b""
        os.write(2, b"next\n")  # at the new end of the file
    assert log.read_text() == "next\n"
    assert log.with_name("server.log.1").read_text().startswith("short\n")


def test_the_log_of_somebody_else_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "LOG_BYTES", 100)
    other = tmp_path / "server.log"
    other.write_text("x" * 200)
    housekeeping.rotate(other)
    assert other.stat().st_size == 200


def test_prune_and_restore_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BABYSIT_HOME", str(tmp_path / "home"))
    call = CliRunner().invoke
    assert call(app, ["db", "prune"]).exit_code == 4  # there is nothing yet
    assert call(app, ["db", "upgrade"]).exit_code == 0
    dry = call(app, ["db", "prune", "--dry-run"])
    assert (dry.exit_code, "Nothing to remove" in dry.output) == (0, True)
    assert call(app, ["db", "prune", "--older-than", "soon"]).exit_code == 2
    assert call(app, ["db", "backup", str(tmp_path / "copy.db")]).exit_code == 0
    restored = call(app, ["db", "restore", str(tmp_path / "copy.db")])
    assert (restored.exit_code, "before-restore" in restored.output) == (0, True)
    assert call(app, ["db", "restore", str(tmp_path / "none.db")]).exit_code == 2
