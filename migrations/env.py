"""How Alembic reaches the database.

`babysit db` hands over an open connection, and the transaction is the caller's. The `alembic`
command (for developers: `alembic revision --autogenerate`) has none, and takes the database from
BABYSIT_DATABASE_URL.
"""

from __future__ import annotations

import asyncio
import os

from alembic import context
from sqlalchemy import Connection

from orchestrator.database.engine import Database
from orchestrator.database.guards import GUARDS
from orchestrator.database.models import Base

__all__ = ["GUARDS"]  # imported so that the metadata is whole


def migrate(connection: Connection) -> None:
    """Run what Alembic was asked for."""
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        compare_type=True,
        render_as_batch=connection.dialect.name == "sqlite",
        transactional_ddl=True,  # SQLite's too, since begin is ours
    )
    with context.begin_transaction():
        context.run_migrations()


async def connect_and_migrate() -> None:
    """For the `alembic` command."""
    url = os.environ.get("BABYSIT_DATABASE_URL")
    if not url:
        raise SystemExit("set BABYSIT_DATABASE_URL to the database that alembic is to work on")
    database = Database(url)
    try:
        async with database.writing() as connection:
            await connection.run_sync(migrate)
    finally:
        await database.close()


given = context.config.attributes.get("connection")
if given is None:
    asyncio.run(connect_and_migrate())
else:
    migrate(given)
