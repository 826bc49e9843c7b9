"""Indexes by which rare requests are found in a log of any size: those of a tenant, a version or a
user, slow ones, and ones that were disliked. Indexes of ids that most rows lack leave these out.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None

_IDS = ("request_id", "client_request_id")
_NEW = ("end_user", "tenant", "version")
_SLOW_MS = (2_000, 10_000, 60_000)
_UNVERSIONED = "version IS NULL AND deployment IS NOT NULL"
_DISLIKED = "kind = 'thumbs' AND value = 0 OR kind = 'rating' AND value <= 2"


def upgrade() -> None:
    """Apply the migration."""
    for name in _IDS:
        op.drop_index(op.f(f"ix_requests_{name}"), "requests")
    for name in (*_IDS, *_NEW):
        _index(f"ix_requests_{name}", "requests", name, f"{name} IS NOT NULL")
    for least_ms in _SLOW_MS:
        _index(f"ix_requests_slow_{least_ms}", "requests", "id", f"e2e_ms >= {least_ms}")
    _index("ix_requests_unversioned", "requests", "deployment", _UNVERSIONED)
    _index("ix_feedback_disliked", "feedback", "response", _DISLIKED)


def downgrade() -> None:
    """Revert the migration."""
    op.drop_index("ix_feedback_disliked", "feedback")
    op.drop_index("ix_requests_unversioned", "requests")
    for least_ms in _SLOW_MS:
        op.drop_index(f"ix_requests_slow_{least_ms}", "requests")
    for name in (*_IDS, *_NEW):
        op.drop_index(f"ix_requests_{name}", "requests")
    for name in _IDS:
        op.create_index(op.f(f"ix_requests_{name}"), "requests", [name])


def _index(name: str, table: str, column: str, where: str) -> None:
    op.create_index(
        name, table, [column], sqlite_where=sa.text(where), postgresql_where=sa.text(where)
    )
