"""Incidents about nodes, which belong to no run.

Revision: 0009
Follows: 0008
"""

from __future__ import annotations

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_FINAL = (
    "CREATE TRIGGER incidents_state_final BEFORE UPDATE ON incidents FOR EACH ROW "
    "WHEN OLD.state IN ('resolved') AND NEW.state <> OLD.state "
    "BEGIN SELECT RAISE(ABORT, 'incidents: a terminal state is final'); END"
)


def upgrade() -> None:
    """Let an incident have no run."""
    _allow(nothing=True)


def downgrade() -> None:
    """Remove the incidents about nodes: the version before has no place for them."""
    op.execute("DELETE FROM incidents WHERE run IS NULL")
    _allow(nothing=False)


def _allow(*, nothing: bool) -> None:
    """SQLite makes the table anew, and loses its trigger with it."""
    with op.batch_alter_table("incidents") as table:
        table.alter_column("run", nullable=nothing)
    if op.get_bind().dialect.name == "sqlite":
        op.execute(_FINAL)
