"""What gateway workers are asked of each version, and what the autoscaler decided."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply the migration."""
    op.create_table(
        "demand",
        sa.Column("worker", sa.String(length=96), nullable=False),
        sa.Column("deployment", sa.String(length=64), nullable=False),
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.Column("updated_s", sa.Double(), nullable=False),
        sa.Column("figures", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("worker", "deployment", "version", name=op.f("pk_demand")),
    )
    op.create_table(
        "scaling",
        sa.Column("deployment", sa.String(length=64), nullable=False),
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.Column("updated_s", sa.Double(), nullable=False),
        sa.Column("figures", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("deployment", "version", name=op.f("pk_scaling")),
    )


def downgrade() -> None:
    """Revert the migration."""
    op.drop_table("scaling")
    op.drop_table("demand")
