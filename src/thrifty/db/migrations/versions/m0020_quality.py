"""What is found out about answers: checks, sums, scores of judges and drift."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply the migration."""
    op.add_column("requests", sa.Column("max_tokens", sa.Integer(), nullable=True))
    op.add_column("request_texts", sa.Column("facts", sa.Text(), nullable=True))
    op.create_table(
        "unchecked_rows",
        sa.Column(
            "id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True,
            nullable=False,
        ),
        sa.Column("numbers", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_unchecked_rows")),
    )  # fmt: skip
    op.create_table(
        "answer_checks",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("faults", sa.Integer(), nullable=False),
        sa.Column("turn", sa.Integer(), nullable=False),
        sa.Column("flags", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_answer_checks")),
    )
    op.create_table(
        "quality_sums",
        sa.Column("step_s", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("at_s", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("deployment", sa.String(length=64), nullable=False),
        sa.Column("version", sa.String(length=128), nullable=False),
        sa.Column("counts", sa.Text(), nullable=False),
        sa.Column("sketches", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint(
            "step_s", "at_s", "deployment", "version", name=op.f("pk_quality_sums")
        ),
    )
    op.create_table(
        "quality_state",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("turn", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_quality_state")),
    )
    op.create_table(
        "answer_scores",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at_s", sa.Double(), nullable=False),
        sa.Column("deployment", sa.String(length=64), nullable=False),
        sa.Column("version", sa.String(length=128), nullable=False),
        sa.Column("judge", sa.String(length=255), nullable=False),
        sa.Column("score", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_answer_scores")),
    )
    op.create_index(
        op.f("ix_answer_scores_deployment_at_s"), "answer_scores", ["deployment", "at_s"]
    )
    op.create_index(op.f("ix_answer_scores_at_s"), "answer_scores", ["at_s"])
    op.create_table(
        "drift_looks",
        sa.Column("at_s", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("deployment", sa.String(length=64), nullable=False),
        sa.Column("version", sa.String(length=128), nullable=False),
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("before", sa.BigInteger(), nullable=False),
        sa.Column("now", sa.BigInteger(), nullable=False),
        sa.Column("effect", sa.Double(), nullable=False),
        sa.Column("p_value", sa.Double(), nullable=False),
        sa.Column("drifted", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint(
            "at_s", "deployment", "version", "name", name=op.f("pk_drift_looks")
        ),
    )


def downgrade() -> None:
    """Revert the migration."""
    for name in (
        "drift_looks", "answer_scores", "quality_state", "quality_sums", "answer_checks",
        "unchecked_rows",
    ):  # fmt: skip
        op.drop_table(name)
    op.drop_column("request_texts", "facts")
    op.drop_column("requests", "max_tokens")
