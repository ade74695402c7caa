"""The audit log.

Revision: 0005
Follows: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

KEY = sa.BigInteger().with_variant(sa.Integer, "sqlite")
UTC = sa.DateTime(timezone=True)
TEXTS = ("actor", "role", "via", "subject", "action", "target")
MORE_TEXTS = ("reason", "outcome", "detail", "request", "event")
GUARDS = (
    ("audit_never_updated", "UPDATE", "TRUE", "audit: nothing in it is ever updated"),
    (
        "audit_kept",
        "DELETE",
        "NOT EXISTS (SELECT 1 FROM audit_retention r WHERE r.until > OLD.at)",
        "audit: only retention deletes from it",
    ),
)


def guard(name: str, moment: str, condition: str, message: str) -> list[str]:
    """The statements that make a trigger."""
    head = f"CREATE TRIGGER {name} BEFORE {moment} ON audit FOR EACH ROW"
    if op.get_bind().dialect.name == "sqlite":
        return [f"{head} WHEN {condition} BEGIN SELECT RAISE(ABORT, '{message}'); END"]
    body = (
        f"BEGIN IF {condition} THEN RAISE EXCEPTION '{message}' "
        "USING ERRCODE = 'integrity_constraint_violation'; END IF; RETURN COALESCE(NEW, OLD); END"
    )
    return [
        f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ {body} $$",
        f"{head} EXECUTE FUNCTION {name}()",
    ]


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "audit",
        sa.Column("position", KEY, nullable=False),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("at", UTC, nullable=False),
        *(sa.Column(name, sa.Text, nullable=False) for name in TEXTS),
        sa.Column("run", sa.Text),
        *(sa.Column(name, sa.Text, nullable=False) for name in MORE_TEXTS),
        sa.Column("before", sa.JSON, nullable=False),
        sa.Column("after", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("position", name="pk_audit"),
        sa.UniqueConstraint("id", name="uq_audit_id"),
        sqlite_autoincrement=True,
    )
    for name in ("at", "actor", "run"):
        op.create_index(f"ix_audit_{name}", "audit", [name])
    op.create_table(
        "audit_retention",
        sa.Column("id", KEY, nullable=False),
        sa.Column("at", UTC, nullable=False),
        sa.Column("until", UTC, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit_retention"),
        sqlite_autoincrement=True,
    )
    for each in GUARDS:
        for statement in guard(*each):
            op.execute(statement)


def downgrade() -> None:
    """Remove the tables."""
    op.drop_table("audit")
    op.drop_table("audit_retention")
    if op.get_bind().dialect.name != "sqlite":
        for name, *_ in GUARDS:
            op.execute(f"DROP FUNCTION IF EXISTS {name}() CASCADE")
