"""Sums of the request log by minute, hour and day, and who held the machine when."""

from __future__ import annotations

import time

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_NUMBERS = (
    "requests", "errors", "hits", "prompt_tokens", "completion_tokens", "cached_tokens",
    "hit_prompt_tokens", "hit_completion_tokens", "other_requests", "up", "down",
)  # fmt: skip
_AMOUNTS = ("cost", "hit_cost", "busy_ms", "other_busy_ms")
_SKETCHES = ("ttft", "tpot", "e2e", "queue")


def _create_sums(name: str, labels: dict[str, int]) -> None:
    op.create_table(
        name,
        sa.Column("step_s", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("at_s", sa.BigInteger(), autoincrement=False, nullable=False),
        *(
            sa.Column(label, sa.String(length=size), nullable=False)
            for label, size in labels.items()
        ),
        *(sa.Column(number, sa.BigInteger(), nullable=False) for number in _NUMBERS),
        *(sa.Column(amount, sa.Double(), nullable=False) for amount in _AMOUNTS),
        sa.Column("kinds", sa.Text(), nullable=True),
        *(sa.Column(sketch, sa.LargeBinary(), nullable=True) for sketch in _SKETCHES),
        sa.PrimaryKeyConstraint("step_s", "at_s", *labels, name=op.f(f"pk_{name}")),
    )


def upgrade() -> None:
    """Apply the migration. What the log and the feedback hold is noted, to be added later."""
    op.add_column("requests", sa.Column("cost", sa.Double(), nullable=True))
    _create_sums("rollups", {"deployment": 64, "version": 128})
    _create_sums("tenant_rollups", {"deployment": 64, "version": 128, "tenant": 64})
    op.create_table(
        "rollup_state",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("turn", sa.BigInteger(), nullable=False),
        sa.Column("old_after", sa.BigInteger(), nullable=False),
        sa.Column("old_until", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rollup_state")),
    )
    number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "unrolled_rows",
        sa.Column("id", number, autoincrement=True, nullable=False),
        sa.Column("numbers", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_unrolled_rows")),
    )
    op.create_table(
        "unrolled_thumbs",
        sa.Column("id", number, autoincrement=True, nullable=False),
        sa.Column("response", sa.BigInteger(), nullable=True),
        sa.Column("conversation_id", sa.String(length=32), nullable=True),
        sa.Column("up", sa.Integer(), nullable=False),
        sa.Column("down", sa.Integer(), nullable=False),
        sa.Column("at_s", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_unrolled_thumbs")),
    )
    op.create_table(
        "replica_spans",
        sa.Column("id", number, autoincrement=True, nullable=False),
        sa.Column("replica", sa.String(length=64), nullable=False),
        sa.Column("deployment", sa.String(length=64), nullable=False),
        sa.Column("version", sa.String(length=128), nullable=False),
        sa.Column("process_s", sa.Double(), nullable=False),
        sa.Column("share", sa.Double(), nullable=False),
        sa.Column("price_per_hour", sa.Double(), nullable=True),
        sa.Column("basis", sa.Text(), nullable=False),
        sa.Column("started_s", sa.Double(), nullable=False),
        sa.Column("seen_s", sa.Double(), nullable=False),
        sa.Column("ended_s", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_replica_spans")),
    )
    op.create_index(op.f("ix_replica_spans_ended_s"), "replica_spans", ["ended_s"])
    op.create_table(
        "replica_hours",
        sa.Column("hour_s", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("deployment", sa.String(length=64), nullable=False),
        sa.Column("version", sa.String(length=128), nullable=False),
        *(
            sa.Column(name, sa.BigInteger(), nullable=False)
            for name in ("held_ms", "worked_ms", "machine_ms", "unpriced_ms", "cost_nanos")
        ),
        sa.PrimaryKeyConstraint("hour_s", "deployment", "version", name=op.f("pk_replica_hours")),
    )
    op.execute(
        "INSERT INTO rollup_state (id, turn, old_after, old_until) "
        "SELECT 1, 0, coalesce(min(id), 0) - 1, coalesce(max(id), -1) FROM requests"
    )
    thumbs = sa.text(
        "INSERT INTO unrolled_thumbs (response, conversation_id, up, down, at_s) "
        "SELECT response, conversation_id, CASE WHEN value = 1 THEN 1 ELSE 0 END, "
        "CASE WHEN value = 0 THEN 1 ELSE 0 END, :now_s FROM feedback WHERE kind = 'thumbs'"
    )
    op.get_bind().execute(thumbs, {"now_s": time.time()})


def downgrade() -> None:
    """Revert the migration."""
    for name in (
        "replica_hours", "replica_spans", "unrolled_thumbs", "unrolled_rows", "rollup_state",
        "tenant_rollups", "rollups",
    ):  # fmt: skip
        op.drop_table(name)
    op.drop_column("requests", "cost")
