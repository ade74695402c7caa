"""The ends of logs of ranks on nodes whose disk no server reads.

Revision: 0007
Follows: 0006
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "log_tails",
        sa.Column("run", sa.Text, nullable=False),
        sa.Column("attempt", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("rank", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("segment", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("start", sa.BigInteger, nullable=False),
        sa.Column("end", sa.BigInteger, nullable=False),
        sa.Column("worker", sa.Text, nullable=False),
        sa.Column("written_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("packed", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("run", "attempt", "rank", "segment", name="pk_log_tails"),
    )


def downgrade() -> None:
    """Remove the table."""
    op.drop_table("log_tails")
