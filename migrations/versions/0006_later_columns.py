"""Columns of tables that exist: finite losses of a chunk of samples, requests of revocations.

Revision: 0006
Follows: 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; what is stored already has no value in them."""
    op.add_column("samples", sa.Column("loss_count", sa.BigInteger))
    op.add_column("tokens", sa.Column("revoked_by", sa.Text))


def downgrade() -> None:
    """Remove the columns."""
    op.drop_column("tokens", "revoked_by")
    op.drop_column("samples", "loss_count")
