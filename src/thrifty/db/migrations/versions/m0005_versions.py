"""Versions with weights, desired state with its history, and one row for each response.

The columns of the first release stay, so that a gateway worker of that release goes on beside this
one: it writes `request_id`, and leaves the new columns empty.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_BIG_KEY = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Bring the tables one step on."""
    op.create_table(
        "versions",
        sa.Column("deployment", sa.String(length=64), nullable=False),
        sa.Column("label", sa.String(length=64), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("engine", sa.String(length=32), nullable=False),
        sa.Column("revision", sa.String(length=32), nullable=False),
        sa.Column("artifact", sa.String(length=64), nullable=True),
        sa.Column("weight", sa.Double(), nullable=False),
        sa.Column("shadow", sa.Double(), nullable=False),
        sa.Column("settings", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("updated_s", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("deployment", "label", name=op.f("pk_versions")),
    )
    op.create_table(
        "desired",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("change_id", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_desired")),
    )
    op.create_table(
        "desired_changes",
        sa.Column("id", _BIG_KEY, autoincrement=True, nullable=False),
        sa.Column("at_s", sa.Double(), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("who", sa.String(length=128), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_desired_changes")),
    )
    op.create_index(op.f("ix_desired_changes_name"), "desired_changes", ["name"])
    op.create_table(
        "secrets",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_secrets")),
    )
    with op.batch_alter_table("requests") as table:
        table.alter_column("request_id", existing_type=sa.String(length=64), nullable=True)
        table.add_column(sa.Column("client_request_id", sa.String(length=64), nullable=True))
        table.add_column(sa.Column("conversation_id", sa.String(length=32), nullable=True))
        table.add_column(sa.Column("origin", sa.String(length=16), nullable=True))
        table.add_column(sa.Column("shadow_of", sa.BigInteger(), nullable=True))
        table.add_column(sa.Column("rerouted", sa.Boolean(), nullable=True))
    op.create_index(op.f("ix_requests_client_request_id"), "requests", ["client_request_id"])
    op.create_index(op.f("ix_requests_conversation_id"), "requests", ["conversation_id"])
    op.execute(
        "UPDATE requests SET client_request_id = request_id WHERE request_id NOT LIKE 'req-%'"
    )
    _number_texts()


def _number_texts() -> None:
    """Give each text the number of its request; texts without one get negative numbers."""
    op.rename_table("request_texts", "old_request_texts")
    op.drop_index(op.f("ix_request_texts_at_s"), "old_request_texts")
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "ALTER TABLE old_request_texts RENAME CONSTRAINT pk_request_texts TO pk_old_texts"
        )
    op.create_table(
        "request_texts",
        sa.Column("id", _BIG_KEY, autoincrement=True, nullable=False),
        sa.Column("request_id", sa.String(length=64), nullable=True),
        sa.Column("at_s", sa.Double(), nullable=False),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("answer", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_request_texts")),
    )
    op.create_index(op.f("ix_request_texts_at_s"), "request_texts", ["at_s"])
    op.execute(
        "INSERT INTO request_texts (id, request_id, at_s, prompt, answer) "
        "SELECT COALESCE(found.id, -ROW_NUMBER() OVER (ORDER BY texts.request_id)), "
        "texts.request_id, texts.at_s, texts.prompt, texts.answer "
        "FROM old_request_texts texts LEFT JOIN "
        "(SELECT request_id, MIN(id) AS id FROM requests GROUP BY request_id) found "
        "ON found.request_id = texts.request_id"
    )
    op.drop_table("old_request_texts")


def downgrade() -> None:
    """Take that step back. Texts of requests without an id of the first release get one."""
    op.rename_table("request_texts", "new_request_texts")
    op.drop_index(op.f("ix_request_texts_at_s"), "new_request_texts")
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "ALTER TABLE new_request_texts RENAME CONSTRAINT pk_request_texts TO pk_new_texts"
        )
    op.create_table(
        "request_texts",
        sa.Column("request_id", sa.String(length=64), nullable=False),
        sa.Column("at_s", sa.Double(), nullable=False),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("answer", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("request_id", name=op.f("pk_request_texts")),
    )
    op.create_index(op.f("ix_request_texts_at_s"), "request_texts", ["at_s"])
    op.execute(
        "INSERT INTO request_texts (request_id, at_s, prompt, answer) "
        "SELECT COALESCE(request_id, 'req-' || CAST(id AS VARCHAR(20))), at_s, prompt, answer "
        "FROM new_request_texts"
    )
    op.drop_table("new_request_texts")
    op.execute(
        "UPDATE requests SET request_id = COALESCE(client_request_id, "
        "'req-' || CAST(id AS VARCHAR(20))) WHERE request_id IS NULL"
    )
    op.drop_index(op.f("ix_requests_conversation_id"), "requests")
    op.drop_index(op.f("ix_requests_client_request_id"), "requests")
    with op.batch_alter_table("requests") as table:
        for name in ("rerouted", "shadow_of", "origin", "conversation_id", "client_request_id"):
            table.drop_column(name)
        table.alter_column("request_id", existing_type=sa.String(length=64), nullable=False)
    for name in ("secrets", "desired_changes", "desired", "versions"):
        op.drop_table(name)
