"""The memory of alert channels.

Revision: 0003
Follows: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "alert_memory",
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("run", sa.Text),
        sa.Column("body", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_alert_memory"),
    )
    op.create_index("ix_alert_memory_run", "alert_memory", ["run"])


def downgrade() -> None:
    """Remove the table."""
    op.drop_table("alert_memory")
