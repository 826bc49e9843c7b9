"""An index of failed requests, so that they are found in a log of any size."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0013"
branch_labels = None
depends_on = None

_FAILED = sa.text("error IS NOT NULL OR status >= 400")


def upgrade() -> None:
    """Apply the migration."""
    op.create_index(
        "ix_requests_failed", "requests", ["id"],
        sqlite_where=_FAILED, postgresql_where=_FAILED,
    )  # fmt: skip


def downgrade() -> None:
    """Revert the migration."""
    op.drop_index("ix_requests_failed", "requests")
