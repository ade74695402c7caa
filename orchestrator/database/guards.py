"""Invariants that no constraint can express, as triggers on SQLite and PostgreSQL.

A guard rejects a row if its condition over `OLD` and `NEW` is true. Migrations repeat the triggers
literally as of their revision; a test proves that both give the same schema.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from enum import StrEnum

from sqlalchemy import DDL, event

from orchestrator.core.model.states import (
    ATTEMPT_MOVES,
    INCIDENT_MOVES,
    RUN_MOVES,
    TRUST_MOVES,
    WORKER_MOVES,
    Trust,
)
from orchestrator.database.models import Base
from orchestrator.database.server_models import AuditRow


@dataclasses.dataclass(frozen=True)
class Guard:
    """One trigger that rejects rows."""

    name: str
    table: str
    moment: str
    """`BEFORE INSERT`, `BEFORE UPDATE` or `BEFORE DELETE`."""
    condition: str
    """SQL over OLD and NEW; a row for which it is true is rejected."""
    message: str

    def create(self, dialect: str) -> list[str]:
        """The statements that create the trigger."""
        if dialect == "sqlite":
            action = f"WHEN {self.condition} BEGIN SELECT RAISE(ABORT, '{self.message}'); END"
            return [f"{self._head} {action}"]
        body = (
            f"BEGIN IF {self.condition} THEN RAISE EXCEPTION '{self.message}' USING ERRCODE = "
            "'integrity_constraint_violation'; END IF; RETURN COALESCE(NEW, OLD); END"
        )
        return [
            f"CREATE FUNCTION {self.name}() RETURNS trigger LANGUAGE plpgsql AS $$ {body} $$",
            f"{self._head} EXECUTE FUNCTION {self.name}()",
        ]

    @property
    def _head(self) -> str:
        return f"CREATE TRIGGER {self.name} {self.moment} ON {self.table} FOR EACH ROW"

    def drop(self, dialect: str) -> list[str]:
        """The statements that remove the parts which outlive the table."""
        return [] if dialect == "sqlite" else [f"DROP FUNCTION IF EXISTS {self.name}() CASCADE"]


def _words(states: Iterable[StrEnum]) -> str:
    return "({})".format(", ".join(f"'{state.value}'" for state in states))


def _final(table: str, column: str, states: Iterable[StrEnum]) -> Guard:
    return Guard(
        f"{table}_{column}_final",
        table,
        "BEFORE UPDATE",
        f"OLD.{column} IN {_words(states)} AND NEW.{column} <> OLD.{column}",
        f"{table}: a terminal {column} is final",
    )


_SHORT_OF_SHARDS = (
    "NEW.deleted_at IS NULL "  # noqa: S608 (constants); retention removes shards of a deleted one
    f"AND NEW.trust IN {_words((Trust.COMPLETE, Trust.VERIFIED, Trust.GOOD))} "
    "AND (SELECT count(*) FROM shards s "
    "WHERE s.checkpoint = NEW.id AND s.rank < NEW.world_size) <> NEW.world_size"
)
_SHORT_MESSAGE = "checkpoints: complete only when every shard of its world is recorded"

GUARDS = (
    _final("runs", "state", (s for s, moves in RUN_MOVES.items() if not moves)),
    _final("attempts", "state", (s for s, moves in ATTEMPT_MOVES.items() if not moves)),
    _final("workers", "state", (s for s, moves in WORKER_MOVES.items() if not moves)),
    _final("incidents", "state", (s for s, moves in INCIDENT_MOVES.items() if not moves)),
    _final("checkpoints", "trust", (s for s, moves in TRUST_MOVES.items() if not moves)),
    Guard(
        "runs_attempt_grows",
        "runs",
        "BEFORE UPDATE",
        "NEW.attempt < OLD.attempt",
        "runs: attempt numbers only grow",
    ),
    Guard(
        "attempts_number_grows",  # an upsert of an old attempt fires it too, and must pass
        "attempts",
        "BEFORE INSERT",
        "EXISTS (SELECT 1 FROM attempts a WHERE a.run = NEW.run AND a.number > NEW.number) "
        "AND NOT EXISTS (SELECT 1 FROM attempts a WHERE a.run = NEW.run AND a.number = NEW.number)",
        "attempts: numbers only grow",
    ),
    Guard(
        "checkpoints_insert_complete",
        "checkpoints",
        "BEFORE INSERT",
        _SHORT_OF_SHARDS,
        _SHORT_MESSAGE,
    ),
    Guard(
        "checkpoints_update_complete",
        "checkpoints",
        "BEFORE UPDATE",
        _SHORT_OF_SHARDS,
        _SHORT_MESSAGE,
    ),
    Guard(
        "journal_never_updated",
        "journal",
        "BEFORE UPDATE",
        "TRUE",
        "journal: nothing in it is ever updated",
    ),
    Guard(
        "journal_kept",
        "journal",
        "BEFORE DELETE",
        "NOT EXISTS (SELECT 1 FROM retention r WHERE r.until > OLD.at)",
        "journal: only the retention command deletes from it",
    ),
    Guard(
        "audit_never_updated",
        AuditRow.__tablename__,
        "BEFORE UPDATE",
        "TRUE",
        "audit: nothing in it is ever updated",
    ),
    Guard(
        "audit_kept",
        AuditRow.__tablename__,
        "BEFORE DELETE",
        "NOT EXISTS (SELECT 1 FROM audit_retention r WHERE r.until > OLD.at)",
        "audit: only retention deletes from it",
    ),
    Guard(
        "leader_epoch_grows",
        "leader",
        "BEFORE UPDATE",
        "NEW.epoch < OLD.epoch",
        "leader: the epoch only grows",
    ),
)


def _attach(moment: str, dialect: str, statement: str) -> None:
    ddl = DDL(statement).execute_if(dialect=dialect)  # type: ignore[no-untyped-call]
    event.listen(Base.metadata, moment, ddl)


for _dialect in ("sqlite", "postgresql"):
    for _guard in GUARDS:
        for _statement in _guard.create(_dialect):
            _attach("after_create", _dialect, _statement)
        for _statement in _guard.drop(_dialect):
            _attach("after_drop", _dialect, _statement)
