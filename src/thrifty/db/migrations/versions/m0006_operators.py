"""Roles by names that version 0.1 knows, so that its gateway workers can read the table of keys.

Viewers are stored as `monitor`, as version 0.1 calls them. Operators are stored as `user`, which is
what they may do there, with the new column `operator` set.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply the migration."""
    op.add_column("keys", sa.Column("operator", sa.Boolean(), nullable=True))
    op.execute("UPDATE keys SET role = 'user', operator = true WHERE role = 'operator'")
    op.execute("UPDATE keys SET role = 'monitor' WHERE role = 'viewer'")


def downgrade() -> None:
    """Revert the migration. Operators become users: version 0.1 has no operators."""
    with op.batch_alter_table("keys") as table:
        table.drop_column("operator")
