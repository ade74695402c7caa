"""The first schema.

Revision: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = depends_on = None

UTC = sa.DateTime(timezone=True)
KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

tables = sa.MetaData(
    naming_convention={"pk": "pk_%(table_name)s", "uq": "uq_%(table_name)s_%(column_0_N_name)s"}
)

sa.Table(
    "fleet",
    tables,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("body", sa.JSON, nullable=False),
    sa.CheckConstraint("id = 'fleet'", name="ck_fleet_one_row"),
)

sa.Table(
    "journal",
    tables,
    sa.Column("position", KEY, primary_key=True),
    sa.Column("id", sa.Text, unique=True, nullable=False),
    sa.Column("at", UTC, nullable=False),
    sa.Column("run", sa.Text),
    sa.Column("attempt", sa.BigInteger),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("cause", sa.Text),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("payload", sa.JSON, nullable=False),
    sa.Column("packed", sa.LargeBinary),
    sa.CheckConstraint("kind IN ('event', 'instruction')", name="ck_journal_kind"),
    sa.Index("ix_journal_run_position", "run", "position"),
    sqlite_autoincrement=True,
)

sa.Table(
    "leader",
    tables,
    sa.Column("id", sa.BigInteger, autoincrement=False, primary_key=True),
    sa.Column("holder", sa.Text, nullable=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("expires_at", UTC, nullable=False),
    sa.Column("address", sa.Text, nullable=False),
    sa.CheckConstraint("id = 1", name="ck_leader_one_row"),
)

sa.Table(
    "nodes",
    tables,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("body", sa.JSON, nullable=False),
    sa.CheckConstraint("state IN ('ready', 'cordoned', 'draining', 'gone')", name="ck_nodes_state"),
)

sa.Table(
    "outbox",
    tables,
    sa.Column("position", KEY, primary_key=True),
    sa.Column("id", sa.Text, unique=True, nullable=False),
    sa.Column("run", sa.Text),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("done", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("body", sa.JSON, nullable=False),
    sa.CheckConstraint("kind <> 'record'", name="ck_outbox_kind"),
    sa.Index(
        "ix_outbox_open",
        "position",
        sqlite_where=sa.text("NOT done"),
        postgresql_where=sa.text("NOT done"),
    ),
    sa.Index("ix_outbox_run", "run"),
    sqlite_autoincrement=True,
)

sa.Table(
    "queues",
    tables,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("body", sa.JSON, nullable=False),
)

sa.Table(
    "retention",
    tables,
    sa.Column("id", KEY, primary_key=True),
    sa.Column("at", UTC, nullable=False),
    sa.Column("until", UTC, nullable=False),
    sqlite_autoincrement=True,
)

sa.Table(
    "runs",
    tables,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("attempt", sa.BigInteger, nullable=False),
    sa.Column("submitted_at", UTC, nullable=False),
    sa.Column("ended_at", UTC),
    sa.Column("body", sa.JSON, nullable=False),
    sa.CheckConstraint(
        (
            "state IN ('queued', 'starting', 'running', 'recovering', 'held', "
            "'succeeded', 'failed', 'cancelled')"
        ),
        name="ck_runs_state",
    ),
    sa.Index("ix_runs_ended_at_id", "ended_at", "id"),
    sa.Index("ix_runs_name_submitted_at", "name", "submitted_at"),
    sa.Index("ix_runs_state", "state"),
    sa.Index("ix_runs_submitted_at", "submitted_at"),
)

sa.Table(
    "secrets",
    tables,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)

sa.Table(
    "tokens",
    tables,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("hash", sa.Text, unique=True, nullable=False),
    sa.Column("created_at", UTC, nullable=False),
    sa.Column("last_used_at", UTC),
    sa.Column("revoked_at", UTC),
    sa.Column("expires_at", UTC),
    sa.Column("scope", sa.JSON, nullable=False),
    sa.CheckConstraint("role IN ('admin', 'operator', 'viewer')", name="ck_tokens_role"),
)

sa.Table(
    "attempts",
    tables,
    sa.Column("run", sa.Text, primary_key=True),
    sa.Column("number", sa.BigInteger, autoincrement=False, primary_key=True),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("started_at", UTC, nullable=False),
    sa.Column("ended_at", UTC),
    sa.Column("body", sa.JSON, nullable=False),
    sa.CheckConstraint("number >= 1", name="ck_attempts_number"),
    sa.CheckConstraint(
        ("state IN ('starting', 'running', 'stopping', 'ended', 'fenced')"),
        name="ck_attempts_state",
    ),
    sa.ForeignKeyConstraint(["run"], ["runs.id"], name="fk_attempts_run"),
    sa.Index(
        "uq_attempts_one_alive",
        "run",
        unique=True,
        sqlite_where=sa.text("state IN ('running', 'starting', 'stopping')"),
        postgresql_where=sa.text("state IN ('running', 'starting', 'stopping')"),
    ),
)

sa.Table(
    "findings",
    tables,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("run", sa.Text, nullable=False),
    sa.Column("attempt", sa.BigInteger, nullable=False),
    sa.Column("at", UTC, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("severity", sa.Text, nullable=False),
    sa.Column("body", sa.JSON, nullable=False),
    sa.CheckConstraint("severity IN ('info', 'warning', 'critical')", name="ck_findings_severity"),
    sa.ForeignKeyConstraint(["run"], ["runs.id"], name="fk_findings_run"),
    sa.Index("ix_findings_run_at", "run", "at"),
)

sa.Table(
    "incidents",
    tables,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("run", sa.Text, nullable=False),
    sa.Column("attempt", sa.BigInteger, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("severity", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("opened_at", UTC, nullable=False),
    sa.Column("resolved_at", UTC),
    sa.Column("body", sa.JSON, nullable=False),
    sa.CheckConstraint("severity IN ('info', 'warning', 'critical')", name="ck_incidents_severity"),
    sa.CheckConstraint("state IN ('open', 'mitigating', 'resolved')", name="ck_incidents_state"),
    sa.ForeignKeyConstraint(["run"], ["runs.id"], name="fk_incidents_run"),
    sa.Index("ix_incidents_run_opened_at", "run", "opened_at"),
)

sa.Table(
    "workers",
    tables,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("run", sa.Text, nullable=False),
    sa.Column("node", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("launched_at", UTC, nullable=False),
    sa.Column("last_sequence", sa.BigInteger, nullable=False, server_default=sa.text("-1")),
    sa.Column("body", sa.JSON, nullable=False),
    sa.CheckConstraint(
        ("state IN ('launching', 'ready', 'lost', 'stopping', 'ended')"), name="ck_workers_state"
    ),
    sa.ForeignKeyConstraint(["run"], ["runs.id"], name="fk_workers_run"),
    sa.Index("ix_workers_run", "run"),
    sa.Index("ix_workers_state", "state"),
)

sa.Table(
    "checkpoints",
    tables,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("run", sa.Text, nullable=False),
    sa.Column("attempt", sa.BigInteger, nullable=False),
    sa.Column("step", sa.BigInteger, nullable=False),
    sa.Column("tier", sa.Text, nullable=False),
    sa.Column("world_size", sa.BigInteger, nullable=False),
    sa.Column("trust", sa.Text, nullable=False),
    sa.Column("created_at", UTC, nullable=False),
    sa.Column("deleted_at", UTC),
    sa.Column("removed_at", UTC),
    sa.Column("body", sa.JSON, nullable=False),
    sa.CheckConstraint("tier IN ('memory', 'directory')", name="ck_checkpoints_tier"),
    sa.CheckConstraint(
        "trust IN ('writing', 'complete', 'verified', 'good', 'bad')", name="ck_checkpoints_trust"
    ),
    sa.CheckConstraint("world_size >= 1", name="ck_checkpoints_world_size"),
    sa.ForeignKeyConstraint(
        ["run", "attempt"], ["attempts.run", "attempts.number"], name="fk_checkpoints_run_attempt"
    ),
    sa.Index("ix_checkpoints_run_step", "run", "step"),
)

sa.Table(
    "samples",
    tables,
    sa.Column("run", sa.Text, primary_key=True),
    sa.Column("rank", sa.BigInteger, autoincrement=False, primary_key=True),
    sa.Column("attempt", sa.BigInteger, autoincrement=False, primary_key=True),
    sa.Column("chunk", sa.BigInteger, autoincrement=False, primary_key=True),
    sa.Column("tail", sa.Boolean, nullable=False),
    sa.Column("first_step", sa.BigInteger, nullable=False),
    sa.Column("last_step", sa.BigInteger, nullable=False),
    sa.Column("count", sa.BigInteger, nullable=False),
    sa.Column("lost", sa.BigInteger, nullable=False),
    sa.Column("loss_last", sa.Double),
    sa.Column("loss_min", sa.Double),
    sa.Column("loss_max", sa.Double),
    sa.Column("grad_norm_last", sa.Double),
    sa.Column("seconds_sum", sa.Double),
    sa.Column("first_time", sa.Double),
    sa.Column("last_time", sa.Double),
    sa.CheckConstraint("count BETWEEN 1 AND 512", name="ck_samples_count"),
    sa.ForeignKeyConstraint(
        ["run", "attempt"], ["attempts.run", "attempts.number"], name="fk_samples_run_attempt"
    ),
    sa.Index(
        "uq_samples_one_tail",
        "run",
        "attempt",
        "rank",
        unique=True,
        sqlite_where=sa.text("tail"),
        postgresql_where=sa.text("tail"),
    ),
)

sa.Table(
    "sample_data",
    tables,
    sa.Column("run", sa.Text, primary_key=True),
    sa.Column("rank", sa.BigInteger, autoincrement=False, primary_key=True),
    sa.Column("attempt", sa.BigInteger, autoincrement=False, primary_key=True),
    sa.Column("chunk", sa.BigInteger, autoincrement=False, primary_key=True),
    sa.Column("data", sa.LargeBinary, nullable=False),
    sa.Column("metrics", sa.LargeBinary, nullable=True),
    sa.ForeignKeyConstraint(
        ["run", "rank", "attempt", "chunk"],
        ["samples.run", "samples.rank", "samples.attempt", "samples.chunk"],
        name="fk_sample_data_run_rank_attempt_chunk",
        ondelete="CASCADE",
    ),
)

sa.Table(
    "shards",
    tables,
    sa.Column("checkpoint", sa.Text, primary_key=True),
    sa.Column("rank", sa.BigInteger, autoincrement=False, primary_key=True),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("body", sa.JSON, nullable=False),
    sa.CheckConstraint("rank >= 0", name="ck_shards_rank"),
    sa.ForeignKeyConstraint(
        ["checkpoint"],
        ["checkpoints.id"],
        name="fk_shards_checkpoint",
        deferrable=True,
        initially="DEFERRED",
    ),
)

FINAL = (  # table, column, its terminal words
    ("runs", "state", "'succeeded', 'failed', 'cancelled'"),
    ("attempts", "state", "'ended', 'fenced'"),
    ("workers", "state", "'ended'"),
    ("incidents", "state", "'resolved'"),
    ("checkpoints", "trust", "'bad'"),
)
NOT_GROWING = (
    "EXISTS (SELECT 1 FROM attempts a WHERE a.run = NEW.run AND a.number > NEW.number) "
    "AND NOT EXISTS (SELECT 1 FROM attempts a WHERE a.run = NEW.run AND a.number = NEW.number)"
)
SHORT_OF_SHARDS = (
    "NEW.deleted_at IS NULL AND NEW.trust IN ('complete', 'verified', 'good') "
    "AND (SELECT count(*) FROM shards s "
    "WHERE s.checkpoint = NEW.id AND s.rank < NEW.world_size) <> NEW.world_size"
)
INCOMPLETE = "checkpoints: complete only when every shard of its world is recorded"
RETAINED = "NOT EXISTS (SELECT 1 FROM retention r WHERE r.until > OLD.at)"
NO_DELETE = "journal: only the retention command deletes from it"
INSERT, UPDATE, DELETE = "BEFORE INSERT", "BEFORE UPDATE", "BEFORE DELETE"
GUARDS = (  # name, table, moment, condition, message
    *(
        (
            f"{table}_{column}_final",
            table,
            UPDATE,
            f"OLD.{column} IN ({words}) AND NEW.{column} <> OLD.{column}",
            f"{table}: a terminal {column} is final",
        )
        for table, column, words in FINAL
    ),
    (
        "runs_attempt_grows",
        "runs",
        UPDATE,
        "NEW.attempt < OLD.attempt",
        "runs: attempt numbers only grow",
    ),
    ("attempts_number_grows", "attempts", INSERT, NOT_GROWING, "attempts: numbers only grow"),
    ("checkpoints_insert_complete", "checkpoints", INSERT, SHORT_OF_SHARDS, INCOMPLETE),
    ("checkpoints_update_complete", "checkpoints", UPDATE, SHORT_OF_SHARDS, INCOMPLETE),
    ("journal_never_updated", "journal", UPDATE, "TRUE", "journal: nothing in it is ever updated"),
    ("journal_kept", "journal", DELETE, RETAINED, NO_DELETE),
    (
        "leader_epoch_grows",
        "leader",
        UPDATE,
        "NEW.epoch < OLD.epoch",
        "leader: the epoch only grows",
    ),
)


def guard(name: str, table: str, moment: str, condition: str, message: str) -> list[str]:
    """The statements that make a trigger."""
    if op.get_bind().dialect.name == "sqlite":
        action = f"WHEN {condition} BEGIN SELECT RAISE(ABORT, '{message}'); END"
        return [f"CREATE TRIGGER {name} {moment} ON {table} FOR EACH ROW {action}"]
    body = (
        f"BEGIN IF {condition} THEN RAISE EXCEPTION '{message}' "
        "USING ERRCODE = 'integrity_constraint_violation'; END IF; RETURN COALESCE(NEW, OLD); END"
    )
    return [
        f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ {body} $$",
        f"CREATE TRIGGER {name} {moment} ON {table} FOR EACH ROW EXECUTE FUNCTION {name}()",
    ]


def upgrade() -> None:
    """Make everything."""
    tables.create_all(op.get_bind(), checkfirst=False)
    for each in GUARDS:
        for statement in guard(*each):
            op.execute(statement)


def downgrade() -> None:
    """Remove everything."""
    tables.drop_all(op.get_bind(), checkfirst=False)
    if op.get_bind().dialect.name == "postgresql":
        for name, *_ in GUARDS:
            op.execute(f"DROP FUNCTION {name}()")
