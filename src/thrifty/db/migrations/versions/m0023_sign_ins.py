"""Where keys of encrypted texts are; who is signed in through an identity provider; API keys that
end, are bound to deployments, or get another secret.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply the migration."""
    op.create_table(
        "text_keys",
        sa.Column("source", sa.String(length=512), nullable=False),
        sa.Column("writes", sa.Boolean(), nullable=False),
        sa.Column("at_s", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("source", name=op.f("pk_text_keys")),
    )
    op.create_table(
        "sign_ins",
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("person", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("rules", sa.String(length=16), nullable=False),
        sa.Column("at_s", sa.Double(), nullable=False),
        sa.Column("until_s", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("hash", name=op.f("pk_sign_ins")),
    )
    op.create_index(op.f("ix_sign_ins_until_s"), "sign_ins", ["until_s"])
    op.add_column("keys", sa.Column("deployments", sa.Text(), nullable=True))
    op.add_column("keys", sa.Column("expires_s", sa.Double(), nullable=True))
    op.add_column("keys", sa.Column("previous_hash", sa.String(length=64), nullable=True))
    op.add_column("keys", sa.Column("previous_until_s", sa.Double(), nullable=True))


def downgrade() -> None:
    """Revert the migration."""
    with op.batch_alter_table("keys") as table:
        for name in ("previous_until_s", "previous_hash", "expires_s", "deployments"):
            table.drop_column(name)
    op.drop_table("sign_ins")
    op.drop_table("text_keys")
