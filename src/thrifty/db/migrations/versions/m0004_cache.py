"""Cache purges, and the cache statistics of each gateway worker."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply the migration."""
    op.create_table(
        "cache_purges",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("deployment", sa.String(length=64), nullable=True),
        sa.Column("version", sa.String(length=128), nullable=True),
        sa.Column("tenant", sa.String(length=64), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_cache_purges")),
    )
    op.create_table(
        "cache_stats",
        sa.Column("worker", sa.String(length=96), nullable=False),
        sa.Column("updated_s", sa.Double(), nullable=False),
        sa.Column("stats", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("worker", name=op.f("pk_cache_stats")),
    )


def downgrade() -> None:
    """Revert the migration."""
    op.drop_table("cache_stats")
    op.drop_table("cache_purges")
