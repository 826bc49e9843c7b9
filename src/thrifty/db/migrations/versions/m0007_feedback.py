"""Feedback on responses and conversations with its history, and the tags of requests."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_BIG_KEY = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_INDEXES = (
    ("feedback", ("response",)),
    ("feedback", ("conversation_id",)),
    ("feedback", ("tenant", "end_user", "at_s")),
    ("feedback", ("updated_s",)),
    ("feedback_history", ("feedback_id",)),
)


def upgrade() -> None:
    """Apply the migration."""
    op.add_column("requests", sa.Column("tags", sa.Text(), nullable=True))
    op.create_table(
        "feedback",
        sa.Column("id", _BIG_KEY, autoincrement=True, nullable=False),
        sa.Column("identity", sa.String(length=32), nullable=False),
        sa.Column("kind", sa.String(length=80), nullable=False),
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("response", sa.BigInteger(), nullable=True),
        sa.Column("conversation_id", sa.String(length=32), nullable=True),
        sa.Column("end_user", sa.Text(), nullable=True),
        sa.Column("client_id", sa.String(length=128), nullable=True),
        sa.Column("source", sa.String(length=8), nullable=False),
        sa.Column("value", sa.Double(), nullable=True),
        sa.Column("text", sa.Text(), nullable=True),
        sa.Column("tags", sa.Text(), nullable=True),
        sa.Column("at_s", sa.Double(), nullable=False),
        sa.Column("updated_s", sa.Double(), nullable=False),
        sa.Column("changes", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_feedback")),
        sa.UniqueConstraint("identity", name=op.f("uq_feedback_identity")),
    )
    op.create_table(
        "feedback_history",
        sa.Column("id", _BIG_KEY, autoincrement=True, nullable=False),
        sa.Column("feedback_id", sa.BigInteger(), nullable=False),
        sa.Column("at_s", sa.Double(), nullable=False),
        sa.Column("value", sa.Double(), nullable=True),
        sa.Column("text", sa.Text(), nullable=True),
        sa.Column("tags", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_feedback_history")),
    )
    for table, columns in _INDEXES:
        op.create_index(op.f(f"ix_{table}_{'_'.join(columns)}"), table, list(columns))


def downgrade() -> None:
    """Revert the migration. Feedback and tags are lost."""
    op.drop_table("feedback_history")
    op.drop_table("feedback")
    # SQLite can drop a column in place; a copy of the table would lose its triggers.
    op.drop_column("requests", "tags")
