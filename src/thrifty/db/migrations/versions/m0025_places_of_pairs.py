"""Compared pairs keep their order: what they have proved depends on it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply the migration. Earlier pairs stand first, by their numbers."""
    place = sa.Column("place", sa.Integer(), nullable=False, server_default="0")
    op.add_column("release_pairs", place)


def downgrade() -> None:
    """Revert the migration."""
    op.drop_column("release_pairs", "place")
