"""The schema and its migrations: `babysit db upgrade | check`.

Migrations follow expand and contract: a database may be newer than the code that uses it, but never
older.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text

import migrations
from orchestrator.database.driver_errors import describe, our_errors
from orchestrator.database.engine import Database, in_memory
from orchestrator.database.guards import GUARDS
from orchestrator.database.models import Base
from orchestrator.database.server_models import ServerRow
from orchestrator.errors import SchemaError

assert ServerRow.metadata is Base.metadata  # noqa: S101 (the import makes the table part of it)
_UPGRADE_LOCK = 0x62616279
"""Key of the advisory lock that serialises upgrades of one PostgreSQL database."""


async def upgrade(url: str, revision: str = "head") -> None:
    """Create the schema, or migrate it to `revision`.

    Concurrent calls are safe: the second waits and finds nothing to do. The schema of a newer
    version is left as it is, if this version can use it: so a server can go back to the version
    before, and servers of one database can be upgraded one after the other.

    Raises:
        DatabaseUnavailableError: The database does not answer.
        InvalidError: The kind of database is not supported.
        SchemaError: The schema is of a version that this one does not know, and cannot use.
    """
    await _migrate(url, _upgrade, revision)


def _upgrade(config: Config, revision: str) -> None:
    connection: Connection = config.attributes["connection"]
    current = _revision(connection)
    if current is None or current in _known_revisions():
        command.upgrade(config, revision)
    elif lacks := _unusable(connection):
        raise SchemaError(
            f"the database has schema {current} of another version, which this version cannot use"
            f" ({'; '.join(lacks)}): run the newer version, or restore a backup made before"
        )


def _unusable(connection: Connection) -> list[str]:
    """The faults that keep this version from using the schema as it is; empty: none."""
    found: list[str] = []
    inspector = inspect(connection)
    tables = set(inspector.get_table_names())
    for table in Base.metadata.sorted_tables:
        if table.name not in tables:
            found.append(f"no table {table.name}")
            continue
        columns = {column["name"]: column for column in inspector.get_columns(table.name)}
        ours = {column.name for column in table.columns}
        found += [f"no column {table.name}.{name}" for name in sorted(ours - columns.keys())]
        found += [
            f"column {table.name}.{name} needs a value"
            for name in sorted(columns.keys() - ours)
            if not columns[name]["nullable"] and columns[name]["default"] is None
        ]
    return found


def _known_revisions() -> set[str]:
    script = ScriptDirectory.from_config(_config())
    return {revision.revision for revision in script.walk_revisions()}


async def downgrade(url: str, revision: str) -> None:
    """Migrate back to a revision; `base` removes all tables with their data.

    Raises:
        DatabaseUnavailableError: The database does not answer.
    """
    await _migrate(url, command.downgrade, revision)


async def check(url: str) -> list[str]:
    """The differences between the schema and this version, one sentence each; empty: none.

    Raises:
        DatabaseUnavailableError: The database does not answer.
    """
    database = Database(url)
    try:
        async with database.reading() as connection:
            return await connection.run_sync(_differences)
    finally:
        await database.close()


async def require(database: Database) -> None:
    """Create the schema of an in-memory database; check that of any other.

    Raises:
        SchemaError: The schema is missing or too old; the message names `babysit db upgrade`.
        DatabaseUnavailableError: The database does not answer.
    """
    if in_memory(database.url):
        async with database.writing() as connection:
            await connection.run_sync(Base.metadata.create_all)
        return
    async with database.reading() as connection:
        current = await connection.run_sync(_revision)
    head = ScriptDirectory.from_config(_config()).get_current_head()
    if current is None or (current in _known_revisions() and current != head):
        raise SchemaError(
            f"{describe(database.url)} has schema {current or 'none'}, this version needs {head}: "
            "run `babysit db upgrade`"
        )


async def _migrate(url: str, step: Any, revision: str) -> None:
    database = Database(url)

    def run(connection: Connection) -> None:
        config = _config()
        config.attributes["connection"] = connection
        step(config, revision)

    try:
        with our_errors(database.url):
            async with database.writing() as connection:
                if not database.sqlite:  # SQLite serialises writers itself
                    await connection.execute(
                        text("SELECT pg_advisory_xact_lock(:key)"), {"key": _UPGRADE_LOCK}
                    )
                await connection.run_sync(run)
    finally:
        await database.close()


def _config() -> Config:
    config = Config()
    directory = Path(str(migrations.__file__)).parent
    config.set_main_option("script_location", str(directory).replace("%", "%%"))
    return config


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _differences(connection: Connection) -> list[str]:
    head = ScriptDirectory.from_config(_config()).get_current_head()
    context = MigrationContext.configure(connection, opts={"compare_type": True})
    found: list[str] = []
    current = context.get_current_revision()
    if current != head:
        found.append(f"revision {current or 'none'}; this version has {head}")
    found += [_sentence(each) for each in compare_metadata(context, Base.metadata)]
    guards = _guards_in(connection)
    for guard in GUARDS:
        if guard.name not in guards:
            found.append(f"trigger {guard.name} on {guard.table} is missing")
        elif _squeezed(guard.condition) not in guards[guard.name]:
            found.append(f"trigger {guard.name} on {guard.table} differs")
    return found


def _sentence(difference: Any) -> str:
    steps = difference if isinstance(difference, list) else [difference]
    return "; ".join(" ".join(str(part) for part in step if part is not None) for step in steps)


def _guards_in(connection: Connection) -> dict[str, str]:
    """Trigger → its text, without white space."""
    if connection.dialect.name == "sqlite":
        query = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"
    else:
        query = (
            "SELECT t.tgname, p.prosrc FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid "
            "WHERE NOT t.tgisinternal"
        )
    return {name: _squeezed(body) for name, body in connection.execute(text(query))}


def _squeezed(sql: str) -> str:
    return re.sub(r"\s+", "", sql)
