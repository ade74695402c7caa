"""All migrations together give the schema of the models, on both databases."""

from __future__ import annotations

import asyncio
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import text

from orchestrator.database import guards, schema
from orchestrator.database.audit import AuditEntry, AuditFilter
from orchestrator.database.credentials import Session
from orchestrator.database.engine import Database
from orchestrator.database.models import Base
from orchestrator.database.port import Batch
from orchestrator.database.sample_rows import UNPACKED
from orchestrator.database.samples import CHUNK
from orchestrator.database.sql_store import SqlStore
from orchestrator.errors import SchemaError
from tests.database_data import DAY, NOW, RUN, begin, columns, entry, samples
from tests.postgres import find_binary

ROOT = Path(__file__).parents[2]
SCRIPT = ScriptDirectory(str(ROOT / "migrations"))
REVISIONS = [each.revision for each in reversed(list(SCRIPT.walk_revisions()))]


async def make_fresh(url: str) -> None:
    """The schema as the models have it, without migrations."""
    database = Database(url)
    async with database.writing() as connection:
        await connection.run_sync(Base.metadata.create_all)
    await database.close()


def dump(url: str) -> list[str]:
    """Everything that makes up a schema, in statements: tables, constraints, indexes, triggers."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
            rows = connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")
            # A table that a migration made anew has its name in quotes.
            bare = [sql.replace('"incidents"', "incidents") for (sql,) in rows]
            statements = [_in_order(re.sub(r"\s+", " ", sql)) for sql in bare]
    else:
        command = [find_binary("pg_dump"), "--schema-only", "--no-owner", f"--dbname={url}"]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        output = re.sub(r"^(--.*|\\.*)\n", "", output, flags=re.MULTILINE)
        statements = [re.sub(r"\s+", " ", each).strip() for each in output.split(";\n\n")]
    return sorted(each for each in statements if "alembic_version" not in each)


def _in_order(statement: str) -> str:
    """SQLite keeps the text of CREATE TABLE; the order of its constraints means nothing.

    Columns that were added later stand behind the constraints there.
    """
    if not statement.startswith("CREATE TABLE"):
        return statement
    head, body = statement.removesuffix(")").split("(", 1)
    parts = [part.strip() for part in re.split(r",(?![^(]*\))", body)]
    constraints = sorted(part for part in parts if part.startswith("CONSTRAINT"))
    columns = [part for part in parts if not part.startswith("CONSTRAINT")]
    return f"{head}({', '.join([*columns, *constraints])})"


async def test_migrations_give_the_schema_of_the_models(empty_urls: Callable[[], str]) -> None:
    migrated, fresh = empty_urls(), empty_urls()
    await schema.upgrade(migrated)
    await make_fresh(fresh)
    assert await schema.check(migrated) == []
    assert dump(migrated) == dump(fresh)
    whole = "\n".join(dump(migrated))
    for guard in guards.GUARDS:
        assert f"TRIGGER {guard.name}" in whole
    for table in Base.metadata.tables:
        assert re.search(rf"CREATE TABLE (public\.)?{table} ", whole), table


async def test_every_revision_goes_up_down_and_up_again(empty_urls: Callable[[], str]) -> None:
    url = empty_urls()
    for before, revision in zip(["base", *REVISIONS], REVISIONS, strict=False):
        await schema.upgrade(url, revision)
        there = dump(url)
        await schema.downgrade(url, before)
        await schema.upgrade(url, revision)
        assert dump(url) == there
    await schema.downgrade(url, "base")
    left = [each for each in dump(url) if re.search(r"CREATE (TABLE|TRIGGER|FUNCTION|INDEX)", each)]
    assert left in ([], ["CREATE TABLE sqlite_sequence(name, seq)"])
    await schema.upgrade(url)
    assert await schema.check(url) == []


async def test_what_was_stored_before_a_column_came_is_read_as_before(database_url: str) -> None:
    store = await SqlStore.open(database_url)
    epoch = await begin(store)
    last = (UNPACKED + 1) * CHUNK
    await store.commit(Batch(samples=[samples(columns(1, last))]), epoch=epoch)
    await store.close()
    await schema.downgrade(database_url, "0005")
    await schema.upgrade(database_url)
    store = await SqlStore.open(database_url)
    try:
        curve = await store.samples(RUN, points=20)
        assert sum(curve.missing) == 0
        assert curve.step[-1] == last
    finally:
        await store.close()


async def test_what_is_stored_survives_each_revision_up_and_down(
    empty_urls: Callable[[], str],
) -> None:
    """Tables that an older revision lacks go with their rows; all others keep theirs."""
    url = empty_urls()
    await schema.upgrade(url)
    store = await SqlStore.open(url)
    try:
        await store.commit(Batch(journal=[entry("E1")]), epoch=await begin(store))
        await store.create_token("ann", "admin", NOW)
        kept = Session(
            hash="h", kind="token", opener="t", name="ann", role="admin", expires_at=NOW + DAY
        )
        await store.keep_session(kept, NOW)
        await store.add_audit(
            AuditEntry(
                id="A1",
                at=NOW,
                actor="ann",
                role="admin",
                via="token",
                action="runs_hold",
                outcome="done",
            )
        )
    finally:
        await store.close()
    for revision in reversed(REVISIONS[:-1]):
        await schema.downgrade(url, revision)
    await schema.upgrade(url)
    assert await schema.check(url) == []
    store = await SqlStore.open(url)
    try:
        assert [each.id for each in await store.journal()] == ["E1"]
        assert [each.name for each in await store.tokens()] == ["ann"]
        assert await store.session("h", NOW) is None
        assert await store.audit(AuditFilter()) == []
    finally:
        await store.close()


async def test_upgrading_again_changes_nothing(database_url: str) -> None:
    there = dump(database_url)
    await schema.upgrade(database_url)
    assert dump(database_url) == there


async def test_two_servers_may_upgrade_at_the_same_time(empty_urls: Callable[[], str]) -> None:
    url = empty_urls()
    await asyncio.gather(*(schema.upgrade(url) for _ in range(3)))
    assert await schema.check(url) == []


DRIFT = {
    "DROP INDEX ix_runs_state": "ix_runs_state",
    "ALTER TABLE queues ADD COLUMN colour TEXT": "colour",
    "DROP TABLE fleet": "fleet",
    "UPDATE alembic_version SET version_num = '0000'": "revision 0000",
    "DROP TRIGGER journal_kept": "journal_kept",
}


@pytest.mark.parametrize("statement", DRIFT)
async def test_check_names_what_differs(database_url: str, statement: str) -> None:
    if "TRIGGER" in statement and database_url.startswith("postgresql"):
        sql = f"{statement} ON journal"
    else:
        sql = statement
    database = Database(database_url)
    async with database.writing() as connection:
        await connection.execute(text(sql))
    await database.close()
    found = await schema.check(database_url)
    assert len(found) == 1
    assert DRIFT[statement] in found[0]


async def test_check_names_a_guard_that_was_weakened(sqlite_database: str) -> None:
    database = Database(sqlite_database)
    async with database.writing() as connection:
        await connection.execute(text("DROP TRIGGER journal_kept"))
        await connection.execute(
            text(
                "CREATE TRIGGER journal_kept BEFORE DELETE ON journal FOR EACH ROW WHEN FALSE "
                "BEGIN SELECT RAISE(ABORT, 'no'); END"
            )
        )
    await database.close()
    assert await schema.check(sqlite_database) == ["trigger journal_kept on journal differs"]


async def test_an_empty_database_lacks_everything(empty_urls: Callable[[], str]) -> None:
    found = await schema.check(empty_urls())
    assert found[0] == f"revision none; this version has {REVISIONS[-1]}"
    assert len(found) > len(Base.metadata.tables)


def test_migrations_run_from_an_installed_package(tmp_path: Path) -> None:
    """From a wheel's folders: no repository around, no alembic.ini, another directory."""
    for package in ("babysit", "monitors", "jobs", "orchestrator", "migrations"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, tmp_path / "site" / package, ignore=ignore)
    code = (
        "import asyncio; from orchestrator.database import schema; "
        "asyncio.run(schema.upgrade('sqlite:///b.db')); "
        "print(asyncio.run(schema.check('sqlite:///b.db')), schema.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[] ")
    assert str(tmp_path) in done.stdout


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        ("ALTER TABLE runs ADD COLUMN colour TEXT", ""),
        ("ALTER TABLE runs ADD COLUMN colour TEXT NOT NULL DEFAULT 'red'", ""),
        ("CREATE TABLE colours (id INTEGER PRIMARY KEY, name TEXT NOT NULL)", ""),
        ("ALTER TABLE runs RENAME COLUMN submitted_at TO given_at", "no column runs.submitted_at"),
        ("ALTER TABLE findings RENAME TO discoveries", "no table findings"),
    ],
)
async def test_a_server_goes_back_a_version_if_it_can_use_the_newer_schema(
    database_url: str, change: str, refused: str
) -> None:
    """Migrations expand before they contract: the version before still finds what it needs."""
    database = Database(database_url)
    try:
        async with database.writing() as connection:
            await connection.execute(text(change))
            await connection.execute(text("UPDATE alembic_version SET version_num = '9999_new'"))
    finally:
        await database.close()
    if refused:
        with pytest.raises(SchemaError, match=refused):
            await schema.upgrade(database_url)
        return
    await schema.upgrade(database_url)
    store = await SqlStore.open(database_url)
    try:
        epoch = await begin(store)
        await store.commit(Batch(journal=[entry("E1")]), epoch=epoch)
        assert len(await store.runs()) == len(await store.journal()) == 1
    finally:
        await store.close()
