"""Limits of keys, and the spend of each key per day."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply the migration."""
    op.create_table(
        "key_spend",
        sa.Column("key_id", sa.String(length=32), nullable=False),
        sa.Column("day", sa.String(length=10), nullable=False),
        sa.Column("spend", sa.Double(), nullable=False),
        sa.Column("updated_s", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("key_id", "day", name=op.f("pk_key_spend")),
    )
    with op.batch_alter_table("key_spend", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_key_spend_updated_s"), ["updated_s"], unique=False)
    with op.batch_alter_table("keys", schema=None) as batch_op:
        batch_op.add_column(sa.Column("rpm", sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column("tpm", sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column("concurrency", sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column("budget_day", sa.Double(), nullable=True))
        batch_op.add_column(sa.Column("budget_month", sa.Double(), nullable=True))


def downgrade() -> None:
    """Revert the migration."""
    with op.batch_alter_table("keys", schema=None) as batch_op:
        for name in ("budget_month", "budget_day", "concurrency", "tpm", "rpm"):
            batch_op.drop_column(name)
    with op.batch_alter_table("key_spend", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_key_spend_updated_s"))
    op.drop_table("key_spend")
