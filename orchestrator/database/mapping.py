"""The only mapping between entities and rows, derived from the entity classes themselves."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Generic, TypeVar, cast

from pydantic import TypeAdapter
from sqlalchemy import Insert, Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.core.model.entities import (
    Attempt,
    Checkpoint,
    Fleet,
    Incident,
    Node,
    Queue,
    Run,
    Worker,
)
from orchestrator.database import models

E = TypeVar("E")


def table_of(model: type[models.Base]) -> Table:
    """The table of a model."""
    return cast("Table", model.__table__)


@dataclasses.dataclass(frozen=True)
class Mapped(Generic[E]):
    """The storage of one entity class."""

    entity: type[E]
    table: Table
    adapter: TypeAdapter[E]
    columns: tuple[str, ...]
    """Explicit columns: attributes of the entity with equal names."""

    def row(self, entity: E) -> dict[str, Any]:
        """The entity as a row, with all of it as JSON in `body`."""
        values = {name: plain(getattr(entity, name)) for name in self.columns}
        if values.get("run") == "":  # an incident about nodes
            values["run"] = None
        return {**values, "body": self.adapter.dump_python(entity)}  # JSON: see engine.to_text

    def entity_of(self, body: Mapping[str, Any]) -> E:
        """The entity from the column `body`; fields unknown to this version are ignored."""
        return self.adapter.validate_python(body, extra="ignore")


def _mapped(entity: type[E], model: type[models.Base]) -> Mapped[E]:
    table = table_of(model)
    fields = {field.name for field in dataclasses.fields(entity)}  # type: ignore[arg-type]
    columns = tuple(column.name for column in table.columns if column.name in fields)
    return Mapped(entity, table, TypeAdapter(entity), columns)


RUNS = _mapped(Run, models.RunRow)
ATTEMPTS = _mapped(Attempt, models.AttemptRow)
WORKERS = _mapped(Worker, models.WorkerRow)
NODES = _mapped(Node, models.NodeRow)
CHECKPOINTS = _mapped(Checkpoint, models.CheckpointRow)
INCIDENTS = _mapped(Incident, models.IncidentRow)
QUEUES = _mapped(Queue, models.QueueRow)
FLEET = _mapped(Fleet, models.FleetRow)

MAPPED: tuple[Mapped[Any], ...] = (
    FLEET,
    QUEUES,
    NODES,
    RUNS,
    ATTEMPTS,
    WORKERS,
    CHECKPOINTS,
    INCIDENTS,
)
"""All mappings in the order of their foreign keys."""


def plain(value: Any) -> Any:
    """A value that both drivers accept: psycopg would encode an enum in its own way."""
    return value.value if isinstance(value, StrEnum) else value


def printable(text: str) -> str:
    """Text for a TEXT column: PostgreSQL rejects NUL, which log lines may contain."""
    return text.replace("\x00", "\N{REPLACEMENT CHARACTER}")


async def upsert(
    connection: AsyncConnection,
    table: Table,
    rows: Sequence[Mapping[str, Any]],
    *,
    keys: Iterable[str] = (),
    overwrite: bool = True,
) -> None:
    """Insert rows; on an existing key, overwrite the row or keep it.

    Args:
        connection: An open transaction.
        table: The table.
        rows: Rows with equal columns.
        keys: Columns of the key; empty: the primary key.
        overwrite: False: keep existing rows.
    """
    if not rows:
        return
    index = tuple(keys) or tuple(column.name for column in table.primary_key)
    changed = tuple(name for name in rows[0] if name not in index) if overwrite else ()
    statement = _upsert(connection.dialect.name, table, index, changed)
    await connection.execute(statement, [dict(row) for row in rows])


@functools.lru_cache(maxsize=256)
def _upsert(dialect: str, table: Table, index: tuple[str, ...], changed: tuple[str, ...]) -> Insert:
    """Build and cache the statement: building takes longer than executing it."""
    insert = sqlite.insert if dialect == "sqlite" else postgresql.insert
    statement = insert(table).inline()  # no value is wanted back
    if not changed:
        return statement.on_conflict_do_nothing(index_elements=index)
    changes = {name: statement.excluded[name] for name in changed}
    return statement.on_conflict_do_update(index_elements=index, set_=changes)
