"""Embeddings of some questions and answers, by which drift is told."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply the migration."""
    op.create_table(
        "answer_vectors",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at_s", sa.Double(), nullable=False),
        sa.Column("deployment", sa.String(length=64), nullable=False),
        sa.Column("version", sa.String(length=128), nullable=False),
        sa.Column("asked", sa.LargeBinary(), nullable=True),
        sa.Column("answer", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_answer_vectors")),
    )
    op.create_index(
        op.f("ix_answer_vectors_deployment_at_s"), "answer_vectors", ["deployment", "at_s"]
    )
    op.create_index(op.f("ix_answer_vectors_at_s"), "answer_vectors", ["at_s"])


def downgrade() -> None:
    """Revert the migration."""
    op.drop_table("answer_vectors")
