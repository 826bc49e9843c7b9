"""What judges said of conversations while releases were in their canary."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply the migration."""
    op.create_table(
        "release_ratings",
        sa.Column("release_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("conversation_id", sa.String(length=32), nullable=False),
        sa.Column("response", sa.BigInteger(), nullable=True),
        sa.Column("score", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("release_id", "conversation_id", name=op.f("pk_release_ratings")),
    )


def downgrade() -> None:
    """Revert the migration."""
    op.drop_table("release_ratings")
