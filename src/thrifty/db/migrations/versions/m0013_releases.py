"""Releases, what was decided in them, compared pairs of answers, and conversations that stay."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply the migration."""
    op.create_table(
        "releases",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("deployment", sa.String(length=64), nullable=False),
        sa.Column("candidate", sa.String(length=64), nullable=False),
        sa.Column("active_on", sa.String(length=64), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("edition", sa.Integer(), nullable=False),
        sa.Column("created_s", sa.Double(), nullable=False),
        sa.Column("updated_s", sa.Double(), nullable=False),
        sa.Column("active_s", sa.Double(), nullable=False),
        sa.Column("record", sa.Text(), nullable=False),
        sa.Column("figures", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_releases")),
        sa.UniqueConstraint("active_on", name=op.f("uq_releases_active_on")),
    )
    op.create_index(op.f("ix_releases_deployment"), "releases", ["deployment"])
    op.create_table(
        "release_events",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("release_id", sa.Integer(), nullable=False),
        sa.Column("at_s", sa.Double(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("who", sa.String(length=128), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("figures", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_release_events")),
    )
    op.create_index(op.f("ix_release_events_release_id"), "release_events", ["release_id"])
    op.create_table(
        "release_pairs",
        sa.Column("release_id", sa.Integer(), nullable=False),
        sa.Column("shadow", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("response", sa.BigInteger(), nullable=False),
        sa.Column("conversation_id", sa.String(length=32), nullable=True),
        sa.Column("outcome", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("release_id", "shadow", name=op.f("pk_release_pairs")),
    )
    op.create_table(
        "quality_answers",
        sa.Column(
            "id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True,
            nullable=False,
        ),
        sa.Column("at_s", sa.Double(), nullable=False),
        sa.Column("deployment", sa.String(length=64), nullable=False),
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.Column("revision", sa.String(length=32), nullable=False),
        sa.Column("questions", sa.String(length=16), nullable=False),
        sa.Column("question", sa.Integer(), nullable=False),
        sa.Column("right", sa.Boolean(), nullable=True),
        sa.Column("faults", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_quality_answers")),
    )  # fmt: skip
    op.create_index(
        op.f("ix_quality_answers_deployment_version_at_s"), "quality_answers",
        ["deployment", "version", "at_s"],
    )  # fmt: skip
    op.create_index(op.f("ix_quality_answers_at_s"), "quality_answers", ["at_s"])
    op.create_table(
        "held_conversations",
        sa.Column("deployment", sa.String(length=64), nullable=False),
        sa.Column("updated_s", sa.Double(), nullable=False),
        sa.Column("keep_s", sa.Double(), nullable=False),
        sa.Column("weights", sa.Text(), nullable=False),
        sa.Column("conversations", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("deployment", name=op.f("pk_held_conversations")),
    )


def downgrade() -> None:
    """Revert the migration."""
    op.drop_table("held_conversations")
    op.drop_index(op.f("ix_quality_answers_at_s"), table_name="quality_answers")
    op.drop_index(op.f("ix_quality_answers_deployment_version_at_s"), table_name="quality_answers")
    op.drop_table("quality_answers")
    op.drop_table("release_pairs")
    op.drop_index(op.f("ix_release_events_release_id"), table_name="release_events")
    op.drop_table("release_events")
    op.drop_index(op.f("ix_releases_deployment"), table_name="releases")
    op.drop_table("releases")
